//! What a gateway does, apart from HTTP: each row of the API is one method of [`Gateway`].
//!
//! ```text
//!   call ──► admission ──► in_flight ──► FLUX_CALL ──► agent ──► flux.reply.<gateway>.<nonce> ──► the caller
//!   invoke ──► FLUX_INVOKE, then the store, then 202
//!   FLUX_STATUS ──► recorder ──► store ──► next attempt │ dead letter
//!   rings ──► hot        reconciler (one of all gateways) ──► whatever was lost, is late, or is cold
//! ```
//!
//! What can be decided without the queue or the store is in files of its own and pure: `admission`, `verdict`
//! (what a reply is worth), `reconcile_plan`, `why`.
//!
//! **Architecture Invariant:** the path of a sync call ([`Gateway::call`]) opens no store and takes no lock that grows with
//! the number of functions or agents.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use flux_artifacts::Tiered;
use flux_broker::{Broker, BrokerError};
use flux_pki::Certs;
use flux_protocol::{AgentId, ErrorCode, ExecutionId, GatewayId, PoolName, agent::NodeStatus, limits, subject};
use flux_runtime::{
    Tasks,
    settings::{Durability, GatewaySettings},
};
use flux_store::{SharedStore, StoreError};

use crate::{patience::Patience, refusal::Refusal};

mod admission;
mod agents;
mod audit;
mod autoscaler;
mod call;
mod cancel;
mod collect;
mod dead_letters;
mod executions;
mod fleet;
mod function_cache;
mod functions;
mod gate;
mod homes;
mod hot;
mod idempotency;
mod in_flight;
mod invoke;
mod keys;
mod lost_calls;
mod node;
mod payloads;
mod provision;
mod publish_again;
mod rate;
mod reconcile_plan;
mod reconciler;
mod recorder;
mod request;
mod rings;
mod secret_answers;
mod secrets;
mod tokens;
mod unknown;
mod verdict;
mod waiters;
mod watch;
mod why;

pub use agents::Joined;
pub(crate) use agents::Known;
pub use keys::{BadKey, KnownKey, NewKey};
pub use rate::Rate;
pub use request::{
    Accepted, AgentView, Called, InvokeRequest, Published, Readiness, Redriven, WatchEvent, WatchFrom, Why,
};
pub(crate) use tokens::Tokens;
pub use tokens::{BadToken, Token};

use fleet::Fleet;
use function_cache::FunctionCache;
use hot::HotQueues;
use in_flight::InFlight;
use keys::Keys;
use secrets::SecretKeys;

/// What a gateway is made of.
pub struct GatewayParts {
    pub broker: Arc<dyn Broker>,
    pub store: SharedStore,
    /// Code archives: where they are kept, and where agents fetch them.
    pub artifacts: Arc<Tiered>,
    pub settings: GatewaySettings,
    /// How long terminal executions are kept.
    pub history: Duration,
    /// Pools that agents may join; `default` is always one of them.
    pub pools: Vec<PoolName>,
    /// As configured, to be told to whoever asks.
    pub durability: Durability,
    /// Where identities are; `None` where the queue is talked to without.
    pub certs: Option<Certs>,
    /// Where the queue is, for machines that join.
    pub queue_url: String,
    pub tasks: Tasks,
}

/// A gateway cannot start.
#[derive(Debug, thiserror::Error)]
#[error("the gateway cannot start: it failed to {attempted}")]
pub struct StartError {
    attempted: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl StartError {
    fn to<E: std::error::Error + Send + Sync + 'static>(attempted: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self { attempted, source: source.into() }
    }
}

/// A gateway's handle. Clones share one.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

/// What all of the files below work on.
struct Inner {
    id: GatewayId,
    broker: Arc<dyn Broker>,
    store: SharedStore,
    artifacts: Arc<Tiered>,
    pools: Vec<PoolName>,
    durability: Durability,
    certs: Option<Certs>,
    queue_url: String,
    cool_after: Duration,
    history: Duration,
    tasks: Tasks,
    functions: Arc<FunctionCache>,
    fleet: Fleet,
    hot: Arc<HotQueues>,
    keys: Arc<Keys>,
    tokens: Tokens,
    secret_keys: SecretKeys,
    identities: agents::IdentityCache,
    ticket_key: [u8; 32],
    in_flight: InFlight,
    /// Waiters and watchers held now.
    waiting: Arc<tokio::sync::Semaphore>,
    watching: Arc<tokio::sync::Semaphore>,
    /// Retries whose time this gateway keeps, where the queue does not.
    retries: Arc<tokio::sync::Semaphore>,
    /// What is being accepted now.
    accepts: gate::Gate,
    /// Payloads in the blob seam of asynchronous executions that this gateway accepted.
    payloads: payloads::Payloads,
    recorder_health: recorder::Health,
    reconcile_now: tokio::sync::Notify,
    node: node::Node,
    draining: AtomicBool,
}

/// Longest wait for the table of agents at the start: a gateway is ready at once, with or without agents.
const SETTLE: Duration = Duration::from_millis(150);

/// The name of the key that gateways share to make and check tickets.
const TICKETS: &str = "tickets";

