//! Pulls: a consumer each, with as much prefetch as was asked for.
//!
//! ```text
//!   consume(prefetch = what is left) ──┬─ filled, or its time passed, or cold ─► cancel ─► what is on its way ─► end
//!                  ▲                    └─ an ack while more may come ─► cancel, ack ─► what is on its way ─┐
//!                  └──────────────────────────────── time and room left ─────────────────────────────────┘
//! ```

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_protocol::{execution::QueuePosition, subject::QueueName};
use futures::StreamExt as _;
use lapin::{
    Channel, Consumer,
    message::Delivery as Incoming,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    RabbitBroker,
    error::{into_broker, is_not_found},
    leases::{Leases, Settle, Source},
    link::{Link, WITHIN},
    message,
    pulse::Pulse,
};
use crate::{BrokerError, Delivery, PullEvents};

/// One channel for each queue that is pulled from: what the server answers to one closes no other.
#[derive(Default)]
pub(super) struct Channels {
    all: Mutex<HashMap<QueueName, Arc<QueueChannel>>>,
}

struct QueueChannel {
    /// The connection that it is on.
    session: u64,
    channel: Channel,
    /// Prefetch and the consumer that it is for, together.
    opening: tokio::sync::Mutex<()>,
}

impl Channels {
    /// It is closed once nothing that came over it is held any more.
    pub(super) fn forget(&self, queue: &QueueName) {
        self.all.lock().remove(queue);
    }

    async fn of(&self, link: &Link, queue: &QueueName) -> Result<Arc<QueueChannel>, BrokerError> {
        let session = link.session("pull").await?;
        if let Some(open) = self.all.lock().get(queue)
            && open.session == session.number
            && open.channel.status().connected()
        {
            return Ok(Arc::clone(open));
        }
        let channel = link.within("pull", session.channel()).await?;
        let opened = QueueChannel { session: session.number, channel, opening: tokio::sync::Mutex::new(()) };
        let opened = Arc::new(opened);
        self.all.lock().insert(queue.clone(), Arc::clone(&opened));
        Ok(opened)
    }
}

/// An invocation that came, as the seam has it.
pub(super) fn delivery(
    queue: &QueueName,
    incoming: Incoming,
    source: &Arc<Source>,
    leases: &Arc<Leases>,
) -> Result<Delivery, (u64, &'static str)> {
    let read = message::read(&incoming.properties, incoming.redelivered);
    let read = read.map_err(|why| (incoming.delivery_tag, why))?;
    Ok(Delivery {
        queue: queue.clone(),
        headers: read.headers,
        body: incoming.data.into(),
        position: QueuePosition { stream: queue.stream(), sequence: read.place, epoch: read.epoch },
        stored_at: read.stored_at,
        redeliveries: read.redeliveries,
        pending: None,
        // Who pulls says so.
        maybe_late: false,
        ack: leases.hold(Arc::clone(source), incoming.delivery_tag, Some(queue.key().into())),
    })
}

/// Says why, and has the server put it where somebody can look at it.
pub(super) async fn refuse(queue: &QueueName, source: &Source, tag: u64, why: &'static str) {
    metrics::counter!("flux_refused_messages_total").increment(1);
    tracing::warn!(queue = %queue.key(), why, "a message that was published to a function is refused");
    if let Err(error) = source.settle(tag, Settle::Refuse).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "it is refused when it comes again");
    }
}

struct Open {
    consumer: Consumer,
    source: Arc<Source>,
}

pub(super) struct RabbitPull {
    broker: Arc<super::Parts>,
    queue: QueueName,
    key: String,
    left: usize,
    deadline: Instant,
    open: Option<Open>,
    hot: watch::Receiver<u64>,
    over: Option<Over>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Expired,
    Cold,
    /// Nothing more is said.
    Said,
}

