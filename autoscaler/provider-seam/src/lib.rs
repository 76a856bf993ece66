//! The seam between the autoscaler and whoever has machines: a cloud, or this host.
//!
//! A *provider* launches, lists and terminates the *nodes* of one cluster. It keeps no state of its own: what there is,
//! is what [`Provider::list`] finds by the cluster's tag, so that an autoscaler that crashed at any point finds again
//! what it bought. It decides nothing: which type, which zone, when, and whether to try again are the caller's, who is
//! told by a closed list of [`ErrorKind`]s what can help.
//!
//! What each provider must do is the documentation of [`Provider`], and one function per clause in [`conformance`].
//! [`memory`] is a provider without machines that fails, stops and is late on demand.

pub mod asking;
pub mod conformance;
pub mod console;
mod error;
pub mod memory;
mod names;
mod node;

use std::sync::Arc;

use async_trait::async_trait;
/// What such a name is refused with.
pub use flux_protocol::id::InvalidId;

pub use console::{ConsoleOutput, Fingerprint};
pub use error::{Advice, ErrorKind, ProviderError};
pub use memory::MemoryProvider;
pub use names::{ClientToken, ClusterName, NodeId, NodeType, Zone};
pub use node::{LaunchRequest, MicroUsd, Node, NodeState, TypeDetails};

pub type SharedProvider = Arc<dyn Provider>;

/// Tags that every provider puts on a node, so that each finds its own again.
pub mod tag {
    /// The cluster's name: a node without it, or with another's, is never listed and never terminated.
    pub const CLUSTER: &str = "flux-cluster";
    /// The token that the launch was asked with.
    pub const CLIENT_TOKEN: &str = "flux-client-token";
    /// The pool that the node's agent joins.
    pub const POOL: &str = "flux-pool";
}

/// What providers really do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A node is a bare machine that is set up over SSH. Without it a node starts its agent by itself.
    pub needs_bootstrap: bool,
    /// [`Provider::console_output`] can give host keys.
    pub console: bool,
    /// [`LaunchRequest::user_data`] reaches the node. Without it such a request is refused as invalid.
    pub user_data: bool,
    /// [`LaunchRequest::spot`] can be asked for. Without it such a request is refused as invalid.
    pub spot: bool,
}

/// Machines of one cluster at one provider.
///
/// **Which nodes.** Each method sees the nodes that carry the provider's cluster tag ([`tag::CLUSTER`]), and no others.
///
/// **Repeating.** Every method may be called again after any error, and after no answer at all. An error of the kinds
/// [`ErrorKind::Throttled`] and [`ErrorKind::Unavailable`] says nothing about whether the request had its effect.
///
/// **Time.** Methods come back within a minute: they wait for an answer, not for a machine to boot.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// A word for logs and records: `aws`, `gcp`, `local`.
    fn name(&self) -> &'static str;

    fn capabilities(&self) -> Capabilities;

    /// Where nodes can be launched, the preferred first. At least one; where a provider has no such thing, one
    /// named after it.
    fn zones(&self) -> &[Zone];

    /// Asks for one node, and returns it as soon as it has an id; most often it is [`NodeState::Pending`].
    ///
    /// *Idempotent by [`LaunchRequest::client_token`]:* as long as the node of a token lives, a launch with that token
    /// returns it, whatever else the request says, however many ask at once, and even while [`Provider::list`] does not
    /// show it yet. Once it has ended, the same token may return the node that is gone or launch another: a token
    /// belongs to one decision, and a new decision takes a new one.
    ///
    /// Nothing is left behind by an error of the kinds quota, capacity, credentials and invalid.
    async fn launch(&self, request: &LaunchRequest) -> Result<Node, ProviderError>;

    /// All nodes of the cluster that are not gone, and those that went lately as far as the provider still knows them.
    ///
    /// May lag: a node that was just launched may be missing, and the state of one that was just terminated may be
    /// old, for up to [`LIST_LAGS_AT_MOST`]. A page that could not be read is an error, never a shorter list.
    async fn list(&self) -> Result<Vec<Node>, ProviderError>;

    /// Ends a node. *Idempotent:* that it is stopping, gone, or was never heard of, is no error.
    ///
    /// A node of another cluster is left alone, and that is no error either: it is not one of those that the provider sees.
    async fn terminate(&self, id: &NodeId) -> Result<(), ProviderError>;

    /// What the node has written to its console, and the host keys in it. Empty until the machine has booted so far.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a node that the provider does not see, or where it has no console.
    async fn console_output(&self, id: &NodeId) -> Result<ConsoleOutput, ProviderError>;

    /// What those of `types` are that exist here, in the order given. Unknown ones are left out.
    async fn describe_types(&self, types: &[NodeType]) -> Result<Vec<TypeDetails>, ProviderError>;
}

/// How late [`Provider::list`] may be. Who finds a token that it asked for missing waits this long before it believes it.
pub const LIST_LAGS_AT_MOST: std::time::Duration = std::time::Duration::from_secs(60);
