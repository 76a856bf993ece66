//! Which queues are hot, as this gateway knows it from the table of hot queues, and making them so.
//!
//! Knowing saves a round trip for each invocation. The knowledge may be a few milliseconds old: a queue that was cooled
//! just now looks hot. What is published into it then is found by a ring, by the grace of a sync call, or by the
//! reconciler's counts.
//!
//! Where more queues are hot than an agent can wait at, agents wait at none until they are told. Then each use of a queue
//! tells one agent, its [home](super::homes), by name: which costs the same for every number of agents and queues. What
//! nobody takes is told to all agents: the queue's key is put again ([ADR 4](../../../docs/adr/0004-who-waits-where.md)).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use flux_broker::{Broker, BrokerError, Change, Table};
use flux_protocol::{
    PoolName,
    agent::{ControlRequest, waits_everywhere},
    subject::{self, QueueName},
};
use flux_runtime::Tasks;
use futures::StreamExt as _;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::OnceCell, time::Instant};

use super::{fleet::Fleet, function_cache::Runnable};

/// All agents are rung for a queue once in this time: what comes meanwhile is seen with what was rung for.
const RING_EVERY_MS: u64 = 20;
/// One agent is told of a queue once in this time, and once more at the end of it if there was something to tell meanwhile:
/// what it was told of may be all that it took.
const TELL_EVERY_MS: u64 = 5;

/// Shared by everything that publishes, and the reconciler.
pub(super) struct HotQueues {
    broker: Arc<dyn Broker>,
    fleet: Fleet,
    tasks: Tasks,
    started: Instant,
    known: RwLock<Known>,
    /// Queues being made hot now: a burst on a cold function asks the broker once.
    heating: Mutex<HashMap<QueueName, Arc<OnceCell<()>>>>,
}

#[derive(Default)]
struct Known {
    queues: HashMap<QueueName, LastUsed>,
    /// How many of them each pool has.
    pools: HashMap<PoolName, u64>,
}

impl Known {
    fn insert(&mut self, queue: QueueName, at: u64) {
        if let Some(used) = self.queues.get(&queue) {
            return used.at.store(at, Ordering::Relaxed);
        }
        *self.pools.entry(queue.pool.clone()).or_default() += 1;
        self.queues.insert(queue, LastUsed::new(at));
    }

    fn remove(&mut self, queue: &QueueName) {
        if self.queues.remove(queue).is_some()
            && let Some(count) = self.pools.get_mut(&queue.pool)
        {
            *count -= 1;
        }
    }
}

/// Milliseconds since the start of the gateway.
struct LastUsed {
    at: AtomicU64,
    rung: AtomicU64,
    told: AtomicU64,
    /// There is something to tell at the end of [`TELL_EVERY_MS`].
    to_tell: AtomicBool,
}

impl LastUsed {
    fn new(at: u64) -> Self {
        Self {
            at: AtomicU64::new(at),
            rung: AtomicU64::new(0),
            told: AtomicU64::new(0),
            to_tell: AtomicBool::new(false),
        }
    }

