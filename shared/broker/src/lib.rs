//! The queue seam. Flux moves everything between its processes through [`Broker`], which is six small
//! traits, one for each thing that the broker is used for:
//!
//! | trait | what for |
//! |---|---|
//! | [`Queue`] | invocations: published, pulled within a budget, acked |
//! | [`Signals`] | what may be lost: replies, live output, heartbeats, control, cancel |
//! | [`StatusLog`] | transitions of executions on their way to the store: must not be lost |
//! | [`Tables`] | last values by key, watched: functions, versions, agents, hot queues |
//! | [`Blobs`] | content that does not fit a message |
//! | [`DeadLetters`] | invocations given up on |
//!
//! What an engine cannot do is a field of [`Capabilities`], not an error at three in the morning. Every
//! engine passes [`conformance`].
//!
//! **Architecture Invariant:** no type of a broker's client appears in a public signature, and nothing
//! here knows what a function is: it moves [`Invocation`](flux_protocol::Invocation) headers and bytes.

use async_trait::async_trait;

pub mod conformance;
mod connect;
mod error;
pub mod memory;
pub mod nats;
pub mod rabbit;
mod seam;

pub use connect::{ConnectOptions, connect};
pub use error::BrokerError;
pub use seam::{
    blobs::{BlobListed, Blobs},
    dead_letters::{DeadLetter, DeadLetters},
    queue::{
        AckHandle, Acker, Delivery, Message, Progress, Pull, PullEvents, Queue, QueueDepth, Ring, Stored, TakenBack,
    },
    signals::{Signal, Signals, Subscription},
    status_log::{StatusBatch, StatusDelivery, StatusLog},
    tables::{Change, Entry, Table, Tables, Watch},
};

/// All of the seam, as one handle.
#[async_trait]
pub trait Broker: Queue + Signals + StatusLog + Tables + Blobs + DeadLetters + Send + Sync + 'static {
    fn capabilities(&self) -> Capabilities;

    /// Makes whatever the engine needs (streams, buckets) for these pools, or finds it. Idempotent; gateways
    /// call it at start and whenever the connection came back. Agents never do.
    async fn provision(&self, pools: &[flux_protocol::PoolName]) -> Result<(), BrokerError>;

    /// A round trip. An error means that the broker is out of reach now.
    async fn ping(&self) -> Result<(), BrokerError>;

    /// For how long a part of the storage has taken nothing of what was sent to it, over a connection that is there. `None`:
    /// all that was stored lately was acknowledged.
    fn stores_nothing_for(&self) -> Option<std::time::Duration>;

    /// Changes its value each time the connection is made, starting at 1; 0 while it is down.
    fn connection(&self) -> tokio::sync::watch::Receiver<u64>;

    /// Sends what is buffered and closes.
    async fn close(&self);
}

/// What an engine can do beyond the intersection. Callers have a stated fallback for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Queue::publish_at`]; without it the caller keeps the time itself.
    pub delayed_publish: bool,
    /// [`Queue::take_back`] can remove a stored message; without it a cancel is only remembered by agents.
    pub take_back: bool,
    /// [`Stored::position`] is the message's place in a stream, so that a lost one can be told. Without it
    /// the reconciler goes by age alone.
    pub positions: bool,
    /// Deliveries say how many more wait ([`Delivery::pending`]).
    pub pending_counts: bool,
    /// [`Queue::depth`] and [`Queue::depths`] count what is being worked on, and [`Queue::cool`] sees it. Without it they
    /// know what waits alone: the reconciler believes a queue empty that was so in two rounds, and asks heartbeats before it cools one.
    pub counts_held: bool,
    /// [`Queue::progress`]. Without it nobody knows for how long something waits: the autoscaler goes by how much does.
    pub counts_deliveries: bool,
    /// A message whose id was stored lately is not stored again. Without it an engine marks what it sends again after a
    /// publish whose end it does not know ([`Delivery::redeliveries`] of that is 1 at least), and whoever gets it asks who holds it.
    pub deduplicates: bool,
    /// An ack counts for the message, whichever delivery it belongs to. Without it an agent that is given what another
    /// holds keeps the delivery until that one has recorded it.
    pub acks_by_message: bool,
    /// Statuses have a place in the log, the same each time ([`StatusDelivery::order`]). Without it they have none, and the outcome that
    /// is in the store first stays: clocks and counters of gateways do not compare.
    pub ordered_statuses: bool,
}

impl Capabilities {
    /// Of an engine that lacks nothing.
    pub const fn all() -> Self {
        Self {
            delayed_publish: true,
            take_back: true,
            positions: true,
            pending_counts: true,
            counts_held: true,
            counts_deliveries: true,
            deduplicates: true,
            acks_by_message: true,
            ordered_statuses: true,
        }
    }
}
