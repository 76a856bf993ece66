//! The seam within one process, for tests: the same meaning, no server, and faults on demand.
//!
//! One [`MemoryBroker`] in an `Arc` is the queue of a whole cluster: give it to the gateways and the agents of a test.
//! Times go by tokio's clock, so a paused one works. What the NATS engine promises this does too, by the same
//! conformance suite; what that engine keeps on disk is kept here as long as the value lives.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{PoolName, limits};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{Broker, BrokerError, Capabilities};

mod blobs;
mod dead_letters;
mod queue;
mod signals;
mod status_log;
mod tables;
mod work_queue;

/// Limits that a test may want to be small.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLimits {
    pub queued_per_function: usize,
    pub message: usize,
    pub ack_wait: Duration,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            queued_per_function: usize::try_from(limits::QUEUED_PER_FUNCTION).unwrap_or(usize::MAX),
            message: limits::MESSAGE,
            ack_wait: limits::ACK_WAIT,
        }
    }
}

/// A queue in memory.
pub struct MemoryBroker {
    inner: Arc<Inner>,
}

struct Inner {
    limits: MemoryLimits,
    capabilities: Capabilities,
    queues: Mutex<queue::Queues>,
    statuses: Mutex<status_log::Log>,
    listeners: Mutex<signals::Listeners>,
    tables: Mutex<tables::All>,
    blobs: Mutex<HashMap<(String, String), (Bytes, flux_protocol::Timestamp)>>,
    letters: Mutex<dead_letters::Letters>,
    /// Something changed that a pull, a reader or a watch may wait for.
    changed: Notify,
    connection: watch::Sender<u64>,
    connects: AtomicU64,
    faults: Faults,
}

#[derive(Default)]
struct Faults {
    publishes_to_fail: AtomicU32,
    status_publishes_to_fail: AtomicU32,
    table_puts_to_fail: AtomicU32,
    tables_are_new: AtomicBool,
    buries_to_fail: AtomicU32,
    deliveries_paused: AtomicBool,
    deliveries_may_be_late: AtomicBool,
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new(MemoryLimits::default())
    }
}

impl MemoryBroker {
    pub fn new(limits: MemoryLimits) -> Self {
        Self::with_capabilities(limits, Capabilities::all())
    }

    /// One that says that it can do this alone, so that callers take their fallbacks.
    pub fn with_capabilities(limits: MemoryLimits, capabilities: Capabilities) -> Self {
        Self {
            inner: Arc::new(Inner {
                limits,
                capabilities,
                queues: Mutex::default(),
                statuses: Mutex::default(),
                listeners: Mutex::default(),
                tables: Mutex::default(),
                blobs: Mutex::default(),
                letters: Mutex::default(),
                changed: Notify::new(),
                connection: watch::channel(1).0,
                connects: AtomicU64::new(1),
                faults: Faults::default(),
            }),
        }
    }

    /// The next `count` publishes to invocation queues fail with `Unavailable` and store nothing.
    pub fn fail_publishes(&self, count: u32) {
        self.inner.faults.publishes_to_fail.store(count, Ordering::SeqCst);
    }

    /// The same for statuses.
    pub fn fail_status_publishes(&self, count: u32) {
        self.inner.faults.status_publishes_to_fail.store(count, Ordering::SeqCst);
    }

    /// The same for changes of tables.
    pub fn fail_table_puts(&self, count: u32) {
        self.inner.faults.table_puts_to_fail.store(count, Ordering::SeqCst);
    }

    /// From now on its tables were made just now, as those of a queue that was wiped. Otherwise they are as old as can be.
    pub fn say_tables_are_new(&self) {
        self.inner.faults.tables_are_new.store(true, Ordering::SeqCst);
    }

    /// The same for dead letters.
    pub fn fail_buries(&self, count: u32) {
        self.inner.faults.buries_to_fail.store(count, Ordering::SeqCst);
    }

    /// What is delivered from now on says that it may be late.
    pub fn say_deliveries_may_be_late(&self) {
        self.inner.faults.deliveries_may_be_late.store(true, Ordering::SeqCst);
    }

    /// While paused no pull gets anything; what is out is redelivered once they go on.
    pub fn pause_deliveries(&self, paused: bool) {
        self.inner.faults.deliveries_paused.store(paused, Ordering::SeqCst);
        self.inner.changed.notify_waiters();
    }

    /// Loses all invocation queues of a pool's lane, as a server that kept them in memory does when it restarts.
    pub fn lose_lane(&self, lane: flux_protocol::invocation::Lane, pool: &PoolName) {
        self.inner.queues.lock().lose(lane, pool);
        self.inner.changed.notify_waiters();
    }

    /// Forgets that anything was delivered, as a server does that is killed before it wrote that down.
    pub fn forget_deliveries(&self) {
        self.inner.queues.lock().forget_deliveries();
        self.inner.changed.notify_waiters();
    }

    /// The connection goes down (`false`) or comes back: open pulls end, publishes fail, the count grows.
    pub fn set_connected(&self, connected: bool) {
        let value = if connected { self.inner.connects.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
        self.inner.connection.send_replace(value);
        self.inner.changed.notify_waiters();
    }
}

impl Inner {
    fn connected(&self, attempted: &'static str) -> Result<u64, BrokerError> {
        match *self.connection.borrow() {
            0 => Err(BrokerError::unavailable(attempted, "there is no connection")),
            connects => Ok(connects),
        }
    }

    fn check_size(&self, body: &Bytes) -> Result<(), BrokerError> {
        if body.len() > self.limits.message {
            return Err(BrokerError::TooLarge { size: body.len(), limit: self.limits.message });
        }
        Ok(())
    }
}

/// Takes one of the failures that were asked for.
fn takes_fault(faults: &AtomicU32, attempted: &'static str) -> Result<(), BrokerError> {
    let taken = faults.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    match taken {
        Ok(_) => Err(BrokerError::unavailable(attempted, "the test said so")),
        Err(_) => Ok(()),
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    fn stores_nothing_for(&self) -> Option<std::time::Duration> {
        None
    }

    async fn provision(&self, pools: &[PoolName]) -> Result<(), BrokerError> {
        self.inner.connected("make the queues")?;
        self.inner.queues.lock().provision(pools);
        Ok(())
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.inner.connected("reach the queue").map(|_| ())
    }

    fn connection(&self) -> watch::Receiver<u64> {
        self.inner.connection.subscribe()
    }

    async fn close(&self) {
        self.set_connected(false);
    }
}
