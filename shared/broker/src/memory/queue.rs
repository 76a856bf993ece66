//! Invocation queues.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{
    FunctionName, PoolName, Timestamp, execution::QueuePosition, invocation::Lane, limits, subject::QueueName,
    time::now,
};
use futures::{StreamExt as _, stream::BoxStream};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Inner, MemoryBroker, takes_fault,
    work_queue::{Taken, WorkQueue},
};
use crate::{
    AckHandle, Acker, BrokerError, Delivery, Message, Progress, Pull, PullEvents, Queue, QueueDepth, Ring, Stored,
    Table, Tables, TakenBack,
};

#[derive(Clone)]
struct Content {
    headers: Vec<(String, String)>,
    body: Bytes,
    stored_at: Timestamp,
}

#[derive(Default)]
struct Function {
    messages: WorkQueue<Content>,
    hot: bool,
}

/// A lane of a pool: what a stream is to the server.
struct Stream {
    epoch: Timestamp,
    sequence: u64,
}

struct Delayed {
    due: Instant,
    queue: QueueName,
    message: Message,
    sequence: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Queues {
    functions: HashMap<QueueName, Function>,
    lanes: HashMap<(Lane, PoolName), Stream>,
    delayed: Vec<Delayed>,
    delayed_sequence: u64,
    rings: Vec<mpsc::Sender<Ring>>,
    next_ring: usize,
}

impl Queues {
    pub(super) fn provision(&mut self, pools: &[PoolName]) {
        for pool in pools {
            for lane in Lane::ALL {
                self.lane(lane, pool);
            }
        }
    }

    pub(super) fn lose(&mut self, lane: Lane, pool: &PoolName) {
        self.functions.retain(|queue, _| queue.lane != lane || queue.pool != *pool);
        // A moment later than the last, however fast a test is.
        let before = self.lanes.get(&(lane, pool.clone())).map_or_else(now, |lane| lane.epoch);
        let epoch = now().max(before.plus(Duration::from_micros(1)));
        self.lanes.insert((lane, pool.clone()), Stream { epoch, sequence: 0 });
    }

    pub(super) fn forget_deliveries(&mut self) {
        self.functions.values_mut().for_each(|function| function.messages.forget_deliveries());
    }

    fn lane(&mut self, lane: Lane, pool: &PoolName) -> &mut Stream {
        self.lanes.entry((lane, pool.clone())).or_insert_with(|| Stream { epoch: now(), sequence: 0 })
    }

    fn position(&mut self, queue: &QueueName, sequence: u64) -> QueuePosition {
        QueuePosition { stream: queue.stream(), sequence, epoch: self.lane(queue.lane, &queue.pool).epoch }
    }

    fn store(&mut self, queue: &QueueName, message: Message, most: usize) -> Result<Stored, BrokerError> {
        let at = Instant::now();
        let known =
            self.functions.get(queue).and_then(|function| function.messages.duplicate(message.id.as_deref()?, at));
        if let Some(sequence) = known {
            return Ok(Stored { position: self.position(queue, sequence), duplicate: true });
        }
        let function = self.functions.entry(queue.clone()).or_default();
        if function.messages.len() >= most {
            return Err(BrokerError::Full { what: queue.subject() });
        }
        let lane = self.lane(queue.lane, &queue.pool);
        lane.sequence += 1;
        let sequence = lane.sequence;
        let headers = message.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let content = Content { headers, body: message.body, stored_at: now() };
        self.functions.entry(queue.clone()).or_default().messages.store(sequence, message.id, content, at);
        if queue.lane == Lane::Invoke {
            self.ring(queue);
        }
        Ok(Stored { position: self.position(queue, sequence), duplicate: false })
    }

    /// To one of those who listen.
    fn ring(&mut self, queue: &QueueName) {
        self.rings.retain(|listener| !listener.is_closed());
        if !self.rings.is_empty() {
            self.next_ring = (self.next_ring + 1) % self.rings.len();
            let _ = self.rings[self.next_ring].try_send(Ring { queue: queue.clone() });
        }
    }

