//! What every provider must do: one function per clause of [`Provider`]'s documentation.
//!
//! A provider's tests name all of them at once, each as a test of its own:
//!
//! ```ignore
//! mod aws_at_moto {
//!     flux_provider::conformance_tests!(subject().await); // a `Subject`
//! }
//! ```
//!
//! Clauses panic where a provider does not hold them. They wait for conditions, never for a time.

use std::{any::Any, time::Duration};

use flux_protocol::PoolName;

use crate::{ClientToken, ClusterName, LaunchRequest, Node, NodeId, NodeType, Provider, SharedProvider, Zone};

mod console;
mod ending;
mod launching;
mod listing;
mod types;

pub use console::*;
pub use ending::*;
pub use launching::*;
pub use listing::*;
pub use types::*;

/// A provider whose cluster has no nodes, and what the clauses need to know about it.
pub struct Subject {
    pub provider: SharedProvider,
    /// The same account, as another cluster.
    pub other_cluster: SharedProvider,
    pub cluster: ClusterName,
    /// Two types that exist.
    pub small: NodeType,
    pub large: NodeType,
    /// An id that no node has, in the provider's form.
    pub no_such_node: NodeId,
    /// What must live as long.
    pub guard: Box<dyn Any + Send>,
}

/// Makes a test of every clause. The expression makes a [`Subject`]; it may await.
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr) => {
        $crate::conformance_tests! { @ $subject;
            a_launch_gives_a_node_with_what_was_asked_for,
            the_same_token_buys_one_node,
            of_eight_at_once_with_one_token_all_get_one_node,
            the_same_token_with_another_request_is_still_one_node,
            another_token_buys_another_node,
            an_unknown_type_is_invalid_and_names_the_setting,
            an_unknown_zone_is_invalid_and_names_the_setting,
            what_it_cannot_do_is_refused,
            a_node_is_listed_with_what_was_asked_for,
            a_node_runs_and_has_an_address,
            another_clusters_nodes_are_not_seen,
            a_terminated_node_goes,
            terminating_again_is_no_error,
            terminating_what_is_not_there_is_no_error,
            another_clusters_node_is_left_alone,
            a_console_has_host_keys_or_nothing,
            there_is_no_console_of_what_is_not_there,
            known_types_are_described_in_order,
        }
    };
    (@ $subject:expr; $($clause:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let subject: $crate::conformance::Subject = $subject;
                $crate::conformance::$clause(&subject).await;
            }
        )*
    };
}

/// How long a clause waits for what must come.
const EVENTUALLY: Duration = Duration::from_secs(90);

impl Subject {
    fn request(&self) -> LaunchRequest {
        let pool = PoolName::parse("workers").expect("a name");
        LaunchRequest::new(ClientToken::fresh(&self.cluster), self.small.clone(), pool)
    }

    async fn launch(&self) -> Node {
        self.provider.launch(&self.request()).await.expect("a node is launched")
    }

    fn first_zone(&self) -> Zone {
        self.provider.zones().first().expect("a provider has a zone").clone()
    }

    /// The node of an id once it is listed and `wanted`.
    async fn listed(&self, id: &NodeId, what: &str, wanted: impl Fn(&Node) -> bool) -> Node {
        until(what, async || {
            let nodes = self.provider.list().await.expect("nodes are listed");
            nodes.into_iter().find(|node| node.id == *id && wanted(node))
        })
        .await
    }

    /// What is alive once the list shows a node that was launched just now: whatever was launched before it is shown too.
    async fn alive_now(&self) -> Vec<NodeId> {
        let marker = self.launch().await.id;
        self.listed(&marker, "a marker is listed", |_| true).await;
        let mut alive = Self::ids_alive(&*self.provider).await;
        alive.retain(|id| *id != marker);
        alive
    }

    async fn ids_alive(provider: &dyn Provider) -> Vec<NodeId> {
        let nodes = provider.list().await.expect("nodes are listed");
        nodes.into_iter().filter(|node| node.state.is_alive()).map(|node| node.id).collect()
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + EVENTUALLY;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {EVENTUALLY:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
