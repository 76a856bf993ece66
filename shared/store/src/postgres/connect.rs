//! Connections: made with TLS as the URL says, pooled, and thrown away whenever it is not sure what is open on them.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use deadpool::managed::{Manager, Metrics, Pool, RecycleError, RecycleResult};
use flux_protocol::limits;
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::timeout};
use tokio_postgres::{
    Client, Config, NoTls, Statement,
    config::{SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::fault::Fault;
use crate::{
    StoreError, Tuning,
    tls::{self, Check},
    url::{Taken, without_password, wrong},
};

const OWN: &[&str] = &["sslmode", "sslrootcert", "schema", "pool"];
/// An idle connection through something that forgets it is found out by these.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Below [`limits::STORE_CALL`]: what a gateway gave up the server gives up too, and its locks with it.
const STATEMENT_MS: u64 = 4_500;

pub(super) struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// Flux's tables are in a schema of their own.
    pub(super) schema: String,
}

pub(super) struct Server {
    pub(super) pool: Pool<Connector>,
    /// As messages name it.
    pub(super) place: String,
}

/// From a URL to a pool, which connects when it is asked for a connection.
pub(super) fn server(url: &str, tuning: &Tuning) -> Result<Server, StoreError> {
    let taken = Taken::from(url, OWN);
    let bad = |problem: String| wrong(url, problem);
    // Its parser's words repeat parts of the URL, which may be of a password.
    let mut config: Config = taken.url.parse().map_err(|_: tokio_postgres::Error| {
        bad("write postgres://user:password@host:5432/database, with %XX for what is no letter or digit in user and \
             password; of parameters it knows `sslmode`, `sslrootcert`, `schema`, `pool` and those of libpq"
            .to_owned())
    })?;
    let authority = taken.get("sslrootcert").map(Path::new);
    let mode = taken.get("sslmode").unwrap_or("prefer");
    let (mode, check) = match (mode, authority) {
        ("disable", _) => (SslMode::Disable, None),
        ("prefer", _) => (SslMode::Prefer, Some(Check::Nothing)),
        // As libpq does.
        ("require", None) => (SslMode::Require, Some(Check::Nothing)),
        ("require" | "verify-ca", _) => (SslMode::Require, Some(Check::Authority)),
        ("verify-full", _) => (SslMode::Require, Some(Check::Name)),
        (other, _) => {
            return Err(bad(format!(
                "`sslmode` is one of disable, prefer, require, verify-ca and verify-full, and not `{other}`"
            )));
        }
    };
    let tls = check.map(|check| tls::client(check, authority)).transpose().map_err(bad)?;
    config
        .ssl_mode(mode)
        .connect_timeout(limits::STORE_CONNECT)
        .tcp_user_timeout(limits::STORE_CALL)
        .keepalives_idle(KEEPALIVE)
        // After a failover a standby may answer under the primary's name.
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    if config.get_application_name().is_none() {
        config.application_name("flux");
    }
    let schema = taken.name("schema", "flux").map_err(bad)?;
    let most = taken.number("pool", limits::STORE_CONNECTIONS_MOST).map_err(bad)?.unwrap_or(tuning.connections);
    let connector = Connector { config, tls: tls.map(MakeRustlsConnect::new), schema };
    let pool = Pool::builder(connector)
        .max_size(most)
        .queue_mode(deadpool::managed::QueueMode::Lifo)
        .build()
        .map_err(|error| bad(error.to_string()))?;
    Ok(Server { pool, place: without_password(url) })
}

impl Manager for Connector {
    type Type = Session;
    type Error = Fault;

    async fn create(&self) -> Result<Session, Fault> {
        match timeout(limits::STORE_CONNECT, self.connect()).await {
            Ok(session) => session,
            Err(_) => Err(Fault::Away("no connection was made in time".to_owned())),
        }
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<Fault> {
        if session.client.is_closed() || !session.settled.load(Ordering::Acquire) {
            return Err(RecycleError::message("it is lost, or something may be open on it"));
        }
        session.settled.store(false, Ordering::Release);
        Ok(())
    }
}

impl Connector {
    async fn connect(&self) -> Result<Session, Fault> {
        let mut connection = JoinSet::new();
        let client = match &self.tls {
            Some(tls) => {
                let (client, io) = self.config.connect(tls.clone()).await?;
                connection.spawn(async { drop(io.await) });
                client
            }
            None => {
                let (client, io) = self.config.connect(NoTls).await?;
                connection.spawn(async { drop(io.await) });
                client
            }
        };
        // A server that promises less than its own disk is told not to: what is acknowledged survives its end.
        let schema = &self.schema;
        client
            .batch_execute(&format!(
                "SELECT set_config('search_path', '{schema}', false), set_config('statement_timeout', '{STATEMENT_MS}', false),
                        set_config('idle_in_transaction_session_timeout', '{STATEMENT_MS}', false);
                 SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
            ))
            .await?;
        Ok(Session {
            client,
            statements: Mutex::new(HashMap::new()),
            settled: AtomicBool::new(false),
            _connection: connection,
        })
    }
}

/// A connection, with the statements that it has prepared.
pub(super) struct Session {
    pub(super) client: Client,
    statements: Mutex<HashMap<String, Statement>>,
    /// Nothing is open on it. False while it is used: an attempt that was cut off leaves it so, and it is thrown away.
    settled: AtomicBool,
    /// Its socket; closed when this is dropped, whatever is still awaited on it.
    _connection: JoinSet<()>,
}

impl Session {
    /// It is thrown away, whatever is open on it.
    pub(super) fn unsettle(&self) {
        self.settled.store(false, Ordering::Release);
    }

    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// Prepares once. The texts are few, so the map stays small.
    pub(super) async fn prepared(&self, sql: &str) -> Result<Statement, Fault> {
        if let Some(statement) = self.statements.lock().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}
