//! Invocation queues.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{
    FunctionName, PoolName, Timestamp,
    execution::QueuePosition,
    invocation::Lane,
    limits,
    subject::{self, QueueName},
    time::now,
};
use futures::{StreamExt as _, stream::BoxStream};
use lapin::{options::BasicGetOptions, types::FieldTable};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Parts, RabbitBroker,
    error::is_not_found,
    leases::Source,
    link::check_size,
    message,
    pulls::{delivery, refuse},
    session::{arguments, bound_queue, number, safe, text},
    tables::{QUEUES, put},
};
use crate::{
    BrokerError, Delivery, Message, Progress, Pull, Queue, QueueDepth, Ring, Signals as _, Stored, Table, Tables as _,
    TakenBack,
};

/// Publishes whose end is not known are remembered, so that the same again is told apart.
const DOUBTS: usize = limits::PUBLISH_IN_FLIGHT;
/// Counts asked for at once, each on a channel of its own.
const COUNTED_AT_ONCE: usize = 32;

/// For how long: whoever sends one again does so within seconds.
const DOUBTED_FOR: Duration = Duration::from_secs(120);

/// Publishes that were not confirmed.
#[derive(Default)]
pub(super) struct Doubts {
    ids: Mutex<InDoubt>,
}

#[derive(Default)]
struct InDoubt {
    since: HashMap<String, Instant>,
    /// Oldest first; those that were settled or doubted again meanwhile included.
    order: VecDeque<(Instant, String)>,
}

impl InDoubt {
    fn insert(&mut self, id: &str, now: Instant) {
        self.since.insert(id.to_owned(), now);
        self.order.push_back((now, id.to_owned()));
        while let Some((at, id)) = self.order.front()
            && (self.order.len() > DOUBTS || now.duration_since(*at) > DOUBTED_FOR)
        {
            if self.since.get(id) == Some(at) {
                self.since.remove(id);
            }
            self.order.pop_front();
        }
    }
}

impl Doubts {
    fn has(&self, id: &str) -> bool {
        self.ids.lock().since.contains_key(id)
    }

    fn settle(&self, id: &str, stored: &Result<(), BrokerError>) {
        let mut ids = self.ids.lock();
        match stored {
            // It may have come all the same.
            Err(BrokerError::Unavailable { .. }) => ids.insert(id, Instant::now()),
            _ => {
                ids.since.remove(id);
            }
        }
    }
}

/// What a function's queue is made with.
fn queue_arguments(lane: Lane, refused: &str) -> FieldTable {
    let mut all = match lane {
        Lane::Invoke => safe(refused),
        // Its gateway waits and holds the call: a write to the disks of several nodes would buy nothing.
        Lane::Call => arguments([
            ("x-queue-type", text("classic")),
            ("x-overflow", text("reject-publish")),
            ("x-dead-letter-exchange", text(refused)),
            ("x-max-length-bytes", number(limits::CALL_STREAM_BYTES)),
        ]),
    };
    all.insert("x-max-length".into(), number(limits::QUEUED_PER_FUNCTION));
    all
}

impl Parts {
    /// Makes a function's queue, or finds it.
    pub(super) async fn make_queue(&self, queue: &QueueName) -> Result<(), BrokerError> {
        let attempted = "make a function's queue";
        let session = self.link.session(attempted).await?;
        if self.made.lock().1.contains(queue) && self.made.lock().0 == session.number {
            return Ok(());
        }
        let names = &self.link.names;
        let arguments = queue_arguments(queue.lane, &names.refused());
        let (name, lane, function) =
            (names.queue(queue), names.lane(queue.lane, &queue.pool), queue.function.to_string());
        let making = async {
            let channel = session.channel().await?;
            bound_queue(&channel, &name, &lane, &function, arguments).await?;
            let _ = channel.close(200, "done".into()).await;
            Ok(())
        };
        self.link.within(attempted, making).await?;
        // By this list queues are counted, which the server tells nobody.
        let key = queue.key();
        if !self.logs.kept.look(|view| view.table(QUEUES).is_some_and(|rows| rows.get(&key).is_some())) {
            put(&self.logs.kept, QUEUES, &key, Bytes::new()).await?;
        }
        let mut made = self.made.lock();
        if made.0 != session.number {
            *made = (session.number, HashSet::new());
        }
        made.1.insert(queue.clone());
        Ok(())
    }

