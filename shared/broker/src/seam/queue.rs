//! Invocation queues: work-queue semantics, at least once.
//!
//! Each [`QueueName`] (lane, pool, function) is a queue of its own. A queue is *hot* while it can be
//! pulled from ([`Queue::heat`] … [`Queue::cool`]); a cold one still takes messages.
//!
//! Ordering: messages of one queue are delivered in the order in which they were stored, redeliveries
//! apart. A delivery goes to one puller; unless it is acked, or marked in progress, within
//! [`limits::ACK_WAIT`](flux_protocol::limits::ACK_WAIT), it goes to another with `redeliveries` one higher.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{
    FunctionName, PoolName, Timestamp, execution::QueuePosition, invocation::Lane, subject::QueueName,
};

use crate::BrokerError;

/// What is stored: headers and a body of at most [`limits::MESSAGE`](flux_protocol::limits::MESSAGE) bytes.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// Publishes with the same id within the duplicate window are stored once.
    pub id: Option<String>,
}

/// The broker holds the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub position: QueuePosition,
    /// It was stored before under the same id; nothing was added.
    pub duplicate: bool,
}

#[async_trait]
pub trait Queue {
    /// Stores a message; done once the broker holds it. Retrying with the same `id` is safe.
    ///
    /// # Errors
    /// `Full` at the queue's or stream's limit, `TooLarge`, `Unavailable`.
    async fn publish(&self, queue: &QueueName, message: Message) -> Result<Stored, BrokerError>;

    /// Stores a message that becomes visible to pulls at `due` (a few milliseconds late at most), where it rings as any
    /// other does. Its position is where it waits until then: it is gone from there once it was due, and can be taken
    /// back before.
    async fn publish_at(&self, queue: &QueueName, message: Message, due: Timestamp) -> Result<Stored, BrokerError>;

    /// Makes the queue hot: from now on it can be pulled, and agents that watch [`Table::Hot`](crate::Table::Hot) learn it.
    /// Idempotent, and cheap when it is hot already.
    async fn heat(&self, queue: &QueueName) -> Result<(), BrokerError>;

    /// Makes the queue cold if nothing waits or is being worked on. `false` leaves it as it was. A message that
    /// comes in meanwhile is not stranded: the queue is made hot again.
    async fn cool(&self, queue: &QueueName) -> Result<bool, BrokerError>;

    /// Asks for up to `batch` messages. The pull ends when that many came, `expires` passed, or the broker ended
    /// it; until [`Pull`] says so, its credit is spent.
    async fn pull(&self, queue: &QueueName, batch: usize, expires: Duration) -> Result<Pull, BrokerError>;

    /// Whether the message at `position` was handed to an agent at least once. `None`: that cannot be told any
    /// more (the stream was made anew).
    async fn was_delivered(&self, queue: &QueueName, position: &QueuePosition) -> Result<Option<bool>, BrokerError>;

    /// Removes a message that was not delivered. It is removed too where an agent has it.
    ///
    /// # Errors
    /// `NotFound` when the stream was made anew: what was there is lost, delivered or not.
    async fn take_back(&self, queue: &QueueName, position: &QueuePosition) -> Result<TakenBack, BrokerError>;

    /// Whether the message at `position` is still stored. `false` also when the stream was made anew.
    async fn is_stored(&self, queue: &QueueName, position: &QueuePosition) -> Result<bool, BrokerError>;

    /// Messages stored per queue of a lane, those being worked on included. Cost grows with the queues that have any.
    async fn depths(&self, lane: Lane, pool: &PoolName) -> Result<Vec<QueueDepth>, BrokerError>;

    /// Messages stored for one queue, those being worked on included.
    async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError>;

    /// How far these queues of a lane were worked off: two looks tell for how long something waits, and nothing of a message is
    /// read. Cost grows with the queues that are asked for.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::counts_deliveries`](crate::Capabilities::counts_deliveries).
    async fn progress(
        &self,
        lane: Lane,
        pool: &PoolName,
        functions: &[FunctionName],
    ) -> Result<Vec<Progress>, BrokerError>;

