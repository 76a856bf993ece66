//! The way to the server: one, whichever the sentinels name, or a cluster. One connection that all calls share, made anew
//! when it is lost.

use std::path::Path;

use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo as _, Pipeline, RedisFuture,
    TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use flux_protocol::limits;
use tokio::sync::Mutex;

use super::fault::Fault;
use crate::{
    StoreError,
    tls::authority_pem,
    url::{Taken, without_password, wrong},
};

const OWN: &[&str] = &["prefix", "sslrootcert", "sentinel_password"];
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;

enum Way {
    One(Box<Client>),
    /// Asked anew for each connection.
    Sentinels(Box<Mutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
}

/// A connection. Clones share it, and what each sends goes out without waiting for the others' answers.
#[derive(Clone)]
pub(super) enum Wire {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

pub(super) struct Link {
    way: Way,
    /// With its number, so that of many calls that lose it one throws it away.
    wire: Mutex<(u64, Option<Wire>)>,
    /// As messages name it.
    pub(super) place: String,
    /// What the names of all keys begin with.
    pub(super) prefix: String,
}

impl Link {
    pub(super) fn new(url: &str) -> Result<Self, StoreError> {
        let bad = |problem: String| wrong(url, problem);
        let taken = Taken::from(url, OWN);
        let prefix = taken.name("prefix", "flux").map_err(bad)?;
        let certificates = taken.get("sslrootcert").map(|path| authority_pem(Path::new(path))).transpose();
        let certificates =
            certificates.map_err(bad)?.map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) });
        let (scheme, rest) = taken.url.split_once("://").ok_or_else(|| bad("write redis://host:6379".to_owned()))?;
        let (scheme, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let plain = format!("{scheme}://{rest}");
        let way = match kind {
            "" => one(&plain, certificates),
            "sentinel" => sentinels(&plain, certificates, taken.get("sentinel_password")),
            "cluster" => cluster(&plain, certificates),
            _ => Err("it is redis://, redis+sentinel:// or redis+cluster://, or the same with rediss".to_owned()),
        };
        Ok(Self { way: way.map_err(bad)?, wire: Mutex::new((0, None)), place: without_password(url), prefix })
    }

    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self.way, Way::Cluster(_))
    }

    /// The connection, made if there is none, and its number.
    pub(super) async fn wire(&self) -> Result<(u64, Wire), Fault> {
        // Held while connecting: all wait for the same one.
        let mut kept = self.wire.lock().await;
        if let (number, Some(wire)) = &*kept {
            return Ok((*number, wire.clone()));
        }
        let wire = self.connect().await?;
        let number = kept.0 + 1;
        *kept = (number, Some(wire.clone()));
        Ok((number, wire))
    }

    /// Throws a connection away, unless another is there already.
    pub(super) async fn lost(&self, number: u64) {
        let mut kept = self.wire.lock().await;
        if kept.0 == number {
            kept.1 = None;
        }
    }

    async fn connect(&self) -> Result<Wire, Fault> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limits::STORE_CONNECT))
            .set_response_timeout(Some(limits::STORE_CONNECT));
        let client = match &self.way {
            Way::Cluster(client) => return Ok(Wire::Cluster(client.get_async_connection().await?)),
            Way::One(client) => Client::clone(client),
            Way::Sentinels(sentinels) => sentinels.lock().await.async_get_client().await?,
        };
        Ok(Wire::One(client.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

fn one(url: &str, certificates: Option<TlsCertificates>) -> Result<Way, String> {
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(url, certificates),
        None => Client::open(url),
    };
    Ok(Way::One(Box::new(client.map_err(said)?)))
}

/// `scheme://user:password@host:port,host:port/path`.
struct Parts {
    /// `scheme://user:password@`
    before: String,
    hosts: Vec<(String, u16)>,
    path: String,
}

fn parts(url: &str, port: u16) -> Result<Parts, String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
    let (before, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = hosts.split(',').map(|host| match host.rsplit_once(':') {
        Some((name, number)) if !number.contains(']') => {
            let number = number.parse().map_err(|_| format!("`{number}` is not a port"))?;
            Ok((name.trim_matches(['[', ']']).to_owned(), number))
        }
        _ => Ok((host.trim_matches(['[', ']']).to_owned(), port)),
    });
    let hosts = hosts.collect::<Result<Vec<_>, String>>()?;
    if hosts.iter().any(|(name, _)| name.is_empty()) {
        return Err("a host is missing".to_owned());
    }
    let before = if before.is_empty() { format!("{scheme}://") } else { format!("{scheme}://{before}@") };
    Ok(Parts { before, hosts, path: path.to_owned() })
}

fn cluster(url: &str, certificates: Option<TlsCertificates>) -> Result<Way, String> {
    let Parts { before, hosts, path } = parts(url, REDIS_PORT)?;
    if !path.is_empty() {
        return Err("a cluster has no numbered databases".to_owned());
    }
    let host = |name: &str| if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
    let nodes = hosts.iter().map(|(name, port)| format!("{before}{}:{port}", host(name)));
    let mut builder = ClusterClient::builder(nodes)
        .connection_timeout(limits::STORE_CONNECT)
        .response_timeout(limits::STORE_CONNECT)
        .overall_response_timeout(Some(limits::STORE_CALL));
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    Ok(Way::Cluster(Box::new(builder.build().map_err(said)?)))
}

fn sentinels(url: &str, certificates: Option<TlsCertificates>, password: Option<&str>) -> Result<Way, String> {
    let Parts { before, hosts, path } = parts(url, SENTINEL_PORT)?;
    let (service, database) = path.split_once('/').unwrap_or((&path, "0"));
    if service.is_empty() {
        return Err("the service's name is missing: write redis+sentinel://host:26379,host:26379/name".to_owned());
    }
    let database = database.parse().map_err(|_| format!("`{database}` is not a database's number"))?;
    // Its own parser reads user and password.
    let info = format!("{before}localhost").into_connection_info().map_err(said)?;
    let secure = before.starts_with("rediss");
    let address = |(host, port): (String, u16)| {
        if secure {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    };
    let mut builder = SentinelClientBuilder::new(hosts.into_iter().map(address), service, SentinelServerType::Master)
        .map_err(said)?;
    builder = builder.set_client_to_redis_db(database);
    if secure {
        builder =
            builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    if let Some(user) = info.redis_settings().username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = info.redis_settings().password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(password) = password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    Ok(Way::Sentinels(Box::new(Mutex::new(builder.build().map_err(said)?))))
}

fn said(error: redis::RedisError) -> String {
    error.to_string()
}

impl ConnectionLike for Wire {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(wire) => wire.req_packed_command(command),
            Self::Cluster(wire) => wire.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(wire) => wire.req_packed_commands(pipeline, offset, count),
            Self::Cluster(wire) => wire.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(wire) => wire.get_db(),
            Self::Cluster(wire) => wire.get_db(),
        }
    }
}
