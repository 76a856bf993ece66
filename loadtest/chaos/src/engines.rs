//! The queue and the store that a cluster stands on: real servers of the run's own.

use std::{path::Path, time::Duration};

use flux_protocol::{Lane, PoolName, subject};
use flux_runtime::Tasks;
use flux_testkit::{NatsServer, PostgresServer, Process, RabbitServer, RedisServer, descendants, free_port};

use crate::{
    function,
    link::Link,
    plan::{Cut, Victim},
    producer::Producer,
    routes::Routes,
};

/// Of each `nats-server`, and so many copies of everything.
const NATS_SERVERS: usize = 3;
const ASKED_WITHIN: Duration = Duration::from_secs(3);

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engines {
    /// Both gateways on one file.
    SqliteNats,
    RedisNats,
    PostgresRabbit,
}

pub(crate) enum Queue {
    Nats(Vec<NatsServer>, Routes),
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

    pub(crate) async fn start(self, tasks: &Tasks) -> std::io::Result<(Queue, Store)> {
        let queue = match self {
            Self::SqliteNats | Self::RedisNats => {
                let ports: Vec<u16> = (0..NATS_SERVERS).map(|_| free_port()).collect();
                let routes = Routes::between(&ports, tasks).await?;
                let ways: Vec<Vec<u16>> = (0..NATS_SERVERS).map(|n| routes.of(n)).collect();
                Queue::Nats(NatsServer::start_cluster_over(&ports, &ways).await, routes)
            }
            Self::PostgresRabbit => Queue::Rabbit(Box::new(RabbitServer::start().await)),
        };
        let store = match self {
            Self::SqliteNats => Store::Sqlite,
            Self::RedisNats => Store::Redis(RedisServer::start().await),
            Self::PostgresRabbit => Store::Postgres(PostgresServer::start().await),
        };
        Ok((queue, store))
    }
}

impl Queue {
    /// To every server, and the URLs that go by them.
    pub(crate) async fn links(&self, tasks: &Tasks) -> std::io::Result<(Vec<Link>, String)> {
        let (ports, url): (Vec<u16>, fn(u16) -> String) = match self {
            Self::Nats(servers, _) => {
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
            Self::Nats(servers, _) => servers.len(),
            Self::Rabbit(_) => 1,
        }
    }

    /// How someone publishes who knows nothing of Flux, past all links.
    pub(crate) async fn producer(&self) -> anyhow::Result<Producer> {
        match self {
            Self::Nats(servers, _) => {
                let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
                Producer::nats(async_nats::ConnectOptions::new(), urls).await
            }
            Self::Rabbit(server) => Ok(Producer::rabbit(server.url())),
        }
    }

    /// With how often each is killed, against the others of a cluster.
    pub(crate) fn victims(&self) -> Vec<(Victim, u64)> {
        match self {
            Self::Nats(servers, _) => (0..servers.len()).map(|n| (Victim::Nats(n), 3)).collect(),
            // Erlang takes seconds to start, and everything waits for it.
            Self::Rabbit(_) => vec![(Victim::Rabbit, 4)],
        }
    }

    /// Takes from it all that it stored, and starts it again.
    pub(crate) async fn wipe(&mut self) {
        match self {
            Self::Nats(servers, _) => {
                servers.iter_mut().for_each(NatsServer::wipe_store);
                NatsServer::start_together(servers).await;
            }
            Self::Rabbit(server) => {
                server.wipe_store();
                server.restart().await;
            }
        }
    }

    /// What can be done between its servers.
    pub(crate) fn cuts(&self) -> Vec<Cut> {
        let Self::Nats(servers, _) = self else { return Vec::new() };
        let all = 0..servers.len();
        let each: [fn(usize) -> Cut; 4] = [Cut::Apart, Cut::Mute, Cut::Deaf, Cut::Slow];
        let pairs = all.clone().flat_map(|one| (one + 1..servers.len()).map(move |other| Cut::Between(one, other)));
        pairs.chain(each.into_iter().flat_map(|cut| all.clone().map(cut))).collect()
    }

    pub(crate) fn cut(&self, cut: Cut, slow: Duration) {
        if let Self::Nats(_, routes) = self {
            routes.cut(cut, slow);
        }
    }

    pub(crate) fn heal(&self) {
        if let Self::Nats(_, routes) = self {
            routes.heal();
        }
    }

    /// Whom a cut is done to: which one it is says less than whether it leads.
    pub(crate) async fn describe(&self, cut: Cut) -> Option<String> {
        let Self::Nats(servers, _) = self else { return None };
        let leader = leader(servers).await;
        let role = |n: usize| if leader == Some(n) { "the leader" } else { "a follower" };
        Some(match cut {
            Cut::Apart(n) => format!("{} from both others", role(n)),
            Cut::Between(one, other) if [one, other].map(Some).contains(&leader) => {
                "the leader and a follower".to_owned()
            }
            Cut::Between(..) => "the two followers".to_owned(),
            Cut::Mute(n) => format!("from {}", role(n)),
            Cut::Deaf(n) => format!("to {}", role(n)),
            Cut::Slow(_) => "between nats-servers".to_owned(),
        })
    }

    pub(crate) fn pid(&self, victim: Victim) -> Option<i32> {
        match (self, victim) {
            (Self::Nats(servers, _), Victim::Nats(n)) => Some(servers.get(n)?.pid()),
            (Self::Rabbit(server), Victim::Rabbit) => Some(server.pid()),
            _ => None,
        }
    }

    pub(crate) async fn mend(&mut self) {
        match self {
            Self::Nats(servers, _) => {
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

/// Who leads the stream of invocations; others lead other streams.
async fn leader(servers: &[NatsServer]) -> Option<usize> {
    let asked = async {
        for server in servers {
            let Ok(client) = async_nats::connect(server.url()).await else { continue };
            let name = subject::stream(Lane::Invoke, &PoolName::default());
            let Ok(stream) = async_nats::jetstream::new(client).get_stream(name).await else { continue };
            let leads = stream.cached_info().cluster.as_ref()?.leader.clone()?;
            return servers.iter().position(|server| server.name() == leads);
        }
        None
    };
    tokio::time::timeout(ASKED_WITHIN, asked).await.ok().flatten()
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
