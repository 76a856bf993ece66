//! NATS JetStream behind the seam.
//!
//! One connection for everything. Requests, publishes and pulls are the server's own protocol, sent by hand where
//! the client library would add a round trip, a subscription or a wait of its own:
//!
//! - `core` sends requests that survive a lost connection; `link` counts its ups and downs.
//! - `inbox` is the one subscription that deliveries and answers come to; `ledger` says which pull they belong to.
//! - one file for each trait of the seam, and `provision` for the streams behind them.
//!
//! **Architecture Invariant:** no type of `async_nats` leaves this module.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_protocol::PoolName;
use flux_runtime::Tasks;
use tokio::{sync::watch, time::Instant};

use crate::{Broker, BrokerError, Capabilities};

mod ack_subject;
mod blobs;
mod changes;
mod core;
mod dead_letters;
mod delayed;
mod deliveries;
mod direct;
mod error;
mod heat;
mod inbox;
mod ledger;
mod link;
mod options;
mod permissions;
mod provision;
mod queue;
mod reader;
mod signals;
mod status_log;
mod status_writer;
mod storing;
mod tables;

pub use options::{NatsAuth, NatsOptions};
pub use permissions::{AUTOSCALER_ANSWERS, AUTOSCALER_INBOX, Allowed, accounts, allowed, server_tls};

/// A connection to a NATS server or cluster with JetStream (2.12 or newer).
pub struct NatsBroker {
    core: Arc<core::Core>,
    hot: heat::Hot,
    statuses: status_writer::StatusWriter,
    connection: watch::Receiver<u64>,
}

impl NatsBroker {
    /// Connects, trying again until `options.connect_within` passed. What runs behind it is spawned on `tasks`
    /// and ends with [`Broker::close`] or the kill.
    ///
    /// # Errors
    /// `Unavailable` when no server was reached in time, `Denied` when one refused this identity.
    pub async fn connect(options: NatsOptions, tasks: Tasks) -> Result<Arc<Self>, BrokerError> {
        let inbox_prefix =
            options.inbox_prefix.clone().unwrap_or_else(|| format!("_INBOX.{:016x}", rand::random::<u64>()));
        let link::Connected { client, link, public: connection, refused } =
            link::connect(&options, &inbox_prefix).await?;
        let (inbox, to_give_back) = inbox::Inbox::new(&inbox_prefix, options.answers.clone());
        let messages = client
            .subscribe(inbox.pattern())
            .await
            .map_err(|error| BrokerError::refused("subscribe to this process's inbox", error))?;
        let core =
            Arc::new(core::Core::new(client.clone(), Arc::clone(&inbox), &options, tasks, link.clone(), refused));
        if let Some(pattern) = inbox.answers_pattern() {
            let answers =
                client.subscribe(pattern).await.map_err(|error| BrokerError::refused("subscribe to answers", error))?;
            core.tasks.spawn("nats answers", Arc::clone(&inbox).answers(answers, core.closed.clone()));
        }
        core.tasks.spawn("nats inbox", inbox.run(messages, link, core.closed.clone()));
        core.tasks.spawn("nats echoes", inbox::echo(client.clone(), Arc::clone(&core.inbox), core.closed.clone()));
        core.tasks.spawn("nats late messages", inbox::give_back(client, to_give_back, core.closed.clone()));
        core.round_trip("subscribe to this process's inbox").await?;
        let hot = heat::Hot::new(Arc::clone(&core));
        let statuses = status_writer::StatusWriter::start(&core);
        Ok(Arc::new(Self { core, hot, statuses, connection }))
    }

    /// Deliveries that came when their pull had ended and were given back, since the start.
    pub fn late_messages(&self) -> u64 {
        self.core.inbox.late_messages()
    }
}

#[async_trait]
impl Broker for NatsBroker {
    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }

    async fn provision(&self, pools: &[PoolName]) -> Result<(), BrokerError> {
        provision::provision(&self.core, pools).await?;
        for pool in pools {
            if self.core.moving.lock().insert(pool.clone()) {
                let moving = delayed::move_due(Arc::clone(&self.core), pool.clone());
                self.core.tasks.spawn("nats delayed invocations", moving);
            }
        }
        Ok(())
    }

    fn stores_nothing_for(&self) -> Option<Duration> {
        self.core.storing.nothing_for(self.core.link_now().connects, Instant::now())
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.core.round_trip("reach the server").await
    }

    fn connection(&self) -> watch::Receiver<u64> {
        self.connection.clone()
    }

    async fn close(&self) {
        self.core.close().await;
    }
}