    async fn count(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let session = self.link.session("count messages").await?;
        let name = self.link.names.queue(queue);
        Ok(self.link.within("count messages", session.waiting(&name)).await?.unwrap_or(0))
    }
}

impl RabbitBroker {
    async fn known_epoch(&self, queue: &QueueName) -> Result<Timestamp, BrokerError> {
        self.parts.epochs.of(&self.parts, queue.lane, &queue.pool).await
    }

    async fn is_of_now(&self, queue: &QueueName, position: &QueuePosition) -> Result<bool, BrokerError> {
        Ok(self.known_epoch(queue).await? == position.epoch)
    }
}

#[async_trait]
impl Queue for RabbitBroker {
    async fn publish(&self, queue: &QueueName, message: Message) -> Result<Stored, BrokerError> {
        check_size(&message.body)?;
        self.parts.make_queue(queue).await?;
        let epoch = self.known_epoch(queue).await?;
        let id = message.id.clone().unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        let in_doubt = self.parts.doubts.has(&id);
        let persistent = queue.lane == Lane::Invoke;
        let properties = message::properties(&message, &id, now(), epoch, persistent, in_doubt);
        let (exchange, key) = (self.parts.link.names.lane(queue.lane, &queue.pool), queue.function.to_string());
        let stored = self.parts.link.store("publish an invocation", &exchange, &key, properties, &message.body).await;
        self.parts.doubts.settle(&id, &stored);
        stored.map_err(|error| match error {
            BrokerError::Full { .. } => BrokerError::Full { what: queue.subject() },
            other => other,
        })?;
        if queue.lane == Lane::Invoke && !self.parts.logs.is_hot(&queue.key()) {
            self.signal(subject::ring(queue), Bytes::new()).await?;
        }
        let position = QueuePosition { stream: queue.stream(), sequence: message::place(&id), epoch };
        Ok(Stored { position, duplicate: false })
    }

    async fn publish_at(&self, _: &QueueName, _: Message, _: Timestamp) -> Result<Stored, BrokerError> {
        Err(BrokerError::Unsupported { what: "publish for later" })
    }

    async fn heat(&self, queue: &QueueName) -> Result<(), BrokerError> {
        self.parts.make_queue(queue).await?;
        let key = queue.key();
        if !self.parts.logs.is_hot(&key) {
            self.put(Table::Hot, &key, Bytes::new()).await?;
        }
        Ok(())
    }

    async fn cool(&self, queue: &QueueName) -> Result<bool, BrokerError> {
        let key = queue.key();
        let is_busy =
            async || Ok::<_, BrokerError>(self.parts.leases.of(&key) > 0 || self.parts.count(queue).await? > 0);
        if is_busy().await? {
            return Ok(false);
        }
        if self.get(Table::Hot, &key).await?.is_none() {
            return Ok(true);
        }
        self.delete(Table::Hot, &key).await?;
        self.parts.channels.forget(queue);
        if is_busy().await? {
            self.put(Table::Hot, &key, Bytes::new()).await?;
            return Ok(false);
        }
        Ok(true)
    }

    async fn pull(&self, queue: &QueueName, batch: usize, expires: Duration) -> Result<Pull, BrokerError> {
        Ok(Pull::new(self.new_pull(queue, batch, expires).await?))
    }

    async fn was_delivered(&self, _: &QueueName, _: &QueuePosition) -> Result<Option<bool>, BrokerError> {
        Ok(None)
    }

    async fn take_back(&self, queue: &QueueName, position: &QueuePosition) -> Result<TakenBack, BrokerError> {
        if self.is_of_now(queue, position).await? {
            return Err(BrokerError::Unsupported { what: "take a message back" });
        }
        Err(BrokerError::NotFound { what: queue.subject() })
    }

    async fn is_stored(&self, queue: &QueueName, position: &QueuePosition) -> Result<bool, BrokerError> {
        if self.is_of_now(queue, position).await? {
            return Err(BrokerError::Unsupported { what: "tell whether a message is stored" });
        }
        Ok(false)
    }

