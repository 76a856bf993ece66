//! Invocation queues: one subject for each, one work-queue stream for each lane of a pool.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{
    FunctionName, PoolName, Timestamp,
    execution::QueuePosition,
    invocation::Lane,
    subject::{self, QueueName},
};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use serde::Deserialize;
use serde_json::json;

use super::{
    NatsBroker,
    core::{ApiFailure, Core, PubAck, StreamInfo, check_header, header_map},
    delayed,
    deliveries::{QueuePull, Wait, request},
    heat::{self, MISSING},
};
use crate::{BrokerError, Delivery, Message, Progress, Pull, Queue, QueueDepth, Ring, Stored, TakenBack};

pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";

/// What is read of a consumer's description.
#[derive(Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) delivered: SequencePair,
    pub(super) num_pending: u64,
    pub(super) num_ack_pending: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct SequencePair {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
}

/// Queues that are looked at at once.
const LOOKED_AT_AT_ONCE: usize = 32;

#[async_trait]
impl Queue for NatsBroker {
    async fn publish(&self, queue: &QueueName, mut message: Message) -> Result<Stored, BrokerError> {
        let wire = Wire::of(&mut message)?;
        let ack = self.core.publish("store an invocation", &queue.subject(), || wire.map(), message.body).await?;
        self.stored(queue, ack).await
    }

    async fn publish_at(&self, queue: &QueueName, mut message: Message, due: Timestamp) -> Result<Stored, BrokerError> {
        let wire = Wire::of(&mut message)?;
        // Its position is where it waits, not where it will be: that it is gone from there says that it was due.
        let ack = delayed::store(&self.core, queue, wire.map(), message.body, due).await?;
        self.stored(queue, ack).await
    }

    async fn heat(&self, queue: &QueueName) -> Result<(), BrokerError> {
        self.hot.heat(queue).await
    }

    async fn cool(&self, queue: &QueueName) -> Result<bool, BrokerError> {
        self.hot.cool(queue).await
    }

    async fn pull(&self, queue: &QueueName, batch: usize, expires: Duration) -> Result<Pull, BrokerError> {
        self.core.pull_queue(queue, batch, Wait::For(expires)).await.map(Pull::new)
    }

    async fn was_delivered(&self, queue: &QueueName, position: &QueuePosition) -> Result<Option<bool>, BrokerError> {
        if self.core.fresh_epoch(queue.lane, &queue.pool).await? != position.epoch {
            return Ok(None);
        }
        if position.stream != queue.stream() {
            // It waits for its time, or was due.
            return Ok(Some(self.core.stored_at(&position.stream, position.sequence).await?.is_none()));
        }
        Ok(Some(match self.core.consumer(queue).await? {
            Some(consumer) => consumer.delivered.stream_seq >= position.sequence,
            // Nobody pulled since it is cold: it was delivered if it is gone.
            None => self.core.stored_at(&position.stream, position.sequence).await?.is_none(),
        }))
    }

    async fn take_back(&self, queue: &QueueName, position: &QueuePosition) -> Result<TakenBack, BrokerError> {
        #[derive(Deserialize)]
        struct Deleted {}

        let attempted = "take a message back";
        // A sequence of another epoch is another message.
        if self.core.fresh_epoch(queue.lane, &queue.pool).await? != position.epoch {
            return Err(BrokerError::NotFound { what: format!("message {}", position.sequence) });
        }
        let body = json!({ "seq": position.sequence, "no_erase": true }).to_string();
        let removed =
            match self.core.api::<Deleted>(attempted, &format!("STREAM.MSG.DELETE.{}", position.stream), body).await {
                Ok(_) => true,
                Err(ApiFailure::Api(error)) if error.is_message_gone() => false,
                Err(failure) => return Err(failure.into_broker(attempted, &position.stream)),
            };
        if position.stream != queue.stream() {
            return Ok(if removed { TakenBack::NeverDelivered } else { TakenBack::Delivered });
        }
        // Deleting succeeds for what was delivered too; and what is gone was acked, or taken back before.
        Ok(match self.core.consumer(queue).await? {
            Some(consumer) if consumer.delivered.stream_seq < position.sequence => TakenBack::NeverDelivered,
            None if removed => TakenBack::NeverDelivered,
            _ => TakenBack::Delivered,
        })
    }

    async fn is_stored(&self, queue: &QueueName, position: &QueuePosition) -> Result<bool, BrokerError> {
        if self.core.fresh_epoch(queue.lane, &queue.pool).await? != position.epoch {
            return Ok(false);
        }
        Ok(self.core.stored_at(&position.stream, position.sequence).await?.is_some())
    }

    async fn depths(&self, lane: Lane, pool: &PoolName) -> Result<Vec<QueueDepth>, BrokerError> {
        let subjects = self.core.subject_counts(lane, pool, &subject::stream_subjects(lane, pool)).await?;
        Ok(subjects
            .into_iter()
            .filter_map(|(subject, messages)| Some(QueueDepth { queue: QueueName::from_subject(&subject)?, messages }))
            .collect())
    }

