//! Redis servers of a test's own: one, a cluster, or one with replicas that sentinels watch.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{log::Log, port::free_port, process::Server, wait::eventually};

const SOON: Duration = Duration::from_secs(60);
/// Slots of a cluster, which Redis fixes.
const SLOTS: usize = 16_384;

/// A `redis-server` on a port of 127.0.0.1 and in a directory of its own, with an append-only file. Dropping it kills it and
/// removes both.
#[derive(Debug)]
pub struct RedisServer {
    dir: TempDir,
    port: u16,
    sentinel: bool,
    password: Option<String>,
    /// None while it is down.
    server: Server,
    log: Log,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with further lines of its configuration.
    pub async fn start_with(configuration: &str) -> Self {
        let mut server = Self::prepare(false, configuration);
        server.launch().await;
        server
    }

    /// Several that are one cluster, each with its share of the slots.
    pub async fn start_cluster(size: usize) -> Vec<Self> {
        let mut servers = Vec::new();
        for _ in 0..size {
            let bus = free_port();
            let configuration = format!(
                "cluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 2000\ncluster-config-file nodes.conf"
            );
            servers.push((Self::start_with(&configuration).await, bus));
        }
        for (number, (server, _)) in servers.iter().enumerate() {
            let (from, to) = (SLOTS * number / size, SLOTS * (number + 1) / size - 1);
            server.cli(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
            for (other, bus) in &servers {
                server.cli(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), &bus.to_string()]);
            }
        }
        for (server, _) in &servers {
            eventually(SOON, "the cluster to be whole", || {
                let info = server.cli(&["CLUSTER", "INFO"]);
                let known = format!("cluster_known_nodes:{size}");
                std::future::ready(info.contains("cluster_state:ok") && info.contains(&known))
            })
            .await;
        }
        servers.into_iter().map(|(server, _)| server).collect()
    }

    /// A server that copies all of another's data.
    pub async fn start_replica(of: &Self) -> Self {
        let replica = Self::start_with(&format!("replicaof 127.0.0.1 {}", of.port)).await;
        eventually(SOON, "the replica to be in step", || {
            std::future::ready(replica.cli(&["INFO", "replication"]).contains("master_link_status:up"))
        })
        .await;
        replica
    }

    /// A sentinel that watches `primary` under the name `flux`, and promotes a replica when `quorum` of them miss it.
    pub async fn start_sentinel(primary: &Self, quorum: usize) -> Self {
        let port = primary.port;
        let mut sentinel = Self::prepare(
            true,
            &format!(
                "sentinel monitor flux 127.0.0.1 {port} {quorum}\nsentinel down-after-milliseconds flux 1000\n\
                 sentinel failover-timeout flux 5000"
            ),
        );
        sentinel.launch().await;
        sentinel
    }

    fn prepare(sentinel: bool, configuration: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("flux-redis-").tempdir_in("/tmp").expect("cannot make a directory");
        let port = free_port();
        let log = Log::new("redis-server", dir.path().join("redis.log"));
        let own = if sentinel { "" } else { "appendonly yes\nsave \"\"\n" };
        let password = configuration.lines().find_map(|line| line.strip_prefix("requirepass ")).map(str::to_owned);
        let text = format!("bind 127.0.0.1\nport {port}\ndir {}\n{own}{configuration}\n", dir.path().display());
        std::fs::write(dir.path().join("redis.conf"), text).expect("cannot write Redis's configuration");
        Self { dir, port, sentinel, password, server: Server::new("redis-server"), log }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a command by `redis-cli`; what it printed.
    pub fn cli(&self, command: &[&str]) -> String {
        let output = self.command_line(command).output().expect("cannot start redis-cli: is redis-tools installed?");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn command_line(&self, command: &[&str]) -> Command {
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).stdin(Stdio::null());
        if let Some(password) = &self.password {
            cli.args(["--no-auth-warning", "-a", password]);
        }
        cli.args(command);
        cli
    }

    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    /// Its process. Panics while it is down.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// SIGKILL: it is gone when this returns, its files are not.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    /// Stops it in order.
    pub async fn stop(&mut self) {
        self.server.stop(Signal::SIGTERM, SOON).await;
    }

    /// Starts it again on the same port and files.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.launch().await;
    }

    /// SIGSTOP: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.server.pause();
    }

    pub fn resume(&self) {
        self.server.signal(Signal::SIGCONT);
    }

    async fn launch(&mut self) {
        let mut command = Command::new("redis-server");
        command.arg(self.dir.path().join("redis.conf"));
        if self.sentinel {
            command.arg("--sentinel");
        }
        command.stdin(Stdio::null()).stdout(self.log.writer()).stderr(self.log.writer());
        self.server.spawn(&mut command);
        eventually(SOON, format!("Redis to answer on port {}", self.port), || {
            self.server.assert_up(&self.log);
            std::future::ready(self.cli(&["PING"]) == "PONG")
        })
        .await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill9();
        self.log.show_if_panicking();
    }
}