    fn release_due(&mut self, most: usize) {
        let at = Instant::now();
        let waiting = std::mem::take(&mut self.delayed);
        let (due, later) = waiting.into_iter().partition(|delayed| delayed.due <= at);
        self.delayed = later;
        for delayed in due {
            let retry = Delayed { due: at + Duration::from_secs(1), message: delayed.message.clone(), ..delayed };
            if self.store(&retry.queue.clone(), delayed.message, most).is_err() {
                self.delayed.push(retry);
            }
        }
    }
}

impl Inner {
    fn with_queues<R>(&self, work: impl FnOnce(&mut Queues) -> R) -> R {
        let mut queues = self.queues.lock();
        queues.release_due(self.limits.queued_per_function);
        work(&mut queues)
    }

    fn take(&self, queue: &QueueName) -> Option<(Taken<Content>, QueuePosition)> {
        self.with_queues(|queues| {
            let taken = queues.functions.get_mut(queue)?.messages.take(Instant::now(), self.limits.ack_wait)?;
            let position = queues.position(queue, taken.sequence);
            Some((taken, position))
        })
    }
}

#[async_trait]
impl Queue for MemoryBroker {
    async fn publish(&self, queue: &QueueName, message: Message) -> Result<Stored, BrokerError> {
        let attempted = "store an invocation";
        self.inner.connected(attempted)?;
        self.inner.check_size(&message.body)?;
        takes_fault(&self.inner.faults.publishes_to_fail, attempted)?;
        let most = self.inner.limits.queued_per_function;
        let stored = self.inner.with_queues(|queues| queues.store(queue, message, most));
        self.inner.changed.notify_waiters();
        stored
    }

    async fn publish_at(&self, queue: &QueueName, message: Message, due: Timestamp) -> Result<Stored, BrokerError> {
        let attempted = "store a delayed invocation";
        self.inner.connected(attempted)?;
        if !self.inner.capabilities.delayed_publish {
            return Err(BrokerError::Unsupported { what: attempted });
        }
        self.inner.check_size(&message.body)?;
        takes_fault(&self.inner.faults.publishes_to_fail, attempted)?;
        let due = Instant::now() + due.since(now());
        let stored = self.inner.with_queues(|queues| {
            queues.delayed_sequence += 1;
            let sequence = queues.delayed_sequence;
            queues.delayed.push(Delayed { due, queue: queue.clone(), message, sequence });
            let position = QueuePosition { stream: "delayed".to_owned(), ..queues.position(queue, sequence) };
            Stored { position, duplicate: false }
        });
        self.inner.changed.notify_waiters();
        Ok(stored)
    }

    async fn heat(&self, queue: &QueueName) -> Result<(), BrokerError> {
        self.inner.connected("make a queue hot")?;
        let was = self
            .inner
            .with_queues(|queues| std::mem::replace(&mut queues.functions.entry(queue.clone()).or_default().hot, true));
        if !was || self.get(Table::Hot, &queue.key()).await?.is_none() {
            self.put(Table::Hot, &queue.key(), Bytes::new()).await?;
        }
        self.inner.changed.notify_waiters();
        Ok(())
    }

    async fn cool(&self, queue: &QueueName) -> Result<bool, BrokerError> {
        self.inner.connected("make a queue cold")?;
        let cooled = self.inner.with_queues(|queues| {
            let idle = queues.functions.get(queue).is_none_or(|function| function.messages.len() == 0);
            if let Some(function) = queues.functions.get_mut(queue).filter(|_| idle) {
                function.hot = false;
            }
            idle
        });
        if cooled {
            self.delete(Table::Hot, &queue.key()).await?;
            self.inner.changed.notify_waiters();
        }
        Ok(cooled)
    }

    async fn pull(&self, queue: &QueueName, batch: usize, expires: Duration) -> Result<Pull, BrokerError> {
        let connects = self.inner.connected("pull")?;
        Ok(Pull::new(MemoryPull {
            inner: Arc::clone(&self.inner),
            queue: queue.clone(),
            left: batch,
            until: Instant::now() + expires,
            connects,
        }))
    }