    async fn depths(&self, lane: Lane, pool: &PoolName) -> Result<Vec<QueueDepth>, BrokerError> {
        self.parts.logs.kept.read_to_now("count messages").await?;
        let keys = self.parts.logs.kept.look(|view| view.table(QUEUES).map(super::view::Rows::all).unwrap_or_default());
        let queues = keys.into_iter().filter_map(|row| QueueName::from_key(&row.key));
        let queues: Vec<_> = queues.filter(|queue| queue.lane == lane && queue.pool == *pool).collect();
        let counts = futures::stream::iter(queues).map(|queue| async move {
            let messages = self.parts.count(&queue).await;
            (queue, messages)
        });
        let counts: Vec<_> = counts.buffer_unordered(COUNTED_AT_ONCE).collect().await;
        // One queue that does not answer, as where its node is down, says nothing of the others; that none does is another thing.
        let none = counts.iter().all(|(_, counted)| counted.is_err());
        let mut depths = Vec::new();
        for (queue, counted) in counts {
            let messages = match counted {
                Ok(messages) => messages,
                Err(error) if none => return Err(error),
                // Nothing follows from its being empty.
                Err(error) => {
                    tracing::warn!(queue = %queue.key(), error = &error as &dyn std::error::Error, "a queue does not say how much waits in it");
                    1
                }
            };
            if messages > 0 {
                depths.push(QueueDepth { queue, messages });
            }
        }
        Ok(depths)
    }

    async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        self.parts.count(queue).await
    }

    async fn progress(&self, _: Lane, _: &PoolName, _: &[FunctionName]) -> Result<Vec<Progress>, BrokerError> {
        Err(BrokerError::Unsupported { what: "count deliveries" })
    }

    async fn rings(&self) -> Result<BoxStream<'static, Ring>, BrokerError> {
        let heard = self.listen_in_group(subject::rings(), subject::GATEWAYS_GROUP).await?;
        let rings = heard
            .filter_map(|signal| async move { subject::queue_of_ring(&signal.subject).map(|queue| Ring { queue }) });
        Ok(rings.boxed())
    }

    async fn take_one(&self, queue: &QueueName) -> Result<Option<Delivery>, BrokerError> {
        let attempted = "take a message";
        let session = self.parts.link.session(attempted).await?;
        let channel = self.parts.link.within(attempted, session.channel()).await?;
        let name = self.parts.link.names.queue(queue);
        loop {
            let get = async {
                match channel.basic_get(name.as_str().into(), BasicGetOptions::default()).await {
                    Err(error) if is_not_found(&error) => Ok(None),
                    other => other,
                }
            };
            let Some(message) = self.parts.link.within(attempted, get).await? else { return Ok(None) };
            let source = Source::lasting(channel.clone());
            match delivery(queue, message.delivery, &source, &self.parts.leases) {
                Ok(delivery) => return Ok(Some(delivery)),
                Err((tag, why)) => refuse(queue, &source, tag, why).await,
            }
        }
    }

    async fn epoch(&self, lane: Lane, pool: &PoolName) -> Result<Timestamp, BrokerError> {
        self.parts.epochs.of(&self.parts, lane, pool).await
    }
}

/// Whether anything is left to be done about a message that came to a function without a queue.
pub(super) fn queue_of_unrouted(parts: &Arc<Parts>, exchange: &str, key: &str) -> Option<QueueName> {
    let (lane, pool) = parts.link.names.lane_of(exchange)?;
    Some(QueueName::new(lane, pool, flux_protocol::FunctionName::parse(key).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubts_are_bounded_and_end() {
        let (mut ids, now) = (InDoubt::default(), Instant::now());
        for n in 0..DOUBTS + 10 {
            ids.insert(&n.to_string(), now);
        }
        assert_eq!((ids.since.len(), ids.order.len()), (DOUBTS, DOUBTS));
        assert!(!ids.since.contains_key("9") && ids.since.contains_key("10"), "the oldest go");
        ids.insert("10", now + DOUBTED_FOR);
        ids.insert("last", now + DOUBTED_FOR + Duration::from_secs(1));
        assert_eq!(ids.since.len(), 2, "what is old goes, and what was doubted again stays");
    }
}