    async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        self.core.depth(queue).await
    }

    async fn progress(
        &self,
        lane: Lane,
        pool: &PoolName,
        functions: &[FunctionName],
    ) -> Result<Vec<Progress>, BrokerError> {
        // First: of what comes meanwhile nobody is to think that it waited before.
        let stored_to = self.core.stream(lane, pool).await?.state.last_seq;
        let queues: Vec<_> =
            functions.iter().map(|function| QueueName::new(lane, pool.clone(), function.clone())).collect();
        let progress = futures::stream::iter(queues).map(|queue| async move {
            let none = Progress { queue, waiting: 0, delivered: 0, delivered_to: 0, stored_to };
            Ok(match self.core.consumer(&none.queue).await? {
                Some(consumer) => Progress {
                    waiting: consumer.num_pending,
                    delivered: consumer.delivered.consumer_seq,
                    delivered_to: consumer.delivered.stream_seq,
                    ..none
                },
                // While it is cold nobody is given anything.
                None => Progress { waiting: self.core.depth(&none.queue).await?, ..none },
            })
        });
        progress.buffered(LOOKED_AT_AT_ONCE).try_collect().await
    }

    async fn rings(&self) -> Result<BoxStream<'static, Ring>, BrokerError> {
        let messages = self.subscribe(subject::rings(), Some(subject::GATEWAYS_GROUP)).await?;
        let view = self.hot.view();
        Ok(messages
            .filter_map(move |message| {
                let ring = subject::queue_of_ring(&message.subject).map(|queue| Ring { queue });
                let missing = message.headers.as_ref().is_some_and(|headers| headers.get(MISSING).is_some());
                // A hot queue that lost its consumer is made hot anew; of a cold one that was expected.
                let heard = ring.filter(|ring| !missing || view.forget(&ring.queue));
                async move { heard }
            })
            .boxed())
    }

    async fn take_one(&self, queue: &QueueName) -> Result<Option<Delivery>, BrokerError> {
        heat::make_consumer(&self.core, queue).await?;
        let mut pull = Pull::new(self.core.pull_queue(queue, 1, Wait::Not).await?);
        pull.next().await.transpose()
    }

    async fn epoch(&self, lane: Lane, pool: &PoolName) -> Result<Timestamp, BrokerError> {
        self.core.fresh_epoch(lane, pool).await
    }
}

impl NatsBroker {
    async fn stored(&self, queue: &QueueName, ack: PubAck) -> Result<Stored, BrokerError> {
        let epoch = self.core.epoch(queue.lane, &queue.pool).await?;
        let position = QueuePosition { stream: ack.stream, sequence: ack.sequence, epoch };
        Ok(Stored { position, duplicate: ack.duplicate })
    }
}

impl Core {
    async fn pull_queue(
        self: &Arc<Self>,
        queue: &QueueName,
        batch: usize,
        wait: Wait,
    ) -> Result<QueuePull, BrokerError> {
        let epoch = self.epoch(queue.lane, &queue.pool).await?;
        let stream = queue.stream();
        let pull = request(self, &format!("{stream}.{}", queue.consumer()), batch, wait).await?;
        Ok(QueuePull { core: Arc::clone(self), pull, queue: queue.clone(), subject: queue.subject(), stream, epoch })
    }

    /// The queue's consumer; `None` while it is cold.
    pub(super) async fn consumer(&self, queue: &QueueName) -> Result<Option<ConsumerInfo>, BrokerError> {
        let attempted = "look at a queue";
        let subject = format!("CONSUMER.INFO.{}.{}", queue.stream(), queue.consumer());
        match self.api(attempted, &subject, Bytes::new()).await {
            Ok(info) => Ok(Some(info)),
            Err(ApiFailure::Api(error)) if error.is_consumer_not_found() => Ok(None),
            Err(failure) => Err(failure.into_broker(attempted, &queue.subject())),
        }
    }

    pub(super) async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let subject = queue.subject();
        let counts = self.subject_counts(queue.lane, &queue.pool, &subject).await?;
        Ok(counts.into_iter().find(|(counted, _)| *counted == subject).map_or(0, |(_, messages)| messages))
    }

    async fn subject_counts(
        &self,
        lane: Lane,
        pool: &PoolName,
        filter: &str,
    ) -> Result<Vec<(String, u64)>, BrokerError> {
        let connects = self.link_now().connects;
        let (counts, created) = self.counts(&subject::stream(lane, pool), filter).await?;
        self.note_epoch(lane, pool, connects, created);
        Ok(counts)
    }

    /// Messages per subject of a stream, and when it was made.
    pub(super) async fn counts(
        &self,
        stream: &str,
        filter: &str,
    ) -> Result<(Vec<(String, u64)>, Timestamp), BrokerError> {
        let attempted = "count what is queued";
        let mut all = Vec::new();
        loop {
            let body = json!({ "subjects_filter": filter, "offset": all.len() }).to_string();
            let info: StreamInfo = self
                .api(attempted, &format!("STREAM.INFO.{stream}"), body)
                .await
                .map_err(|failure| failure.into_broker(attempted, stream))?;
            let page = info.state.subjects.unwrap_or_default();
            let got = page.len();
            all.extend(page);
            // A page holds 100,000 subjects.
            if got == 0 || all.len() >= info.total {
                return Ok((all, info.created));
            }
        }
    }
}

/// The message's headers, checked, and the id under which it may be sent again.
struct Wire {
    headers: Vec<(&'static str, String)>,
    id: String,
}

impl Wire {
    fn of(message: &mut Message) -> Result<Self, BrokerError> {
        // Without an id of its own it gets one, so that a try that was interrupted can be made again.
        let id = message.id.take().unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        let headers = std::mem::take(&mut message.headers);
        headers.iter().map(|(_, value)| value).chain([&id]).try_for_each(|value| check_header(value))?;
        Ok(Self { headers, id })
    }

    fn map(&self) -> HeaderMap {
        let own = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        header_map(own.chain([(MESSAGE_ID, self.id.as_str())]))
    }
}