    /// A hint for each message that producers or gateways stored, shared out among gateways. Hints may be lost:
    /// [`Queue::depths`] is the reconciler behind them.
    async fn rings(&self) -> Result<futures::stream::BoxStream<'static, Ring>, BrokerError>;

    /// Takes one stored message of a queue that has no agents to pull it, such as one for an unknown function.
    /// Makes the queue hot while it does. `None` when nothing waits.
    async fn take_one(&self, queue: &QueueName) -> Result<Option<Delivery>, BrokerError>;

    /// When the lane's storage was made: another value than before means that its contents were lost.
    async fn epoch(&self, lane: Lane, pool: &PoolName) -> Result<Timestamp, BrokerError>;
}

/// How [`Queue::take_back`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// It is removed and no agent ever had it.
    NeverDelivered,
    /// An agent has it or had it: cancel it there.
    Delivered,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDepth {
    pub queue: QueueName,
    pub messages: u64,
}

/// Where a queue is. All but `waiting` only grow, until the queue or its storage is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub queue: QueueName,
    /// Messages that nobody was given yet.
    pub waiting: u64,
    /// Deliveries, those of a message that was delivered before included.
    pub delivered: u64,
    /// The place in the lane of the last message that was delivered for the first time, or a later one that is of another queue.
    pub delivered_to: u64,
    /// The place in the lane of what was stored last, in whichever queue, before the others were read.
    pub stored_to: u64,
}

/// Somebody stored a message in this queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    pub queue: QueueName,
}

/// One message, handed to this agent. It is consumed through its [`AckHandle`].
#[derive(Debug)]
pub struct Delivery {
    pub queue: QueueName,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub position: QueuePosition,
    pub stored_at: Timestamp,
    /// How often it was delivered before, to anyone.
    pub redeliveries: u32,
    /// How many more wait in the queue, where the engine says so; what was stored just now may be missing.
    pub pending: Option<u64>,
    /// It may have been on its way for so long that another has it: who would start it asks first.
    pub maybe_late: bool,
    pub ack: AckHandle,
}

impl Delivery {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What an engine does for one delivery.
#[async_trait]
pub trait Acker: Send + Sync {
    async fn progress(&self) -> Result<(), BrokerError>;
    async fn ack(&self) -> Result<(), BrokerError>;
    async fn nack(&self, delay: Option<Duration>) -> Result<(), BrokerError>;
}

/// The right to end a delivery. Ending consumes it, so that acking twice does not compile. Dropping it
/// ends nothing: the broker delivers again after the ack wait.
pub struct AckHandle(Box<dyn Acker>);

impl AckHandle {
    pub fn new(acker: impl Acker + 'static) -> Self {
        Self(Box::new(acker))
    }

    /// The delivery is still being worked on. Sent, not confirmed.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn progress(&self) -> Result<(), BrokerError> {
        self.0.progress().await
    }

    /// Done. Sent in order with this process's other acks and not confirmed: a lost ack is a redelivery,
    /// which the record's outcome settles.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn ack(self) -> Result<(), BrokerError> {
        self.0.ack().await
    }

    /// Gives it back, for draining alone: it inflates the delivery count.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn nack(self, delay: Option<Duration>) -> Result<(), BrokerError> {
        self.0.nack(delay).await
    }
}

impl std::fmt::Debug for AckHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AckHandle")
    }
}

/// An outstanding pull.
pub struct Pull {
    events: Box<dyn PullEvents>,
}

/// What an engine does for one pull.
#[async_trait]
pub trait PullEvents: Send {
    async fn next(&mut self) -> Option<Result<Delivery, BrokerError>>;
}

impl Pull {
    pub fn new(events: impl PullEvents + 'static) -> Self {
        Self { events: Box::new(events) }
    }

    /// The next delivery; `None` when the pull has ended and its credit is free. An error ends it too
    /// (`NotFound`: the queue is cold; `Full`: enough pulls wait there already, which an engine may limit). Dropping a pull early leaves its credit spent until it expires at the
    /// broker, and what comes in meanwhile is redelivered elsewhere.
    pub async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        self.events.next().await
    }
}
