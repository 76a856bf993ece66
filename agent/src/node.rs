//! What all executions of an agent share.

use std::sync::Arc;

use flux_broker::Broker;
use flux_pki::Credential;
use flux_protocol::{AgentId, FunctionName, PoolName, function::Isolation};
use flux_runtime::Tasks;
use flux_secrets::Recipient;
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    code::Code,
    doubt::Doubts,
    executor::Executor,
    functions::{FunctionEvent, Functions},
    held::Held,
    ledger::Ledger,
    runtimes::Runtimes,
    sandbox::{Sandbox, Tiers},
    stamps::Stamps,
    warm::WarmPool,
    window::Window,
};

pub(crate) struct Node {
    pub(crate) id: AgentId,
    pub(crate) pool: PoolName,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) tiers: Tiers,
    pub(crate) code: Arc<dyn Code>,
    pub(crate) functions: Functions,
    pub(crate) held: Held,
    pub(crate) runtimes: RwLock<Runtimes>,
    /// The machine, as the last heartbeat told it.
    pub(crate) measured: RwLock<Option<flux_protocol::agent::NodeStatus>>,
    pub(crate) warm: Arc<WarmPool>,
    pub(crate) ledger: Ledger,
    pub(crate) doubts: Doubts,
    pub(crate) tasks: Tasks,
    pub(crate) max_losses: u32,
    pub(crate) addresses: Addresses,
    /// What secrets are sealed to: of this process alone.
    pub(crate) secrets_key: Recipient,
    /// Which secrets are set now, for workers that have some.
    pub(crate) stamps: Stamps,
    /// What says that it is this agent; `None` where agents have no certificates.
    pub(crate) credential: Option<Arc<Credential>>,
    /// Finished executions whose outcome is not recorded yet: beyond it their slots are not given back.
    pub(crate) finishing: Window,
    /// Large outputs that are stored apart at once.
    pub(crate) storing: Semaphore,
    /// The agent goes away now: what has no recorded outcome is left to others.
    pub(crate) abandoned: CancellationToken,
}

impl Node {
    /// What holds functions in that ask for this; `None` where this agent has no such thing at all.
    pub(crate) fn sandbox(&self, isolation: Isolation) -> Option<&dyn Sandbox> {
        match isolation {
            Isolation::Process => Some(&self.executor),
            other => self.tiers.get(other).map(|tier| &**tier as &dyn Sandbox),
        }
    }

    /// Workers that wait to serve what is not current any more need not wait.
    pub(crate) fn forget_other_versions(&self, event: &FunctionEvent) {
        let current = |function: &FunctionName| self.functions.current(function).map(|current| current.version);
        match event {
            FunctionEvent::Changed(function) => self.warm.keep_only(function, current(function)),
            FunctionEvent::Synced => {
                for function in self.warm.counts().into_keys() {
                    self.warm.keep_only(&function, current(&function));
                }
            }
        }
    }
}

/// The node's addresses as functions are told; empty where unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl Addresses {
    /// The private address is that of the interface that leads out, unless it is configured; the public one is
    /// what was configured, since a machine behind NAT cannot see its own.
    pub(crate) fn find(private: Option<String>, public: Option<String>) -> Self {
        Self { private: private.or_else(outward_address).unwrap_or_default(), public: public.unwrap_or_default() }
    }
}

/// The source address that a packet to the outside would have. Connecting a datagram socket sends nothing.
fn outward_address() -> Option<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address of the documentation's range (RFC 5737): only the route to it counts.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then(|| address.to_string())
}
