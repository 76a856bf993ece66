//! An agent: its parts, its start and its way out.

use std::{path::PathBuf, sync::Arc, time::Duration};

use flux_artifacts::{BlobArtifacts, CacheError, CodeCache};
use flux_broker::Broker;
use flux_pki::Credential;
use flux_protocol::{AgentId, Digest, PoolName, agent::Budget, id::InvalidId, limits::MIB};
use flux_runtime::{Tasks, settings::AgentSettings};
use flux_secrets::Recipient;
use futures::FutureExt as _;
use parking_lot::RwLock;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    budget,
    code::{Code, CodeError, CodeFolder},
    control,
    doubt::{self, Asker, Doubts},
    executor::{Executor, LauncherExecutor},
    functions::{FunctionEvent, Functions},
    heartbeat::{self, Heart},
    held::Held,
    hot, identity,
    launch::LauncherPool,
    ledger::Ledger,
    machine::Machine,
    node::{Addresses, Node},
    puller::{Event, Puller, PullerState},
    runtimes::{Runtimes, Search},
    sandbox::Tiers,
    stamps::{self, Stamps},
    warm::WarmPool,
    window::Window,
};

/// Finished executions per slot whose outcome may be on its way to the record before slots are held back.
const FINISHING_PER_TASK: usize = 4;
const FINISHING_AT_LEAST: usize = 64;
/// Large outputs that are stored apart at once: the disk has no more from more of them.
const STORING_AT_ONCE: usize = 2;
/// After executions were killed at a drain's deadline, for their processes to go.
const KILLED_WITHIN: Duration = Duration::from_secs(3);
/// The interpreters answer within a tenth of this; an agent on a machine that is too busy for that does not wait for them.
const RUNTIMES_WITHIN: Duration = Duration::from_secs(1);
/// Unpacked code, in the work directory.
pub(crate) const CODE: &str = "code";
/// Events between tasks: the hot table's and the functions'.
const EVENTS: usize = flux_protocol::limits::CHANNEL;

/// What an agent is made of.
pub struct AgentParts {
    pub broker: Arc<dyn Broker>,
    pub settings: AgentSettings,
    /// What it says who it is with; `None` where agents have no certificates.
    pub credential: Option<Arc<Credential>>,
    /// The agent's id and unpacked code.
    pub work_dir: PathBuf,
    /// The agent's addresses, where they are not to be found out.
    pub private_ip: Option<String>,
    pub public_ip: Option<String>,
    /// The interpreters that were found.
    pub runtimes: Runtimes,
    /// What it has beside processes.
    pub tiers: Tiers,
    pub tasks: Tasks,
}