impl RabbitBroker {
    pub(super) async fn new_pull(
        &self,
        queue: &QueueName,
        batch: usize,
        expires: Duration,
    ) -> Result<RabbitPull, BrokerError> {
        Pulse::begin(&self.parts);
        let deadline = Instant::now() + expires;
        let key = queue.key();
        let hot = self.parts.logs.passing.changed();
        let mut over = None;
        if !self.parts.logs.is_hot(&key) {
            // Another may have made it hot a moment ago.
            self.parts.logs.passing.read_to_now("pull").await?;
            over = (!self.parts.logs.is_hot(&key)).then_some(Over::Cold);
        }
        Ok(RabbitPull {
            broker: Arc::clone(&self.parts),
            queue: queue.clone(),
            key,
            left: batch.clamp(1, usize::from(u16::MAX)),
            deadline,
            open: None,
            hot,
            over,
        })
    }
}

impl RabbitPull {
    async fn open(&self) -> Result<Open, BrokerError> {
        let attempted = "pull";
        let on = self.broker.channels.of(&self.broker.link, &self.queue).await?;
        let tag = format!("{:016x}", rand::random::<u64>());
        let prefetch = u16::try_from(self.left).unwrap_or(u16::MAX);
        let queue = self.broker.link.names.queue(&self.queue);
        let _one_at_a_time = on.opening.lock().await;
        let opening = async {
            on.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            on.channel.basic_consume(queue.into(), tag.as_str().into(), options, FieldTable::default()).await
        };
        let consumer = match tokio::time::timeout(WITHIN, opening).await {
            Ok(Ok(consumer)) => consumer,
            Ok(Err(error)) if is_not_found(&error) => {
                return Err(BrokerError::NotFound { what: self.queue.subject() });
            }
            Ok(Err(error)) => return Err(into_broker(attempted, error)),
            Err(_) => return Err(BrokerError::unavailable(attempted, "no answer came in time")),
        };
        let source = Source::of_pull(on.channel.clone(), tag.as_str().into());
        Ok(Open { consumer, source })
    }

    fn said(&mut self, error: BrokerError) -> Option<Result<Delivery, BrokerError>> {
        self.over = Some(Over::Said);
        self.open = None;
        Some(Err(error))
    }
}

#[async_trait]
impl PullEvents for RabbitPull {
    async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.over {
                    Some(Over::Cold) => {
                        // Whoever cooled it may be another process. Where it is hot again, the next pull opens one.
                        self.broker.channels.forget(&self.queue);
                        return self.said(BrokerError::NotFound { what: self.queue.subject() });
                    }
                    Some(Over::Expired | Over::Said) => return None,
                    None if self.left == 0 || Instant::now() >= self.deadline => return None,
                    None => {}
                }
                match self.open().await {
                    Ok(open) => self.open = Some(open),
                    Err(error) => return self.said(error),
                }
                continue;
            };
            let waits = self.over.is_none();
            tokio::select! {
                biased;
                incoming = open.consumer.next() => match incoming {
                    Some(Ok(incoming)) => {
                        let source = Arc::clone(&open.source);
                        if self.left == 1 {
                            // Filled: no more can come, and nothing is left to wait for.
                            source.cancel().await;
                            self.open = None;
                        }
                        match delivery(&self.queue, incoming, &source, &self.broker.leases) {
                            Ok(delivery) => {
                                self.left -= 1;
                                let maybe_late = self.broker.pulse.may_be_late(&source.channel);
                                return Some(Ok(Delivery { maybe_late, ..delivery }));
                            }
                            Err((tag, why)) => refuse(&self.queue, &source, tag, why).await,
                        }
                    }
                    Some(Err(error)) => return self.said(into_broker("pull", error)),
                    // By our cancel, or by the server's, where the queue is gone.
                    None => self.open = None,
                },
                () = tokio::time::sleep_until(self.deadline), if waits => {
                    self.over = Some(Over::Expired);
                    open.source.cancel().await;
                }
                changed = self.hot.changed(), if waits => {
                    if changed.is_err() || !self.broker.logs.is_hot(&self.key) {
                        self.over = Some(Over::Cold);
                        open.source.cancel().await;
                    }
                }
            }
        }
    }
}

impl Drop for RabbitPull {
    fn drop(&mut self) {
        let Some(Open { mut consumer, source }) = self.open.take() else { return };
        // What comes in meanwhile is given back.
        self.broker.link.tasks.spawn("rabbitmq dropped pull", async move {
            source.cancel().await;
            while let Some(Ok(incoming)) = consumer.next().await {
                let _ = source.settle(incoming.delivery_tag, Settle::GiveBack).await;
            }
        });
    }
}
