//! The queue and the store that a cluster stands on: real servers of the run's own.

use std::path::Path;

use flux_runtime::Tasks;
use flux_testkit::{NatsServer, PostgresServer, Process, RabbitServer, RedisServer, descendants};

use crate::{function, link::Link, plan::Victim, producer::Producer};

/// Of each `nats-server`, and so many copies of everything.
const NATS_SERVERS: usize = 3;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engines {
    /// Both gateways on one file.
    SqliteNats,
    RedisNats,
    PostgresRabbit,
}

pub(crate) enum Queue {
    Nats(Vec<NatsServer>),
    Rabbit(Box<RabbitServer>),
}

pub(crate) enum Store {
    Sqlite,
    Redis(RedisServer),
    Postgres(PostgresServer),
}

impl Engines {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SqliteNats => "cluster",
            Self::RedisNats => "redis",
            Self::PostgresRabbit => "postgres-rabbitmq",
        }
    }

    pub(crate) async fn start(self) -> (Queue, Store) {
        let queue = match self {
            Self::SqliteNats | Self::RedisNats => Queue::Nats(NatsServer::start_cluster(NATS_SERVERS).await),
            Self::PostgresRabbit => Queue::Rabbit(Box::new(RabbitServer::start().await)),
        };
        let store = match self {
            Self::SqliteNats => Store::Sqlite,
            Self::RedisNats => Store::Redis(RedisServer::start().await),
            Self::PostgresRabbit => Store::Postgres(PostgresServer::start().await),
        };
        (queue, store)
    }
}

impl Queue {
    /// To every server, and the URLs that go by them.
    pub(crate) async fn links(&self, tasks: &Tasks) -> std::io::Result<(Vec<Link>, String)> {
        let (ports, url): (Vec<u16>, fn(u16) -> String) = match self {
            Self::Nats(servers) => {
                (servers.iter().map(NatsServer::port).collect(), |port| format!("nats://127.0.0.1:{port}"))
            }
            Self::Rabbit(server) => (vec![server.port()], |port| format!("amqp://guest:guest@127.0.0.1:{port}/%2f")),
        };
        let mut links = Vec::new();
        for port in ports {
            links.push(Link::to(port, tasks).await?);
        }
        let urls: Vec<String> = links.iter().map(|link| url(link.port)).collect();
        Ok((links, urls.join(",")))
    }

    /// Copies that streams have; RabbitMQ's own settings say how many its queues have.
    pub(crate) fn replicas(&self) -> usize {
        match self {
            Self::Nats(servers) => servers.len(),
            Self::Rabbit(_) => 1,
        }
    }

    /// How someone publishes who knows nothing of Flux, past all links.
    pub(crate) async fn producer(&self) -> anyhow::Result<Producer> {
        match self {
            Self::Nats(servers) => {
                let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
                Producer::nats(async_nats::ConnectOptions::new(), urls).await
            }
            Self::Rabbit(server) => Ok(Producer::rabbit(server.url())),
        }
    }

    /// With how often each is killed, against the others of a cluster.
    pub(crate) fn victims(&self) -> Vec<(Victim, u64)> {
        match self {
            Self::Nats(servers) => (0..servers.len()).map(|n| (Victim::Nats(n), 3)).collect(),
            // Erlang takes seconds to start, and everything waits for it.
            Self::Rabbit(_) => vec![(Victim::Rabbit, 4)],
        }
    }

    /// Whether all that it stored can be taken from it, and it be started again: a RabbitMQ without its queues is one that was never set up.
    pub(crate) fn can_be_wiped(&self) -> bool {
        matches!(self, Self::Nats(_))
    }

    pub(crate) async fn wipe(&mut self) {
        let Self::Nats(servers) = self else { return };
        servers.iter_mut().for_each(NatsServer::wipe_store);
        NatsServer::start_together(servers).await;
    }

    pub(crate) fn pid(&self, victim: Victim) -> Option<i32> {
        match (self, victim) {
            (Self::Nats(servers), Victim::Nats(n)) => Some(servers.get(n)?.pid()),
            (Self::Rabbit(server), Victim::Rabbit) => Some(server.pid()),
            _ => None,
        }
    }

    pub(crate) async fn mend(&mut self) {
        match self {
            Self::Nats(servers) => {
                if servers.iter_mut().any(|server| !server.is_running()) {
                    NatsServer::start_together(servers).await;
                }
            }
            Self::Rabbit(server) => {
                if !server.is_running() {
                    server.restart().await;
                }
            }
        }
    }

    /// Until a death forgets nothing of what was made: RabbitMQ 3.10 writes the list of its queues seconds late (docs/rabbitmq.md).
    pub(crate) async fn remembers(&self) {
        if let Self::Rabbit(server) = self {
            let queues = function::NAMES.map(|name| format!("flux.invoke.{name}"));
            server.until_it_remembers(&queues.each_ref().map(String::as_str)).await;
        }
    }
}

impl Store {
    /// To its server, if it has one, and the URL that goes by it.
    pub(crate) async fn link(&self, dir: &Path, tasks: &Tasks) -> std::io::Result<(Option<Link>, String)> {
        let (port, url): (u16, fn(u16) -> String) = match self {
            Self::Sqlite => return Ok((None, format!("sqlite://{}", dir.join("flux.db").display()))),
            Self::Redis(server) => (server.port(), |port| format!("redis://127.0.0.1:{port}")),
            Self::Postgres(server) => (server.port(), |port| format!("postgres://flux@127.0.0.1:{port}/postgres")),
        };
        let link = Link::to(port, tasks).await?;
        let url = url(link.port);
        Ok((Some(link), url))
    }

    pub(crate) fn victim(&self) -> Option<Victim> {
        match self {
            Self::Sqlite => None,
            Self::Redis(_) => Some(Victim::Redis),
            Self::Postgres(_) => Some(Victim::Postgres),
        }
    }

    /// The first is the one that the others descend from.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let pid = match self {
            Self::Sqlite => return Vec::new(),
            Self::Redis(server) => server.pid(),
            Self::Postgres(server) => server.pid(),
        };
        Process::of(pid).into_iter().chain(descendants(pid)).collect()
    }

    pub(crate) async fn mend(&mut self) {
        match self {
            Self::Sqlite => {}
            Self::Redis(server) => {
                if !server.is_running() {
                    server.restart().await;
                }
            }
            Self::Postgres(server) => {
                if !server.is_running() {
                    server.restart().await;
                }
            }
        }
    }
}
