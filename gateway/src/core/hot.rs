//! Which queues are hot, as this gateway knows it from the table of hot queues, and making them so.
//!
//! Knowing saves a round trip for each invocation. The knowledge may be a few milliseconds old: a queue that was cooled
//! just now looks hot. What is published into it then is found by a ring, by the grace of a sync call, or by the
//! reconciler's counts.
//!
//! Where more queues are hot than agents have slots, agents cannot have a pull on each, and one that waits for its
//! turn may wait longer than a caller does. Then each use of a queue rings the agents: its key is put again, which
//! they take as word of work.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flux_broker::{Broker, BrokerError, Change, Table};
use flux_protocol::subject::QueueName;
use flux_runtime::Tasks;
use futures::StreamExt as _;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::OnceCell, time::Instant};

use super::fleet::Fleet;

/// A queue is rung for once in this time: what comes meanwhile is seen with what was rung for.
const RING_EVERY_MS: u64 = 20;

/// Shared by everything that publishes, and the reconciler.
pub(super) struct HotQueues {
    broker: Arc<dyn Broker>,
    fleet: Fleet,
    tasks: Tasks,
    started: Instant,
    known: RwLock<HashMap<QueueName, LastUsed>>,
    /// Queues being made hot now: a burst on a cold function asks the broker once.
    heating: Mutex<HashMap<QueueName, Arc<OnceCell<()>>>>,
}

/// Milliseconds since the start of the gateway.
struct LastUsed {
    at: AtomicU64,
    rung: AtomicU64,
}

impl LastUsed {
    fn new(at: u64) -> Self {
        Self { at: AtomicU64::new(at), rung: AtomicU64::new(0) }
    }
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
            self.ring(queue);
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
        self.known.read().contains_key(queue)
    }

    /// Marks it used; whether it is known to be hot.
    pub(super) fn touch(&self, queue: &QueueName) -> bool {
        let now = self.millis();
        self.known.read().get(queue).is_some_and(|used| {
            used.at.store(now, Ordering::Relaxed);
            true
        })
    }

    /// Tells agents that there is work, where there are too many hot queues for a pull on each. Not waited for.
    pub(super) fn ring(&self, queue: &QueueName) {
        let hot = self.known.read().len();
        if hot >= 2 && u64::try_from(hot).unwrap_or(u64::MAX) >= self.fleet.tasks() {
            self.call_agents(queue);
        }
    }

    /// Tells all agents that there is work which those that wait for it do not take: they may be full, while others
    /// leave the queue to them. Not waited for.
    pub(super) fn call_agents(&self, queue: &QueueName) {
        let now = self.millis();
        {
            let known = self.known.read();
            let Some(used) = known.get(queue) else { return };
            let rung = used.rung.load(Ordering::Relaxed);
            let first = now.saturating_sub(rung) >= RING_EVERY_MS
                && used.rung.compare_exchange(rung, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if !first {
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
        self.known.write().clear();
    }

    fn insert(&self, queue: QueueName) {
        let used = LastUsed::new(self.millis());
        self.known.write().insert(queue, used);
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
                                    self.known.write().entry(queue).or_insert_with(|| LastUsed::new(self.millis()));
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