    /// Whether it is to be done now.
    fn once_in(last: &AtomicU64, every_ms: u64, now: u64) -> bool {
        let before = last.load(Ordering::Relaxed);
        now.saturating_sub(before) >= every_ms
            && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// When an agent is told of a queue.
enum Tell {
    Now,
    Later,
    /// Somebody else will.
    Not,
}

impl HotQueues {
    pub(super) fn start(broker: Arc<dyn Broker>, fleet: Fleet, tasks: &Tasks) -> Arc<Self> {
        let queues = Arc::new(Self {
            broker,
            fleet,
            tasks: tasks.clone(),
            started: Instant::now(),
            known: RwLock::default(),
            heating: Mutex::default(),
        });
        let watching = Arc::clone(&queues);
        let killed = tasks.shutdown().kill_token();
        tasks.spawn_essential("hot-queues", async move {
            tokio::select! {
                () = watching.follow() => {}
                () = killed.cancelled() => {}
            }
        });
        queues
    }

    /// Makes the queue hot unless it is known to be. Called for each use of a queue.
    pub(super) async fn heat(&self, queue: &QueueName) -> Result<(), BrokerError> {
        if self.touch(queue) {
            return Ok(());
        }
        let cell = Arc::clone(self.heating.lock().entry(queue.clone()).or_default());
        let heated = cell.get_or_try_init(|| self.broker.heat(queue)).await.copied();
        let mut heating = self.heating.lock();
        if heating.get(queue).is_some_and(|current| Arc::ptr_eq(current, &cell)) {
            heating.remove(queue);
        }
        drop(heating);
        if heated.is_ok() {
            self.insert(queue.clone());
        }
        heated
    }

    /// Asks the broker whatever is known: for a queue whose messages do not move.
    pub(super) async fn heat_again(&self, queue: &QueueName) -> Result<(), BrokerError> {
        self.broker.heat(queue).await?;
        self.insert(queue.clone());
        Ok(())
    }

    pub(super) fn is_hot(&self, queue: &QueueName) -> bool {
        self.known.read().queues.contains_key(queue)
    }

    /// Marks it used; whether it is known to be hot.
    pub(super) fn touch(&self, queue: &QueueName) -> bool {
        let now = self.millis();
        self.known.read().queues.get(queue).is_some_and(|used| {
            used.at.store(now, Ordering::Relaxed);
            true
        })
    }

    /// Whether agents wait at this pool's queues only where they are told to.
    pub(super) fn waits_to_be_told(&self, pool: &PoolName) -> bool {
        let hot = self.known.read().pools.get(pool).copied().unwrap_or(0);
        !waits_everywhere(self.fleet.most_tasks(pool), hot)
    }

    /// The same, and then tells the queue's home.
    pub(super) fn tell_if_needed(self: &Arc<Self>, queue: &QueueName, rank: usize, function: Option<Arc<Runnable>>) {
        if self.waits_to_be_told(&queue.pool) {
            self.tell_one(queue, rank, function);
        }
    }

    /// Tells one agent that work waits at a queue, whoever waits there: the `rank`th of those it belongs to that have
    /// room. Not waited for.
    pub(super) fn tell_one(self: &Arc<Self>, queue: &QueueName, rank: usize, function: Option<Arc<Runnable>>) {
        match self.when_to_tell(queue) {
            Tell::Now => self.tell(queue, rank, function.as_deref()),
            Tell::Later => {
                let (queues, queue) = (Arc::clone(self), queue.clone());
                self.tasks.spawn("tell-later", async move {
                    tokio::time::sleep(Duration::from_millis(TELL_EVERY_MS)).await;
                    if let Some(used) = queues.known.read().queues.get(&queue) {
                        used.told.store(queues.millis(), Ordering::Relaxed);
                        used.to_tell.store(false, Ordering::Relaxed);
                    }
                    queues.tell(&queue, rank, function.as_deref());
                });
            }
            Tell::Not => {}
        }
    }

    fn when_to_tell(&self, queue: &QueueName) -> Tell {
        let known = self.known.read();
        let Some(used) = known.queues.get(queue) else { return Tell::Not };
        if LastUsed::once_in(&used.told, TELL_EVERY_MS, self.millis()) {
            Tell::Now
        } else if used.to_tell.swap(true, Ordering::Relaxed) {
            Tell::Not
        } else {
            Tell::Later
        }
    }

    fn tell(&self, queue: &QueueName, rank: usize, function: Option<&Runnable>) {
        let Some(agent) = self.fleet.home(queue, rank, function.map(Runnable::spec)) else { return };
        let Ok(request) = serde_json::to_vec(&ControlRequest::Ring { queue: queue.key() }) else { return };
        let broker = Arc::clone(&self.broker);
        self.tasks.spawn("tell-agent", async move {
            if let Err(error) = broker.signal(subject::control(&agent), request.into()).await {
                tracing::debug!(%agent, error = &error as &dyn std::error::Error, "cannot tell an agent of work");
            }
        });
    }

    /// Tells all agents that there is work which those that were told or wait for it do not take. Not waited for.
    pub(super) fn call_agents(&self, queue: &QueueName) {
        {
            let known = self.known.read();
            let Some(used) = known.queues.get(queue) else { return };
            if !LastUsed::once_in(&used.rung, RING_EVERY_MS, self.millis()) {
                return;
            }
        }
        let (broker, key) = (Arc::clone(&self.broker), queue.key());
        self.tasks.spawn("ring", async move {
            if let Err(error) = broker.put(Table::Hot, &key, bytes::Bytes::new()).await {
                tracing::debug!(key, error = &error as &dyn std::error::Error, "cannot ring; agents come in turn");
            }
        });
    }

    /// Hot queues that nothing used for `idle`.
    pub(super) fn idle_for(&self, idle: Duration) -> Vec<QueueName> {
        let before = self.millis().saturating_sub(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        self.known
            .read()
            .queues
            .iter()
            .filter(|(_, used)| used.at.load(Ordering::Relaxed) < before)
            .map(|(queue, _)| queue.clone())
            .collect()
    }

    pub(super) async fn cool(&self, queue: &QueueName) -> Result<bool, BrokerError> {
        let cooled = self.broker.cool(queue).await?;
        if cooled {
            self.known.write().remove(queue);
        } else {
            self.touch(queue);
        }
        Ok(cooled)
    }

    /// Forgets everything: the broker's storage may have been made anew. Every queue is then made hot again
    /// when it is used, which costs one idempotent request each.
    pub(super) fn forget(&self) {
        *self.known.write() = Known::default();
    }

    fn insert(&self, queue: QueueName) {
        self.known.write().insert(queue, self.millis());
    }

    /// The table says so: perhaps again, which is no use of it.
    fn heard(&self, queue: QueueName) {
        if !self.is_hot(&queue) {
            self.insert(queue);
        }
    }

    fn millis(&self) -> u64 {
        // From 1, so that "used before the start" exists.
        1 + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    async fn follow(&self) {
        loop {
            match self.broker.watch(Table::Hot, false).await {
                Ok(mut changes) => {
                    while let Some(change) = changes.next().await {
                        match change {
                            Ok(Change::Put(entry)) => {
                                if let Some(queue) = QueueName::from_key(&entry.key) {
                                    self.heard(queue);
                                }
                            }
                            Ok(Change::Deleted { key, .. }) => {
                                if let Some(queue) = QueueName::from_key(&key) {
                                    self.known.write().remove(&queue);
                                }
                            }
                            Ok(Change::Synced) => {}
                            Err(error) => {
                                tracing::warn!(
                                    error = &error as &dyn std::error::Error,
                                    "the watch on hot queues broke; starting it again"
                                );
                                break;
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot watch the hot queues; trying again"
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