impl Gateway {
    /// Makes what the queue needs, starts this gateway's tasks, and is ready.
    ///
    /// # Errors
    /// The queue is out of reach or refuses.
    pub async fn start(parts: GatewayParts) -> Result<Self, StartError> {
        let GatewayParts {
            broker,
            store,
            artifacts,
            settings,
            history,
            mut pools,
            durability,
            certs,
            queue_url,
            tasks,
        } = parts;
        pools.push(PoolName::default());
        pools.sort();
        pools.dedup();
        let id = GatewayId::random();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let patience = Patience::of(&tasks);
        patience
            .go_on(BrokerError::is_retryable, || broker.provision(&pools))
            .await
            .map_err(StartError::to("make its streams and buckets"))?;
        let replies = broker.listen(&subject::replies(&id)).await.map_err(StartError::to("listen for replies"))?;
        let start_keys = || Keys::start(Arc::clone(&store), Arc::clone(&broker), settings.requests_per_second, &tasks);
        let keys =
            patience.go_on(StoreError::is_retryable, start_keys).await.map_err(StartError::to("read the API keys"))?;
        let tokens = Tokens::try_new(&settings.jwt, settings.requests_per_second, &tasks)
            .map_err(StartError::to("use `gateway.jwt`"))?;
        let ticket_key = patience
            .go_on(StoreError::is_retryable, || store.shared_key(TICKETS, rand::random()))
            .await
            .map_err(StartError::to("share a key for tickets"))?;
        let fleet = Fleet::start(Arc::clone(&broker), &tasks);
        let inner = Arc::new(Inner {
            functions: FunctionCache::start(Arc::clone(&store), Arc::clone(&broker), &tasks),
            hot: HotQueues::start(Arc::clone(&broker), fleet.clone(), &tasks),
            fleet,
            keys,
            tokens,
            secret_keys: SecretKeys::new(settings.secrets_key.clone()),
            identities: agents::IdentityCache::default(),
            ticket_key,
            in_flight: InFlight::new(settings.max_in_flight),
            waiting: Arc::new(tokio::sync::Semaphore::new(limits::GATEWAY_IN_FLIGHT)),
            watching: Arc::new(tokio::sync::Semaphore::new(limits::GATEWAY_WATCHERS)),
            retries: Arc::new(tokio::sync::Semaphore::new(limits::RETRIES_HELD)),
            accepts: gate::Gate::new("invocations being accepted", cores * limits::ACCEPTS_PER_CORE),
            payloads: payloads::Payloads::default(),
            recorder_health: recorder::Health::default(),
            reconcile_now: tokio::sync::Notify::new(),
            node: node::Node::new(),
            draining: AtomicBool::new(false),
            cool_after: Duration::from_secs(settings.cool_after.max(1)),
            id,
            broker,
            store,
            artifacts,
            pools,
            durability,
            certs,
            queue_url,
            history,
            tasks,
        });
        inner.start_tasks(replies);
        inner.fleet.settle(SETTLE).await;
        tracing::info!(gateway_id = %inner.id, pools = inner.pools.len(), "the gateway is ready");
        Ok(Self { inner })
    }

    pub fn id(&self) -> &GatewayId {
        &self.inner.id
    }

    /// What tickets are made and checked with, by every gateway of this store.
    pub fn ticket_key(&self) -> &[u8; 32] {
        &self.inner.ticket_key
    }

    /// Whether the queue and the store answer now.
    pub async fn readiness(&self) -> Readiness {
        const PATIENCE: Duration = Duration::from_millis(800);
        let inner = &self.inner;
        let (queue, store) = tokio::join!(
            tokio::time::timeout(PATIENCE, inner.broker.ping()),
            tokio::time::timeout(PATIENCE, inner.store.ping()),
        );
        Readiness {
            queue: matches!(queue, Ok(Ok(()))),
            stores: inner.broker.stores_nothing_for().is_none_or(|since| since < limits::STORES_NOTHING),
            store: matches!(store, Ok(Ok(()))),
            draining: inner.is_draining(),
            durability: inner.durability,
        }
    }

    /// Every agent heard of lately, by id.
    pub fn agents(&self) -> Vec<AgentView> {
        self.inner.fleet.list()
    }

    /// This gateway's own node.
    pub fn node(&self) -> NodeStatus {
        self.inner.node.status(self.inner.in_flight.len())
    }

    /// Refuses new work from now on, and ends when the calls in flight have ended.
    pub async fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
        self.inner.in_flight.empty().await;
    }
}

impl Inner {
    fn start_tasks(self: &Arc<Self>, replies: flux_broker::Subscription) {
        self.essential("replies", {
            let in_flight = self.in_flight.clone();
            async move { in_flight.deliver(replies).await }
        });
        self.essential("recorder", recorder::run(Arc::clone(self)));
        self.essential("reconciler", reconciler::run(Arc::clone(self)));
        self.essential("rings", rings::run(Arc::clone(self)));
        self.essential("agents that ask for secrets", Arc::clone(self).answer_agents(secret_answers::About::Values));
        self.essential("agents that ask for stamps", Arc::clone(self).answer_agents(secret_answers::About::Stamps));
        self.essential("connection", provision::run(Arc::clone(self)));
    }

    /// A task that ends when the process is told to end now, and that the process cannot do without.
    fn essential(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let killed = self.tasks.shutdown().kill_token();
        self.tasks.spawn_essential(name, async move {
            tokio::select! {
                () = work => {}
                () = killed.cancelled() => {}
            }
        });
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    fn require_open(&self) -> Result<(), Refusal> {
        if !self.is_draining() {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::ShuttingDown, "this gateway is going away; ask again, another one answers"))
    }

    fn agents_online(&self) -> Vec<AgentId> {
        self.fleet.online()
    }

    fn execution_not_found(id: ExecutionId) -> Refusal {
        Refusal::new(
            ErrorCode::ExecutionNotFound,
            format!("there is no execution `{id}`: it was never accepted, or its history has expired"),
        )
    }
}
