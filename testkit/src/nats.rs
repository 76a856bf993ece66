//! A `nats-server` of a test's own, with JetStream, that can be killed, stopped and started again.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{locate, log::Log, port::free_port, process::Server, wait::eventually_some};

/// A cluster chooses its leader in up to ten of them, on a machine that has time.
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// One try of it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// The largest message, as the product sets it (`flux_protocol::limits::MESSAGE`).
const MAX_PAYLOAD: usize = 8 * 1024 * 1024;
/// A port that only root may listen on, and nobody does.
const NOWHERE: &str = "127.0.0.1:1";

/// A `nats-server` on a port of 127.0.0.1 and in a directory of its own. Dropping it kills it and removes both.
#[derive(Debug)]
pub struct NatsServer {
    dir: TempDir,
    port: u16,
    server: Server,
    log: Log,
    /// What its clients show, where it takes certificates alone.
    tls: Option<rustls::ClientConfig>,
    /// The lines that make it one of a cluster.
    cluster: String,
}

impl NatsServer {
    /// A server with JetStream that has answered on it.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same, with further lines of its configuration (`jetstream`, `listen`, `max_payload` are given).
    pub async fn start_with(configuration: &str) -> Self {
        let mut server = Self::prepare(configuration);
        server.launch().await;
        server
    }

    /// One that takes certificates alone, as further lines of its configuration say. `tls` is what [`NatsServer::client`]
    /// shows: an identity that JetStream answers.
    pub async fn start_secure(configuration: &str, tls: rustls::ClientConfig) -> Self {
        let mut server = Self::prepare(configuration);
        server.tls = Some(tls);
        server.launch().await;
        server
    }

    /// Has it read other further lines of its configuration, which it does while it goes on.
    pub fn reload(&self, configuration: &str) {
        self.write_configuration(configuration);
        self.server.signal(Signal::SIGHUP);
    }

    /// Several that are one cluster, so that streams can have as many replicas. They tell clients of no other server than
    /// the one that was connected to.
    pub async fn start_cluster(size: usize) -> Vec<Self> {
        Self::start_cluster_of(size, "", None).await
    }

    /// The same of servers that take certificates alone, as [`NatsServer::start_secure`].
    pub async fn start_secure_cluster(size: usize, configuration: &str, tls: rustls::ClientConfig) -> Vec<Self> {
        Self::start_cluster_of(size, configuration, Some(tls)).await
    }

    /// Several that listen for each other on `ports`, where each goes to the others by its own `ways` alone: ports of somebody who
    /// stands between.
    pub async fn start_cluster_over(ports: &[u16], ways: &[Vec<u16>]) -> Vec<Self> {
        // They tell each other where they are, and would find a way past.
        let nowhere = format!(", advertise: \"{NOWHERE}\"");
        let servers = ports.iter().zip(ways);
        let servers = servers.map(|(port, ways)| Self::prepare_one_of(cluster(*port, ways, &nowhere), ""));
        let mut servers: Vec<Self> = servers.collect();
        Self::start_together(&mut servers).await;
        servers
    }

    async fn start_cluster_of(size: usize, further: &str, tls: Option<rustls::ClientConfig>) -> Vec<Self> {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let servers = ports.iter().map(|port| Self::prepare_one_of(cluster(*port, &ports, ""), further));
        let mut servers: Vec<Self> = servers.collect();
        servers.iter_mut().for_each(|server| server.tls.clone_from(&tls));
        Self::start_together(&mut servers).await;
        servers
    }

    /// Starts those of a cluster that are down. None is ready before most of them run.
    pub async fn start_together(servers: &mut [Self]) {
        for server in &mut *servers {
            if !server.is_running() {
                server.spawn();
            }
        }
        for server in servers {
            server.until_ready().await;
        }
    }

    fn prepare(configuration: &str) -> Self {
        Self::prepare_one_of(String::new(), configuration)
    }

