//! The status log: one quorum queue, read by one gateway at a time. What was handed out and not acked comes again, at whichever
//! gateway and behind what that one recorded meanwhile, so no delivery says which of two outcomes was first: the store does.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{StatusMessage, subject};
use futures::{FutureExt as _, StreamExt as _};
use lapin::{
    Consumer,
    message::Delivery as Incoming,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Parts, RabbitBroker,
    leases::{Settle, Source},
    link::check_size,
    message::plain,
    session::Session,
};
use crate::{BrokerError, Signals as _, StatusBatch, StatusDelivery, StatusLog};

/// What gateways ask each other: how many statuses they have that they did not record yet.
const HELD: &str = "flux.statuses.held";
/// Who does not answer by then is gone. It is waited for only where somebody who answered before does not.
const HELD_WITHIN: Duration = Duration::from_secs(2);
/// Otherwise this often, for those who came since and may be slower than the others.
const ALL_ASKED_EVERY: Duration = Duration::from_secs(30);
const GATEWAYS: usize = 64;
/// Handed out and not acked: several batches, each of which may be on its way into the store.
const AHEAD: u16 = 768;
/// Under which its deliveries are counted.
pub(super) const STATUSES: &str = "statuses";

#[async_trait]
impl StatusLog for RabbitBroker {
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
        check_size(&encoded)?;
        // The exchange is bound to the signals as well, where watchers hear it.
        let (exchange, key) = (self.parts.link.names.statuses(), subject::status(sender, status.execution_id));
        let properties = plain().with_message_id(status.message_id().as_str().into());
        self.parts.link.store("store a status", &exchange, &key, properties, &encoded).await
    }

    async fn statuses(&self, most: usize) -> Result<Box<dyn StatusBatch>, BrokerError> {
        let mut recorder = Recorder { parts: Arc::clone(&self.parts), most: most.max(1), reading: None };
        let session = self.parts.link.session("read the status log").await?;
        recorder.reading = Some(self.parts.link.within("read the status log", recorder.read(&session)).await?);
        self.answer_how_many().await?;
        Ok(Box::new(recorder))
    }

    async fn backlog(&self) -> Result<u64, BrokerError> {
        let session = self.parts.link.session("read the status log").await?;
        let queue = self.parts.link.names.statuses();
        let waiting = session.waiting(&queue);
        let waiting = self.parts.link.within("read the status log", waiting).await?.unwrap_or(0);
        Ok(waiting + self.held().await?)
    }
}

/// Who answers how many statuses are held.
pub(super) struct Recorders {
    /// What this process calls itself.
    me: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    ids: HashSet<u64>,
    all_asked: Option<Instant>,
}

impl Default for Recorders {
    fn default() -> Self {
        Self { me: rand::random(), known: Mutex::default() }
    }
}

impl Recorders {
    /// Those whose answers are enough; `None`: whoever answers in time.
    fn enough(&self, now: Instant) -> Option<HashSet<u64>> {
        let known = self.known.lock();
        let lately = known.all_asked.is_some_and(|at| now.duration_since(at) < ALL_ASKED_EVERY);
        (lately && !known.ids.is_empty()).then(|| known.ids.clone())
    }

    /// `all`: it was waited for as long as anybody could answer.
    fn heard(&self, ids: HashSet<u64>, all: bool, now: Instant) {
        let mut known = self.known.lock();
        known.ids = ids;
        if all {
            known.all_asked = Some(now);
        }
    }

    fn answer(&self, held: usize) -> String {
        format!("{held} {:016x}", self.me)
    }
}

/// Who it is, and how many.
fn read_answer(body: &[u8]) -> Option<(u64, u64)> {
    let (held, id) = std::str::from_utf8(body).ok()?.split_once(' ')?;
    Some((u64::from_str_radix(id, 16).ok()?, held.parse().ok()?))
}

impl RabbitBroker {
    /// Statuses that gateways have and did not record yet.
    async fn held(&self) -> Result<u64, BrokerError> {
        let asked = Instant::now();
        let recorders = &self.parts.recorders;
        let Some(mut answers) = self.question(HELD.to_owned(), Bytes::new(), GATEWAYS).await? else {
            return Ok(0); // Nobody reads statuses.
        };
        let enough = recorders.enough(asked);
        let mut heard = HashMap::new();
        let mut in_time = true;
        while in_time && !enough.as_ref().is_some_and(|enough| enough.iter().all(|id| heard.contains_key(id))) {
            match tokio::time::timeout_at(asked + HELD_WITHIN, answers.next()).await {
                Ok(Some(answer)) => heard.extend(read_answer(&answer.body)),
                Ok(None) | Err(_) => in_time = false,
            }
        }
        recorders.heard(heard.keys().copied().collect(), !in_time, asked);
        if heard.is_empty() {
            return Err(BrokerError::unavailable("ask how many statuses are held", "nobody answered in time"));
        }
        Ok(heard.values().sum())
    }

