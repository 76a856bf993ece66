//! The engines, ready to be tried.

use std::{sync::Arc, time::Duration};

use flux_broker::{
    Broker as _,
    conformance::Subject,
    memory::{MemoryBroker, MemoryLimits},
    nats::{NatsBroker, NatsOptions},
    rabbit::{RabbitBroker, RabbitOptions},
};
use flux_protocol::{PoolName, limits};
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::{NatsServer, RabbitServer};

/// One broker is the whole cluster.
pub(crate) fn memory() -> Subject {
    let limits = MemoryLimits { queued_per_function: 1000, ..MemoryLimits::default() };
    let broker = Arc::new(MemoryBroker::new(limits));
    Subject {
        broker: Arc::clone(&broker) as _,
        other: broker,
        ack_wait: limits.ack_wait,
        fill_size: 10,
        fill_tries: 1002,
    }
}

/// A server of a test's own.
pub(crate) struct Nats {
    pub(crate) server: NatsServer,
    pub(crate) tasks: Tasks,
}

impl Nats {
    pub(crate) async fn start() -> Self {
        Self { server: NatsServer::start().await, tasks: Tasks::new(Shutdown::new()) }
    }

    /// A connection.
    pub(crate) async fn connect(&self, name: &str) -> Arc<NatsBroker> {
        let options =
            NatsOptions { connect_within: Duration::from_secs(10), ..NatsOptions::new(self.server.url(), name) };
        NatsBroker::connect(options, self.tasks.clone()).await.expect("connect")
    }

    /// A connection, as a gateway has it: everything is provisioned.
    pub(crate) async fn gateway(&self) -> Arc<NatsBroker> {
        let broker = self.connect("gateway").await;
        broker.provision(&[PoolName::default()]).await.expect("provision");
        broker
    }

    pub(crate) async fn subject(&self) -> Subject {
        let broker = self.gateway().await;
        let other = self.connect("other").await;
        // A stream of 256 MiB takes fewer than 40 of these.
        let fill_size = 7 * limits::MIB;
        Subject { broker, other, ack_wait: limits::ACK_WAIT, fill_size, fill_tries: 40 }
    }
}

/// A server that tests share, each with a namespace of its own: Erlang takes seconds to start.
pub(crate) struct Rabbit {
    pub(crate) server: RabbitServer,
    pub(crate) tasks: Tasks,
}

impl Rabbit {
    pub(crate) async fn start() -> Self {
        Self { server: RabbitServer::start().await, tasks: Tasks::new(Shutdown::new()) }
    }

    /// A connection.
    pub(crate) async fn connect(&self, namespace: &str, name: &str) -> Arc<RabbitBroker> {
        let options = RabbitOptions {
            namespace: namespace.to_owned(),
            connect_within: Duration::from_secs(30),
            ..RabbitOptions::new(self.server.url(), name)
        };
        RabbitBroker::connect(options, self.tasks.clone()).await.expect("connect")
    }

    /// A connection, as a gateway has it: everything is provisioned.
    pub(crate) async fn gateway(&self, namespace: &str) -> Arc<RabbitBroker> {
        let broker = self.connect(namespace, "gateway").await;
        broker.provision(&[PoolName::default()]).await.expect("provision");
        broker
    }

    pub(crate) async fn subject(&self, namespace: &str) -> Subject {
        let broker = self.gateway(namespace).await;
        let other = self.connect(namespace, "other").await;
        let fill_size = 7 * limits::MIB;
        Subject { broker, other, ack_wait: limits::ACK_WAIT, fill_size, fill_tries: 40 }
    }
}
