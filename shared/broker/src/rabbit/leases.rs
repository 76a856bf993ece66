//! Deliveries that this process holds. AMQP gives a delivery to nobody else while its channel is open, so the ack wait is
//! kept here: what nobody marks for so long is given back. (A process that dies or hangs loses its connection.)

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use flux_protocol::limits;
use futures::FutureExt as _;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions},
    types::ShortString,
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{AckHandle, Acker, BrokerError};

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where deliveries came from and their acks go.
///
/// A consumer is topped up with every ack. So it is cancelled in the frame before the first: then it brings what is on its
/// way, which is within what was asked for, and no more.
pub(super) struct Source {
    pub(super) channel: Channel,
    /// The consumer, as long as an ack would bring more; `None` where that is wanted.
    tag: Option<ShortString>,
    open: AtomicBool,
    /// Frames of one consumer, in order.
    order: tokio::sync::Mutex<()>,
    /// Deliveries held.
    pub(super) held: AtomicUsize,
}

impl Source {
    /// A consumer of a pull.
    pub(super) fn of_pull(channel: Channel, tag: ShortString) -> Arc<Self> {
        Arc::new(Self::new(channel, Some(tag)))
    }

    /// One that goes on.
    pub(super) fn lasting(channel: Channel) -> Arc<Self> {
        Arc::new(Self::new(channel, None))
    }

    fn new(channel: Channel, tag: Option<ShortString>) -> Self {
        let open = AtomicBool::new(tag.is_some());
        Self { channel, tag, open, order: tokio::sync::Mutex::new(()), held: AtomicUsize::new(0) }
    }

    /// Sends the cancel, once. What is on its way still comes, and then the consumer's stream ends.
    pub(super) async fn cancel(&self) {
        let _in_order = self.order.lock().await;
        self.cancel_in_order();
    }

    fn cancel_in_order(&self) {
        let Some(tag) = &self.tag else { return };
        if self.open.swap(false, Ordering::AcqRel) {
            // Polled once it is sent; its answer ends the consumer's stream, where somebody waits for it.
            let cancel = self.channel.basic_cancel(tag.clone(), BasicCancelOptions::default());
            let _ = Box::pin(cancel).now_or_never();
        }
    }

    pub(super) async fn settle(&self, tag: u64, how: Settle) -> Result<(), BrokerError> {
        let mut settling = Box::pin(self.send(tag, how));
        let sent = {
            let _in_order = self.order.lock().await;
            self.cancel_in_order();
            futures::poll!(&mut settling)
        };
        let settled = match sent {
            Poll::Ready(settled) => settled,
            Poll::Pending => settling.await,
        };
        settled.map_err(|error| BrokerError::unavailable("ack a delivery", error))
    }
}

impl Source {
    /// Has sent it when it was polled once.
    async fn send(&self, tag: u64, how: Settle) -> Result<(), lapin::Error> {
        match how {
            Settle::Ack => self.channel.basic_ack(tag, BasicAckOptions::default()).await,
            Settle::GiveBack => {
                self.channel.basic_nack(tag, BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await
            }
            Settle::Refuse => {
                self.channel.basic_nack(tag, BasicNackOptions { requeue: false, ..BasicNackOptions::default() }).await
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    Ack,
    GiveBack,
    /// To the dead letters.
    Refuse,
}

struct Lease {
    source: Arc<Source>,
    tag: u64,
    until: Instant,
    /// For whom [`Leases::of`] counts it.
    key: Option<Arc<str>>,
}

/// All that are held.
#[derive(Default)]
pub(super) struct Leases {
    held: Mutex<HashMap<u64, Lease>>,
    next: AtomicU64,
    some: Notify,
}

impl Leases {
    pub(super) fn hold(self: &Arc<Self>, source: Arc<Source>, tag: u64, key: Option<Arc<str>>) -> AckHandle {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        source.held.fetch_add(1, Ordering::AcqRel);
        let until = Instant::now() + limits::ACK_WAIT;
        self.held.lock().insert(id, Lease { source, tag, until, key });
        self.some.notify_one();
        AckHandle::new(LeaseAcker { leases: Arc::clone(self), id })
    }

    /// How many are held under a key.
    pub(super) fn of(&self, key: &str) -> usize {
        self.held.lock().values().filter(|lease| lease.key.as_deref() == Some(key)).count()
    }

    fn take(&self, id: u64) -> Option<Lease> {
        let lease = self.held.lock().remove(&id)?;
        lease.source.held.fetch_sub(1, Ordering::AcqRel);
        Some(lease)
    }

    /// False: it is another's, since it was given back or its channel is gone.
    fn keep_until(&self, id: u64, until: Instant) -> bool {
        match self.held.lock().get_mut(&id) {
            Some(lease) if lease.source.channel.status().connected() => {
                lease.until = until;
                true
            }
            Some(_) | None => false,
        }
    }

    fn overdue(&self) -> Vec<u64> {
        let now = Instant::now();
        self.held.lock().iter().filter(|(_, lease)| lease.until <= now).map(|(id, _)| *id).collect()
    }

    /// Gives back what nobody marked in time, for as long as the broker is open.
    pub(super) async fn watch_over(self: Arc<Self>, closed: CancellationToken) {
        loop {
            let none = self.held.lock().is_empty();
            tokio::select! {
                () = self.some.notified(), if none => {}
                () = tokio::time::sleep(LOOK_EVERY), if !none => {}
                () = closed.cancelled() => return,
            }
            for id in self.overdue() {
                if let Some(lease) = self.take(id)
                    && let Err(error) = lease.source.settle(lease.tag, Settle::GiveBack).await
                {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "given back by the end of its connection"
                    );
                }
            }
        }
    }
}

struct LeaseAcker {
    leases: Arc<Leases>,
    id: u64,
}

impl LeaseAcker {
    async fn end(&self, how: Settle) -> Result<(), BrokerError> {
        match self.leases.take(self.id) {
            Some(lease) => lease.source.settle(lease.tag, how).await,
            // It was given back, and is another's.
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Acker for LeaseAcker {
    async fn progress(&self) -> Result<(), BrokerError> {
        if self.leases.keep_until(self.id, Instant::now() + limits::ACK_WAIT) {
            return Ok(());
        }
        Err(BrokerError::unavailable("keep a delivery", "it was given back, or its connection is gone"))
    }

    async fn ack(&self) -> Result<(), BrokerError> {
        self.end(Settle::Ack).await
    }

    /// A quorum queue knows no delay: it is held here for as long, and comes at once if this process dies.
    async fn nack(&self, delay: Option<Duration>) -> Result<(), BrokerError> {
        match delay {
            None => self.end(Settle::GiveBack).await,
            Some(delay) => {
                self.leases.keep_until(self.id, Instant::now() + delay);
                Ok(())
            }
        }
    }
}