/// An agent that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("`agent.{field}` cannot be used")]
    Setting {
        field: &'static str,
        #[source]
        source: InvalidId,
    },
    #[error("the agent's id cannot be kept in {path}")]
    Identity {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the code cache cannot be opened")]
    Code(#[from] CacheError),
    #[error("no key can be made to have secrets sealed to")]
    SecretsKey(#[from] flux_secrets::SealError),
    #[error("the queue cannot be reached")]
    Queue(#[from] flux_broker::BrokerError),
    #[error(
        "the agent cannot say who it is: let it in with `flux agent join`, or set `disable_mtls` on a private network"
    )]
    Certificate(#[from] flux_pki::PkiError),
    #[error("the probe port cannot be listened on: `agent.probe` is {address}")]
    Probe {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no launcher can be started")]
    Launcher(#[from] crate::launch::LaunchError),
    #[error("the link to the process tree cannot be used")]
    Tree(#[source] std::io::Error),
    #[error("signals cannot be listened to")]
    Signals(#[source] std::io::Error),
}

/// A running agent.
pub struct Agent {
    node: Arc<Node>,
    total: Budget,
    events: mpsc::Sender<Event>,
    state: watch::Receiver<PullerState>,
    stop: CancellationToken,
}

impl Agent {
    /// Starts with a launcher, the runtimes that it finds, and the usual code cache.
    pub async fn start(mut parts: AgentParts, launchers: LauncherPool) -> Result<Self, StartError> {
        let (executor, follow) = LauncherExecutor::new(launchers);
        parts.tasks.spawn_essential("launcher's capabilities", follow);
        let executor: Arc<dyn Executor> = Arc::new(executor);
        let mut finding = Search::new(Arc::clone(&executor)).next().boxed();
        match tokio::time::timeout(RUNTIMES_WITHIN, &mut finding).await {
            Ok((search, found)) => {
                parts.runtimes = found;
                finding = search.next().boxed();
            }
            Err(_) => tracing::warn!("the interpreters take long to answer: what needs none is run meanwhile"),
        }
        let fetch = Arc::new(BlobArtifacts::new(Arc::clone(&parts.broker)));
        let capacity = parts.settings.code_cache_mb.saturating_mul(MIB as u64);
        let cache = CodeCache::new(parts.work_dir.join(CODE), capacity, fetch)?;
        let agent = Self::start_with(parts, executor, Arc::new(CachedCode(cache)))?;
        let (node, events) = (Arc::clone(&agent.node), agent.events.clone());
        agent.essential("runtimes", async move {
            loop {
                let (search, found) = finding.await;
                *node.runtimes.write() = found;
                // Look again at what can be run; where nobody pulls any more, nobody needs to.
                let _ = events.send(Event::Functions(FunctionEvent::Synced)).await;
                finding = search.next().boxed();
            }
        });
        Ok(agent)
    }

    /// Starts with whatever runs processes and finds code.
    pub fn start_with(parts: AgentParts, executor: Arc<dyn Executor>, code: Arc<dyn Code>) -> Result<Self, StartError> {
        let AgentParts { broker, settings, credential, work_dir, private_ip, public_ip, runtimes, tiers, tasks } =
            parts;
        let id = identity::agent_id(&settings, &work_dir)?;
        let pool = PoolName::parse(&settings.pool).map_err(|source| StartError::Setting { field: "pool", source })?;
        let machine = Machine::new();
        let total = budget::of(&settings, Machine::cores(), machine.memory_total_mb());
        let (ledger, keep) = Ledger::new(broker.connection());
        let (doubts, asker) = Doubts::new();
        tasks.spawn_essential("ledger", keep);
        let finishing = (total.tasks as usize).saturating_mul(FINISHING_PER_TASK).max(FINISHING_AT_LEAST);
        let node = Arc::new(Node {
            id,
            pool,
            functions: Functions::new(Arc::clone(&broker)),
            broker,
            executor,
            tiers,
            code,
            held: Held::default(),
            runtimes: RwLock::new(runtimes),
            measured: RwLock::default(),
            warm: Arc::new(WarmPool::new(total.memory_mb.into(), total.tasks as usize)),
            ledger,
            doubts,
            tasks,
            max_losses: settings.max_losses,
            addresses: Addresses::find(private_ip, public_ip),
            secrets_key: Recipient::generate()?,
            credential,
            stamps: Stamps::default(),
            finishing: Window::new(finishing),
            storing: Semaphore::new(STORING_AT_ONCE),
            abandoned: CancellationToken::new(),
        });
        tracing::info!(
            agent_id = %node.id, pool = %node.pool,
            tasks = total.tasks, cpu_millicores = total.cpu_millicores, memory_mb = total.memory_mb,
            "the agent starts"
        );
        Ok(Self::spawn(node, machine, total, asker))
    }

    fn spawn(node: Arc<Node>, machine: Machine, total: Budget, asker: Asker) -> Self {
        let stop = CancellationToken::new();
        let (events, received) = mpsc::channel(EVENTS);
        let (puller, state) = Puller::new(Arc::clone(&node), total, received);
        let agent = Self { node, total, events, state, stop };
        agent.essential("holders", doubt::answer(Arc::clone(&agent.node)));
        agent.essential("doubts", asker.run(Arc::clone(&agent.node)));
        agent.essential("puller", puller.run());
        let (node, events) = (Arc::clone(&agent.node), agent.events.clone());
        agent.essential("functions", async move {
            let tell = |event: FunctionEvent| {
                node.forget_other_versions(&event);
                let events = events.clone();
                async move {
                    // Nobody pulls any more: nobody needs to know.
                    let _ = events.send(Event::Functions(event)).await;
                }
            };
            node.functions.follow(tell).await;
        });
        for (_, tier) in agent.node.tiers.all() {
            let (mut offer, events) = (tier.offer(), agent.events.clone());
            agent.essential("tier", async move {
                while offer.changed().await.is_ok() {
                    // Look again at what can be run; where nobody pulls any more, nobody needs to.
                    let _ = events.send(Event::Functions(FunctionEvent::Synced)).await;
                }
                std::future::pending::<()>().await;
            });
        }
        let (node, events) = (Arc::clone(&agent.node), agent.events.clone());
        agent.essential("hot queues", async move { hot::follow(&*node.broker, &node.pool, events).await });
        let warm = Arc::clone(&agent.node.warm);
        agent.essential("warm pool", async move { warm.tend().await });
        agent.essential("secrets of workers", stamps::follow(Arc::clone(&agent.node)));
        agent.essential("control", control::answer(Arc::clone(&agent.node), agent.events.clone()));
        agent.essential("cancels", control::cancels(Arc::clone(&agent.node)));
        let heart = Heart::new(Arc::clone(&agent.node), machine, total, agent.state.clone());
        agent.node.tasks.spawn_essential("heartbeat", heart.beat(agent.stop.clone()));
        agent.essential("isolation report", heartbeat::say_what_is_missing(agent.node.executor.capabilities()));
        agent
    }

    /// A task that the agent cannot do without, until it is stopped.
    fn essential(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.node.tasks.spawn_essential(name, async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Answers gateways on the probe port.
    pub(crate) fn answer_probes(&self, listener: tokio::net::TcpListener, credential: Arc<Credential>) {
        self.essential("probe port", crate::probe::answer(listener, credential, Arc::clone(&self.node)));
    }

    pub fn id(&self) -> &AgentId {
        &self.node.id
    }

    /// What it takes on at most.
    pub fn total(&self) -> Budget {
        self.total
    }

    /// Goes away: pulls no more, lets what runs finish, and at the deadline ends it without an outcome, so that
    /// another agent starts its next attempt. The process is told to drain with it. The broker stays open.
    ///
    /// What comes on credit that is out already is given back once, for another agent; what comes again is run: there
    /// is room for it, and giving it back time after time would count as losses.
    pub async fn drain(&self, deadline: Duration) {
        self.node.tasks.shutdown().start_drain();
        let _ = self.events.send(Event::Drain).await;
        if tokio::time::timeout(deadline, self.node.held.until_empty()).await.is_err() {
            tracing::warn!("the drain deadline passed: what runs is ended, and begins again elsewhere");
            self.kill().await;
        }
        self.node.warm.clear();
        if tokio::time::timeout(KILLED_WITHIN, self.node.ledger.flush()).await.is_err() {
            tracing::warn!("not every ack could be sent; what they ended is settled by its record");
        }
        self.stop.cancel();
    }

    /// Ends what runs, without outcomes.
    async fn kill(&self) {
        self.node.abandoned.cancel();
        self.node.held.abandon_all();
        let _ = tokio::time::timeout(KILLED_WITHIN, self.node.held.until_empty()).await;
    }
}

/// The code cache as the agent asks it.
struct CachedCode(CodeCache);

#[async_trait::async_trait]
impl Code for CachedCode {
    async fn ensure(&self, digest: &Digest) -> Result<CodeFolder, CodeError> {
        match self.0.ensure(*digest).await {
            Ok(code) => Ok(CodeFolder { path: code.path().to_owned(), hold: code }),
            Err(error) => {
                let message = crate::error_chain(&error);
                Err(match error {
                    CacheError::Missing { .. } => CodeError::Missing { message },
                    error if error.is_retryable() => CodeError::Unavailable { message },
                    _ => CodeError::Unusable { message },
                })
            }
        }
    }

    fn cached(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}