    async fn was_delivered(&self, queue: &QueueName, position: &QueuePosition) -> Result<Option<bool>, BrokerError> {
        self.inner.connected("look at a queue")?;
        Ok(self.inner.with_queues(|queues| {
            if queues.lane(queue.lane, &queue.pool).epoch != position.epoch {
                return None;
            }
            if position.stream != queue.stream() {
                return Some(!queues.delayed.iter().any(|delayed| delayed.sequence == position.sequence));
            }
            Some(
                queues
                    .functions
                    .get(queue)
                    .is_some_and(|function| function.messages.last_delivered() >= position.sequence),
            )
        }))
    }

    async fn take_back(&self, queue: &QueueName, position: &QueuePosition) -> Result<TakenBack, BrokerError> {
        self.inner.connected("take a message back")?;
        if !self.inner.capabilities.take_back {
            return Err(BrokerError::Unsupported { what: "take a message back" });
        }
        self.inner.with_queues(|queues| {
            if queues.lane(queue.lane, &queue.pool).epoch != position.epoch {
                return Err(BrokerError::NotFound { what: format!("message {}", position.sequence) });
            }
            if position.stream != queue.stream() {
                let before = queues.delayed.len();
                queues.delayed.retain(|delayed| delayed.sequence != position.sequence);
                return Ok(if queues.delayed.len() < before {
                    TakenBack::NeverDelivered
                } else {
                    TakenBack::Delivered
                });
            }
            let Some(function) = queues.functions.get_mut(queue) else { return Ok(TakenBack::Delivered) };
            let delivered = function.messages.last_delivered() >= position.sequence;
            function.messages.remove(position.sequence);
            Ok(if delivered { TakenBack::Delivered } else { TakenBack::NeverDelivered })
        })
    }

    async fn is_stored(&self, queue: &QueueName, position: &QueuePosition) -> Result<bool, BrokerError> {
        self.inner.connected("look at a queue")?;
        Ok(self.inner.with_queues(|queues| {
            if queues.lane(queue.lane, &queue.pool).epoch != position.epoch {
                return false;
            }
            if position.stream != queue.stream() {
                return queues.delayed.iter().any(|delayed| delayed.sequence == position.sequence);
            }
            queues.functions.get(queue).is_some_and(|function| function.messages.holds(position.sequence))
        }))
    }

    async fn depths(&self, lane: Lane, pool: &PoolName) -> Result<Vec<QueueDepth>, BrokerError> {
        self.inner.connected("count what is queued")?;
        Ok(self.inner.with_queues(|queues| {
            let of_lane = queues.functions.iter().filter(|(queue, _)| queue.lane == lane && queue.pool == *pool);
            of_lane
                .map(|(queue, function)| QueueDepth { queue: queue.clone(), messages: function.messages.len() as u64 })
                .filter(|depth| depth.messages > 0)
                .collect()
        }))
    }

    async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        self.inner.connected("count what is queued")?;
        Ok(self.inner.with_queues(|queues| queues.functions.get(queue).map_or(0, |f| f.messages.len() as u64)))
    }

    async fn progress(
        &self,
        lane: Lane,
        pool: &PoolName,
        functions: &[FunctionName],
    ) -> Result<Vec<Progress>, BrokerError> {
        self.inner.connected("look at a queue")?;
        Ok(self.inner.with_queues(|queues| {
            let stored_to = queues.lane(lane, pool).sequence;
            let progress = |function: &FunctionName| {
                let queue = QueueName::new(lane, pool.clone(), function.clone());
                let messages = queues.functions.get(&queue).map(|function| &function.messages);
                Progress {
                    waiting: messages.map_or(0, |messages| messages.waiting() as u64),
                    delivered: messages.map_or(0, WorkQueue::deliveries),
                    delivered_to: messages.map_or(0, WorkQueue::last_delivered),
                    stored_to,
                    queue,
                }
            };
            functions.iter().map(progress).collect()
        }))
    }