    fn prepare_one_of(cluster: String, configuration: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("flux-nats-").tempdir().expect("cannot make a temporary directory");
        let port = free_port();
        let log = Log::new("nats-server", dir.path().join("nats.log"));
        let server = Self { dir, port, server: Server::new("nats-server"), log, tls: None, cluster };
        server.write_configuration(configuration);
        server
    }

    fn write_configuration(&self, configuration: &str) {
        let (port, store, cluster) = (self.port, self.store_dir(), &self.cluster);
        // Streams reserve their max_bytes, so the limits are what the product's streams add up to and more; the
        // disk is used only as far as messages are stored.
        let name = self.name();
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: \"{name}\"\nmax_payload: {MAX_PAYLOAD}\n\
             jetstream {{ store_dir: {store:?}, max_memory_store: 4GB, max_file_store: 64GB }}\n{cluster}{configuration}\n"
        );
        std::fs::write(self.dir.path().join("nats.conf"), text).expect("cannot write nats-server's configuration");
    }

    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it calls itself.
    pub fn name(&self) -> String {
        format!("testkit-{}", self.port)
    }

    /// Where it keeps its streams.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Its process. Panics while it is down.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// A client that is connected, and connects again by itself.
    pub async fn client(&self) -> async_nats::Client {
        connect(&self.url(), self.tls.as_ref())
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", self.url()))
    }

    /// SIGKILL: it is gone when this returns, its store is not.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    /// SIGTERM, and waits for its end: a server that was stopped in order.
    pub async fn stop(&mut self) {
        self.server.stop(Signal::SIGTERM, STOPPED_WITHIN).await;
    }

    /// Starts it again, on the same port and store, stopping it first if it runs. Ready when this returns.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.launch().await;
    }

    /// SIGSTOP: connections stay open and nothing answers, like a network that swallows packets.
    pub fn pause(&self) {
        self.server.pause();
    }

    pub fn resume(&self) {
        self.server.signal(Signal::SIGCONT);
    }

    /// Kills it and removes all that it stored: a disk that was lost. [`NatsServer::restart`] then gives an empty server.
    pub fn wipe_store(&mut self) {
        self.kill9();
        match std::fs::remove_dir_all(self.store_dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("cannot remove the store: {error}"),
            _ => {}
        }
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    async fn launch(&mut self) {
        self.spawn();
        self.until_ready().await;
    }

    fn spawn(&mut self) {
        let mut command = Command::new(locate::nats_server());
        command.arg("--config").arg(self.dir.path().join("nats.conf"));
        command.stdin(Stdio::null()).stdout(self.log.writer()).stderr(self.log.writer());
        self.server.spawn(&mut command);
    }

    async fn until_ready(&mut self) {
        let url = self.url();
        eventually_some(READY_WITHIN, format!("JetStream to answer on {url}"), || {
            self.server.assert_up(&self.log);
            jetstream_answers(&url, self.tls.as_ref())
        })
        .await;
    }

    /// The directory of its configuration, store and log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill9();
        self.log.show_if_panicking();
    }
}

/// The lines of one that others of its cluster reach at `port`.
fn cluster(port: u16, ways: &[u16], further: &str) -> String {
    let routes: Vec<String> = ways.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
    let routes = routes.join(", ");
    format!(
        "cluster {{ name: testkit, listen: \"127.0.0.1:{port}\", routes: [{routes}], no_advertise: true{further} }}\n"
    )
}

async fn connect(
    url: &str,
    tls: Option<&rustls::ClientConfig>,
) -> Result<async_nats::Client, async_nats::ConnectError> {
    let mut options = async_nats::ConnectOptions::new();
    if let Some(tls) = tls {
        options = options.tls_client_config(tls.clone()).require_tls(true);
    }
    options.connect(url).await
}

async fn jetstream_answers(url: &str, tls: Option<&rustls::ClientConfig>) -> Option<()> {
    let client = connect(url, tls).await.ok()?;
    // A server that has not found its cluster's leader yet does not answer at all, and a client waits for ten seconds.
    tokio::time::timeout(ANSWERS_WITHIN, async_nats::jetstream::new(client).query_account())
        .await
        .ok()?
        .ok()
        .map(|_| ())
}
