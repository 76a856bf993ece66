//! The status log: a work-queue stream that gateways share through one consumer.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::Message;
use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{
    StatusMessage, limits,
    subject::{self, RECORDER, STATUS_STREAM},
};
use serde_json::json;

use super::{
    NatsBroker,
    core::Core,
    deliveries::{NatsAcker, Standing},
    heat::nanos,
    inbox::Info,
    queue::ConsumerInfo,
};
use crate::{AckHandle, Acker, BrokerError, StatusBatch, StatusDelivery, StatusLog};

/// A batch that is not recorded and acked within this goes to another gateway too. Recording twice is recording once.
const RECORD_WITHIN: Duration = Duration::from_millis(2500);
/// Statuses out at all gateways together.
const IN_FLIGHT: usize = 32 * limits::STATUS_BATCH;
const PAUSE: Duration = Duration::from_millis(100);

#[async_trait]
impl StatusLog for NatsBroker {
    async fn publish_status(&self, sender: &str, status: &StatusMessage) -> Result<(), BrokerError> {
        let encoded = serde_json::to_vec(status).map_err(|error| BrokerError::refused("encode a status", error))?;
        self.publish_status_bytes(sender, status, encoded.into()).await
    }

    async fn publish_status_bytes(
        &self,
        sender: &str,
        status: &StatusMessage,
        encoded: Bytes,
    ) -> Result<(), BrokerError> {
        self.statuses.write(sender, status, encoded).await
    }

    async fn statuses(&self, most: usize) -> Result<Box<dyn StatusBatch>, BrokerError> {
        let most = most.clamp(1, limits::STATUS_BATCH);
        make_recorder(&self.core).await?;
        Ok(Box::new(Recorder {
            core: Arc::clone(&self.core),
            most,
            standing: standing(&self.core, most),
            waiting: VecDeque::new(),
            unreadable: 0,
        }))
    }

    async fn backlog(&self) -> Result<u64, BrokerError> {
        let attempted = "look at the status log";
        let subject = format!("CONSUMER.INFO.{STATUS_STREAM}.{RECORDER}");
        let info: ConsumerInfo = self
            .core
            .api(attempted, &subject, Bytes::new())
            .await
            .map_err(|failure| failure.into_broker(attempted, STATUS_STREAM))?;
        Ok(info.num_pending.saturating_add(info.num_ack_pending))
    }
}

fn standing(core: &Arc<Core>, most: usize) -> Standing {
    Standing::new(Arc::clone(core), format!("{STATUS_STREAM}.{RECORDER}"), most, 2)
}

async fn make_recorder(core: &Core) -> Result<(), BrokerError> {
    let attempted = "read the status log";
    let body = json!({
        "stream_name": STATUS_STREAM,
        "config": {
            "name": RECORDER,
            "durable_name": RECORDER,
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_policy": "explicit",
            "ack_wait": nanos(RECORD_WITHIN),
            "max_deliver": -1,
            "max_ack_pending": IN_FLIGHT,
            "num_replicas": 0,
        },
    });
    core.api::<serde_json::Value>(attempted, &format!("CONSUMER.CREATE.{STATUS_STREAM}.{RECORDER}"), body.to_string())
        .await
        .map(|_| ())
        .map_err(|failure| failure.into_broker(attempted, STATUS_STREAM))
}

struct Recorder {
    core: Arc<Core>,
    most: usize,
    standing: Standing,
    /// Read, and too many for the last batch.
    waiting: VecDeque<StatusDelivery>,
    unreadable: u64,
}

