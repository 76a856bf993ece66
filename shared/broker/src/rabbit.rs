//! RabbitMQ behind the seam (ADR 16).
//!
//! - `link` makes the connection and makes it again; `session` is one of them, with its channels.
//! - `log` is what stands in for a key-value store: streams that everybody reads; `view` says what follows from one.
//! - `leases` keep what was delivered, `pulls` ask for no more than they may have, `pulse` knows when what comes may be late.
//! - one file for each trait of the seam.
//!
//! **Architecture Invariant:** no type of `lapin` leaves this module.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use flux_protocol::{PoolName, invocation::Lane, subject::QueueName};
use flux_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::{Broker, BrokerError, Capabilities};

mod blobs;
mod dead_letters;
mod epochs;
mod error;
mod leases;
mod link;
mod listeners;
mod log;
mod message;
mod names;
mod options;
mod permissions;
mod pulls;
mod pulse;
mod queue;
mod record;
mod session;
mod signals;
mod status_log;
mod tables;
mod unrouted;
mod view;

pub use options::{NAMESPACE, RabbitOptions};
pub use permissions::definitions;

/// A connection to a RabbitMQ server or cluster (3.10 or newer).
pub struct RabbitBroker {
    parts: Arc<Parts>,
}

/// What the engine's own tasks share with it.
struct Parts {
    link: Arc<link::Link>,
    logs: tables::Logs,
    letters: Arc<log::Log>,
    epochs: epochs::Epochs,
    leases: Arc<leases::Leases>,
    channels: pulls::Channels,
    pulse: pulse::Pulse,
    doubts: queue::Doubts,
    outbox: mpsc::Sender<signals::Said>,
    /// Queues that were made, or found, over the connection with that number.
    made: Mutex<(u64, HashSet<QueueName>)>,
    /// This process moves what has no queue, and carries on what is old.
    tends: AtomicBool,
    answers_how_many: AtomicBool,
    recorders: status_log::Recorders,
}

impl RabbitBroker {
    /// Connects, trying again until `options.connect_within` passed. What runs behind it is spawned on `tasks`
    /// and ends with [`Broker::close`] or the kill.
    ///
    /// # Errors
    /// `Unavailable` when no server was reached in time, `Denied` when one refused this identity.
    pub async fn connect(options: RabbitOptions, tasks: Tasks) -> Result<Arc<Self>, BrokerError> {
        let link = link::Link::connect(options, tasks).await?;
        let leases = Arc::<leases::Leases>::default();
        let (outbox, said) = signals::outbox();
        link.tasks.spawn("rabbitmq leases", Arc::clone(&leases).watch_over(link.closed.clone()));
        link.tasks.spawn("rabbitmq signals", signals::say(Arc::clone(&link), said));
        let parts = Parts {
            logs: tables::Logs::new(&link),
            letters: dead_letters::log(&link),
            epochs: epochs::Epochs::default(),
            leases,
            channels: pulls::Channels::default(),
            pulse: pulse::Pulse::default(),
            doubts: queue::Doubts::default(),
            outbox,
            made: Mutex::default(),
            tends: AtomicBool::new(false),
            answers_how_many: AtomicBool::new(false),
            recorders: status_log::Recorders::default(),
            link,
        };
        Ok(Arc::new(Self { parts: Arc::new(parts) }))
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delayed_publish: false,
            take_back: false,
            positions: false,
            pending_counts: false,
            counts_held: false,
            counts_deliveries: false,
            deduplicates: false,
            acks_by_message: false,
            ordered_statuses: false,
        }
    }

    async fn provision(&self, pools: &[PoolName]) -> Result<(), BrokerError> {
        let attempted = "make the queues";
        let begins = !self.parts.tends.swap(true, std::sync::atomic::Ordering::AcqRel);
        let session = self.parts.link.session(attempted).await?;
        let names = &self.parts.link.names;
        for pool in pools {
            for lane in Lane::ALL {
                let unrouted = session::arguments([("alternate-exchange", session::text(&names.unrouted()))]);
                let exchange = names.lane(lane, pool);
                let making = async {
                    let channel = session.channel().await?;
                    session::exchange(&channel, &exchange, unrouted).await?;
                    let _ = channel.close(200, "done".into()).await;
                    Ok(())
                };
                self.parts.link.within(attempted, making).await?;
                self.parts.epochs.of(&self.parts, lane, pool).await?;
            }
        }
        if begins {
            let tasks = &self.parts.link.tasks;
            tasks.spawn("rabbitmq unrouted", unrouted::move_on(Arc::clone(&self.parts)));
            tasks.spawn("rabbitmq blobs", Arc::clone(&self.parts).sweep_blobs());
            let passing = Arc::clone(&self.parts.logs.passing);
            tasks.spawn("rabbitmq carry", tables::Logs::carry(passing, Arc::clone(&self.parts.link)));
        }
        Ok(())
    }

    fn stores_nothing_for(&self) -> Option<Duration> {
        self.parts.link.stores_nothing_for()
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        let session = self.parts.link.session("reach the server").await?;
        let queue = self.parts.link.names.statuses();
        let trip = session.waiting(&queue);
        self.parts.link.within("reach the server", trip).await.map(|_| ())
    }

    fn connection(&self) -> watch::Receiver<u64> {
        self.parts.link.connection()
    }

    async fn close(&self) {
        self.parts.link.close().await;
    }
}