    /// From now on tells others how many statuses are held here.
    async fn answer_how_many(&self) -> Result<(), BrokerError> {
        if self.parts.answers_how_many.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut questions = self.listen(HELD).await?;
        let parts = Arc::clone(&self.parts);
        self.parts.link.tasks.spawn("rabbitmq statuses held", async move {
            loop {
                let question = tokio::select! {
                    question = questions.next() => question,
                    () = parts.link.closed.cancelled() => return,
                };
                let Some(question) = question else { return };
                let held = parts.recorders.answer(parts.leases.of(STATUSES));
                if let Some(reply_to) = question.reply_to {
                    let _ = parts.outbox.try_send((reply_to, held.into()));
                }
            }
        });
        Ok(())
    }
}

struct Reading {
    messages: Consumer,
    source: Arc<Source>,
}

struct Recorder {
    parts: Arc<Parts>,
    most: usize,
    reading: Option<Reading>,
}

impl Recorder {
    async fn read(&self, session: &Session) -> Result<Reading, lapin::Error> {
        let channel = session.channel().await?;
        channel.basic_qos(AHEAD, BasicQosOptions::default()).await?;
        let (queue, options) = (self.parts.link.names.statuses(), BasicConsumeOptions::default());
        let messages = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        Ok(Reading { messages, source: Source::lasting(channel) })
    }
}

#[async_trait]
impl StatusBatch for Recorder {
    async fn next(&mut self) -> Option<Vec<StatusDelivery>> {
        loop {
            let Some(reading) = &mut self.reading else {
                let session = self.parts.link.session_whenever().await?;
                match self.read(&session).await {
                    Ok(reading) => self.reading = Some(reading),
                    Err(error) => {
                        tracing::warn!(%error, "the status log cannot be read; trying again");
                        tokio::time::sleep(super::link::WITHIN / 10).await;
                    }
                }
                continue;
            };
            let mut batch = Vec::new();
            let mut next = reading.messages.next().await;
            let ended = !matches!(next, Some(Ok(_)));
            while let Some(Ok(incoming)) = next.take() {
                if let Some(delivery) = status(&self.parts, &reading.source, incoming).await {
                    batch.push(delivery);
                }
                if batch.len() < self.most {
                    next = reading.messages.next().now_or_never().flatten();
                }
            }
            if !batch.is_empty() {
                return Some(batch);
            }
            if ended {
                // With its channel, or where somebody removed the queue.
                self.reading = None;
                tokio::time::sleep(super::link::WITHIN / 50).await;
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // What was not handed out goes to another; what was is acked over the channel, as long as somebody holds it.
        if let Some(Reading { mut messages, source }) = self.reading.take() {
            self.parts.link.tasks.spawn("rabbitmq statuses given back", async move {
                let cancel = source.channel.basic_cancel(messages.tag(), BasicCancelOptions::default());
                if cancel.await.is_ok() {
                    while let Some(Ok(incoming)) = messages.next().await {
                        let _ = source.settle(incoming.delivery_tag, Settle::GiveBack).await;
                    }
                }
            });
        }
    }
}

/// `None`: it is no status, and nobody will ever be able to record it.
async fn status(parts: &Parts, source: &Arc<Source>, incoming: Incoming) -> Option<StatusDelivery> {
    let sender = subject::sender(incoming.routing_key.as_str()).unwrap_or_default().to_owned();
    match serde_json::from_slice::<StatusMessage>(&incoming.data) {
        Ok(status) => {
            let ack = parts.leases.hold(Arc::clone(source), incoming.delivery_tag, Some(STATUSES.into()));
            Some(StatusDelivery { order: None, sender, status, ack })
        }
        Err(error) => {
            tracing::error!(sender, %error, "what lies in the status log cannot be read and is thrown away");
            let _ = source.settle(incoming.delivery_tag, Settle::Ack).await;
            None
        }
    }
}
