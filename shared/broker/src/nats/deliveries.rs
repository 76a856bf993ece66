//! Pulls as requests, and what becomes of a delivery.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_nats::{HeaderMap, Message};
use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Timestamp, execution::QueuePosition, subject::QueueName};

use super::{
    core::Core,
    inbox::{End, HEARTBEAT, Info, OpenPull, PullEvent},
};
use crate::{AckHandle, Acker, BrokerError, Delivery, PullEvents};

/// A request that takes what is there and does not wait ends within this, or its connection is lost.
const NO_WAIT_WITHIN: Duration = Duration::from_secs(5);

/// How long a request stays open at the server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    For(Duration),
    Not,
}

/// Sends a pull request for `<stream>.<consumer>`.
pub(super) async fn request(core: &Core, consumer: &str, batch: usize, wait: Wait) -> Result<OpenPull, BrokerError> {
    let attempted = "pull";
    if !core.link_now().up {
        return Err(BrokerError::unavailable(attempted, "there is no connection"));
    }
    let (pull, body) = match wait {
        Wait::Not => (
            core.inbox.open_pull(consumer, batch, NO_WAIT_WITHIN, false),
            format!("{{\"batch\":{batch},\"no_wait\":true}}"),
        ),
        // The server takes a heartbeat of at most half the expiry.
        Wait::For(expires) if expires > HEARTBEAT * 2 => (
            core.inbox.open_pull(consumer, batch, expires, true),
            format!(
                "{{\"batch\":{batch},\"expires\":{},\"idle_heartbeat\":{}}}",
                expires.as_nanos(),
                HEARTBEAT.as_nanos()
            ),
        ),
        Wait::For(expires) => (
            core.inbox.open_pull(consumer, batch, expires, false),
            format!("{{\"batch\":{batch},\"expires\":{}}}", expires.as_nanos()),
        ),
    };
    core.send_with_reply(
        attempted,
        format!("$JS.API.CONSUMER.MSG.NEXT.{consumer}"),
        pull.reply_to.clone(),
        Bytes::from(body),
    )
    .await?;
    Ok(pull)
}

/// Why a pull that was not filled ended; `None` is in order.
pub(super) fn end_error(end: End, what: &str) -> Option<BrokerError> {
    match end {
        End::Expired => None,
        End::Deleted | End::Missing => Some(BrokerError::NotFound { what: what.to_owned() }),
        End::Lost => Some(BrokerError::unavailable("pull", "the connection or the consumer's server went away")),
        End::Covered => Some(BrokerError::Full { what: format!("pulls that wait at {what}") }),
        End::Refused(said) => Some(BrokerError::refused("pull", said)),
    }
}

/// A pull of an invocation queue.
pub(super) struct QueuePull {
    pub(super) core: Arc<Core>,
    pub(super) pull: OpenPull,
    pub(super) queue: QueueName,
    pub(super) subject: String,
    pub(super) stream: String,
    pub(super) epoch: Timestamp,
}

#[async_trait]
impl PullEvents for QueuePull {
    async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        loop {
            match self.pull.next().await? {
                // A pull's reply subject could make JetStream deliver what is not of this queue.
                PullEvent::Message(message, _) if message.subject.as_str() != self.subject => {
                    tracing::warn!(subject = %message.subject, expected = %self.subject, "a delivery of another queue was dropped");
                }
                // It was given to another since, or will be in a moment.
                PullEvent::Late { stream_sequence, age } => {
                    tracing::warn!(
                        subject = %self.subject,
                        stream_sequence,
                        age_ms = age.as_millis(),
                        "a delivery may have been on its way for longer than the broker waits; it is left to others"
                    );
                }
                PullEvent::Message(message, info) => return Some(Ok(self.delivery(message, info))),
                PullEvent::Ended(end) => {
                    if end == End::Missing {
                        self.core.say_missing(&self.queue).await;
                    }
                    return end_error(end, &self.subject).map(Err);
                }
            }
        }
    }
}