#[async_trait]
impl StatusBatch for Recorder {
    async fn next(&mut self) -> Option<Vec<StatusDelivery>> {
        while self.waiting.is_empty() {
            let first = match self.standing.next().await {
                Ok(first) => first,
                Err(BrokerError::Closed) => return None,
                Err(error) => {
                    self.look_again(&error).await?;
                    continue;
                }
            };
            let mut unreadable = Vec::new();
            let mut next = Some(first);
            while let Some((message, info)) = next {
                unreadable.extend(self.read(message, info));
                next = if self.waiting.len() < self.most { self.standing.try_next() } else { None };
            }
            if !unreadable.is_empty() {
                self.refuse(unreadable).await;
            }
        }
        let batch = self.waiting.len().min(self.most);
        Some(self.waiting.drain(..batch).collect())
    }
}

/// The ack of a message, given once each of its statuses was acked.
struct GroupAck {
    message: NatsAcker,
    left: AtomicUsize,
}

#[async_trait]
impl Acker for Arc<GroupAck> {
    async fn progress(&self) -> Result<(), BrokerError> {
        self.message.progress().await
    }

    async fn ack(&self) -> Result<(), BrokerError> {
        // What was not acked keeps the count above 0 for good, and the message comes again.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 { self.message.ack().await } else { Ok(()) }
    }

    async fn nack(&self, delay: Option<Duration>) -> Result<(), BrokerError> {
        self.message.nack(delay).await
    }
}

impl Recorder {
    /// Takes a message's statuses into those that wait. What has none that can be read is returned.
    fn read(&mut self, message: Message, info: Info) -> Option<NatsAcker> {
        let acker = NatsAcker { core: Arc::clone(&self.core), reply: message.reply.unwrap_or_else(|| "".into()) };
        let (pool, sender) = subject::of_status_log(&message.subject).unwrap_or_default();
        let mut statuses = Vec::with_capacity(1);
        // A status has no line break of its own.
        for line in message.payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<StatusMessage>(line) {
                Ok(status) if pool.is_none_or(|pool| pool == status.pool.as_str()) => statuses.push(status),
                Ok(status) => {
                    metrics::counter!("flux_signals_dropped_total", "kind" => "status_pool").increment(1);
                    tracing::warn!(
                        subject = %message.subject,
                        execution_id = %status.execution_id,
                        pool = %status.pool,
                        "dropped a status of another pool than it may be said in"
                    );
                }
                Err(error) => tracing::error!(
                    subject = %message.subject,
                    sequence = info.stream_sequence,
                    bytes = line.len(),
                    error = &error as &dyn std::error::Error,
                    "a status cannot be read and is thrown away"
                ),
            }
        }
        if statuses.is_empty() {
            return Some(acker);
        }
        let group = Arc::new(GroupAck { message: acker, left: AtomicUsize::new(statuses.len()) });
        // Not the stream's own number: that of a stream which was lost and made anew begins at 1 again, and a late
        // outcome in it would come before the one that is recorded.
        self.waiting.extend((info.stored_ns..).zip(statuses).map(|(order, status)| StatusDelivery {
            order: Some(order),
            sender: sender.to_owned(),
            status,
            ack: AckHandle::new(Arc::clone(&group)),
        }));
        None
    }

    /// What cannot be read now can never be, and must not come again.
    async fn refuse(&mut self, unreadable: Vec<NatsAcker>) {
        for acker in unreadable {
            self.unreadable += 1;
            if let Err(error) = acker.terminate().await {
                tracing::debug!(%error, total = self.unreadable, "an unreadable status will come again");
            }
        }
    }

    /// After an error: waits for the connection and the stream, and makes the consumer where it is missing.
    async fn look_again(&mut self, error: &BrokerError) -> Option<()> {
        tracing::debug!(%error, "reading the status log was interrupted");
        self.standing = standing(&self.core, self.most);
        loop {
            let mut link = self.core.link();
            tokio::select! {
                link = link.wait_for(|link| link.up || link.closed) => if link.map_or(true, |link| link.closed) {
                    return None;
                },
                () = self.core.closed.cancelled() => return None,
            }
            match make_recorder(&self.core).await {
                Ok(()) => return Some(()),
                Err(error) => tracing::debug!(%error, "the status log is not there yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