    async fn rings(&self) -> Result<BoxStream<'static, Ring>, BrokerError> {
        self.inner.connected("listen")?;
        let (sender, rings) = mpsc::channel(limits::CHANNEL);
        self.inner.with_queues(|queues| queues.rings.push(sender));
        Ok(ReceiverStream::new(rings).boxed())
    }

    async fn take_one(&self, queue: &QueueName) -> Result<Option<Delivery>, BrokerError> {
        self.inner.connected("pull")?;
        Ok(self.inner.take(queue).map(|(taken, position)| delivery(&self.inner, queue, taken, position)))
    }

    async fn epoch(&self, lane: Lane, pool: &PoolName) -> Result<Timestamp, BrokerError> {
        self.inner.connected("look at a queue")?;
        Ok(self.inner.with_queues(|queues| queues.lane(lane, pool).epoch))
    }
}

fn delivery(inner: &Arc<Inner>, queue: &QueueName, taken: Taken<Content>, position: QueuePosition) -> Delivery {
    let acker = MemoryAcker { inner: Arc::clone(inner), queue: queue.clone(), position: position.clone() };
    Delivery {
        queue: queue.clone(),
        headers: taken.content.headers,
        body: taken.content.body,
        position,
        stored_at: taken.content.stored_at,
        redeliveries: taken.redeliveries,
        pending: Some(taken.pending),
        maybe_late: inner.faults.deliveries_may_be_late.load(std::sync::atomic::Ordering::SeqCst),
        ack: AckHandle::new(acker),
    }
}

struct MemoryPull {
    inner: Arc<Inner>,
    queue: QueueName,
    left: usize,
    until: Instant,
    connects: u64,
}

#[async_trait]
impl PullEvents for MemoryPull {
    async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        loop {
            let inner = Arc::clone(&self.inner);
            let mut changed = std::pin::pin!(inner.changed.notified());
            changed.as_mut().enable();
            if self.left == 0 {
                return None;
            }
            if self.inner.connected("pull").ok() != Some(self.connects) {
                self.left = 0;
                return Some(Err(BrokerError::unavailable("pull", "the connection was lost")));
            }
            let (hot, next_ready) = self.inner.with_queues(|queues| {
                let due = queues.delayed.iter().map(|delayed| delayed.due).min();
                let function = queues.functions.get(&self.queue);
                let ready = function.and_then(|function| function.messages.next_ready());
                (function.is_some_and(|function| function.hot), ready.into_iter().chain(due).min())
            });
            if !hot {
                self.left = 0;
                return Some(Err(BrokerError::NotFound { what: self.queue.subject() }));
            }
            if Instant::now() >= self.until {
                self.left = 0;
                return None;
            }
            let paused = inner.faults.deliveries_paused.load(std::sync::atomic::Ordering::SeqCst);
            if !paused && let Some((taken, position)) = self.inner.take(&self.queue) {
                self.left -= 1;
                return Some(Ok(delivery(&self.inner, &self.queue, taken, position)));
            }
            // A paused one is woken when it goes on.
            let wake = next_ready.filter(|_| !paused).map_or(self.until, |ready| ready.min(self.until));
            tokio::select! {
                () = &mut changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }
}

struct MemoryAcker {
    inner: Arc<Inner>,
    queue: QueueName,
    position: QueuePosition,
}

impl MemoryAcker {
    fn with(&self, work: impl FnOnce(&mut WorkQueue<Content>, u64)) {
        self.inner.with_queues(|queues| {
            // Of another epoch it is another message.
            if queues.lane(self.queue.lane, &self.queue.pool).epoch == self.position.epoch
                && let Some(function) = queues.functions.get_mut(&self.queue)
            {
                work(&mut function.messages, self.position.sequence);
            }
        });
        self.inner.changed.notify_waiters();
    }
}

#[async_trait]
impl Acker for MemoryAcker {
    async fn progress(&self) -> Result<(), BrokerError> {
        let until = Instant::now() + self.inner.limits.ack_wait;
        self.with(|messages, sequence| messages.progress(sequence, until));
        Ok(())
    }

    async fn ack(&self) -> Result<(), BrokerError> {
        self.with(|messages, sequence| {
            messages.remove(sequence);
        });
        Ok(())
    }

    async fn nack(&self, delay: Option<Duration>) -> Result<(), BrokerError> {
        let ready_at = delay.map(|delay| Instant::now() + delay);
        self.with(|messages, sequence| messages.give_back(sequence, ready_at));
        Ok(())
    }
}