impl QueuePull {
    fn delivery(&self, message: Message, info: Info) -> Delivery {
        Delivery {
            queue: self.queue.clone(),
            headers: message.headers.as_ref().map(own_headers).unwrap_or_default(),
            body: message.payload,
            position: QueuePosition { stream: self.stream.clone(), sequence: info.stream_sequence, epoch: self.epoch },
            stored_at: info.stored_at(),
            redeliveries: u32::try_from(info.delivered.saturating_sub(1)).unwrap_or(u32::MAX),
            pending: Some(info.pending),
            maybe_late: info.maybe_late,
            ack: AckHandle::new(NatsAcker {
                core: Arc::clone(&self.core),
                reply: message.reply.unwrap_or_else(|| "".into()),
            }),
        }
    }
}

/// The headers as the seam has them.
pub(super) fn own_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut own = Vec::with_capacity(headers.len());
    for (name, values) in headers.iter() {
        for value in values {
            own.push((name.to_string(), value.as_str().to_owned()));
        }
    }
    own
}

/// The subject that a delivery is ended on. Nothing is awaited: acks leave in the order in which they were given.
pub(super) struct NatsAcker {
    pub(super) core: Arc<Core>,
    pub(super) reply: async_nats::Subject,
}

impl NatsAcker {
    async fn say(&self, attempted: &'static str, what: Bytes) -> Result<(), BrokerError> {
        self.core.send(attempted, self.reply.clone(), what).await
    }

    /// It must not come again, to anyone.
    pub(super) async fn terminate(&self) -> Result<(), BrokerError> {
        self.say("refuse a delivery", Bytes::from_static(b"+TERM")).await
    }
}

#[async_trait]
impl Acker for NatsAcker {
    async fn progress(&self) -> Result<(), BrokerError> {
        self.say("mark a delivery in progress", Bytes::from_static(b"+WPI")).await
    }

    async fn ack(&self) -> Result<(), BrokerError> {
        self.say("ack a delivery", Bytes::from_static(b"+ACK")).await
    }

    async fn nack(&self, delay: Option<Duration>) -> Result<(), BrokerError> {
        let what = match delay {
            None => Bytes::from_static(b"-NAK"),
            Some(delay) => format!("-NAK {{\"delay\":{}}}", delay.as_nanos()).into(),
        };
        self.say("give a delivery back", what).await
    }
}

/// Pulls that are renewed as they end: for those who read a consumer on and on.
pub(super) struct Standing {
    core: Arc<Core>,
    /// `<stream>.<consumer>`.
    consumer: String,
    batch: usize,
    /// Open at once; with two, none is awaited while there is work.
    depth: usize,
    pulls: VecDeque<OpenPull>,
}

impl Standing {
    pub(super) fn new(core: Arc<Core>, consumer: String, batch: usize, depth: usize) -> Self {
        Self { core, consumer, batch, depth, pulls: VecDeque::with_capacity(depth) }
    }

    /// The next message; waits for it. Safe to cancel. After an error the consumer has to be looked for again.
    pub(super) async fn next(&mut self) -> Result<(Message, Info), BrokerError> {
        loop {
            while self.pulls.len() < self.depth {
                let wait = Wait::For(flux_protocol::limits::PULL_EXPIRES);
                let pull = request(&self.core, &self.consumer, self.batch, wait).await?;
                self.pulls.push_back(pull);
            }
            // The oldest is filled first.
            let Some(oldest) = self.pulls.front_mut() else { continue };
            let error = match oldest.next().await {
                Some(PullEvent::Message(message, info)) => return Ok((message, info)),
                Some(PullEvent::Ended(end)) => end_error(end, &self.consumer),
                Some(PullEvent::Late { .. }) => continue,
                None => None,
            };
            self.pulls.pop_front();
            if let Some(error) = error {
                self.pulls.clear();
                return Err(error);
            }
        }
    }

    /// What has come already.
    pub(super) fn try_next(&mut self) -> Option<(Message, Info)> {
        self.pulls.iter_mut().find_map(|pull| match pull.try_next()? {
            PullEvent::Message(message, info) => Some((message, info)),
            // Its end is told again by `next`, as that of the channel.
            PullEvent::Ended(_) | PullEvent::Late { .. } => None,
        })
    }
}
