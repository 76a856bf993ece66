//! A `rabbitmq-server` of a test's own, that can be killed, stopped and started again. It has its own port mapper (`epmd`),
//! which other Erlang nodes of this machine know nothing of.
//!
//! Erlang takes some seconds to start, so a test binary starts one and gives each test a namespace.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    locate,
    log::Log,
    port::free_port,
    process::{Running, Server},
    wait::eventually_some,
};

/// On a machine that is busy with much else.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// Where certificates are, for a server that takes nothing else: `ca.pem`, `server.pem` and `server.key`.
#[derive(Debug, Clone)]
pub struct RabbitTls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A `rabbitmq-server` on a port of 127.0.0.1 and in a directory of its own. Dropping it kills it and removes both.
#[derive(Debug)]
pub struct RabbitServer {
    dir: TempDir,
    port: u16,
    distribution: u16,
    mapper: u16,
    epmd: Option<Running>,
    /// None while it is down.
    server: Server,
    log: Log,
    secure: bool,
}

impl RabbitServer {
    /// A server that has answered.
    pub async fn start() -> Self {
        let mut server = Self::prepare("", false);
        server.launch().await;
        server
    }

    /// One that takes certificates alone, on a TLS port; who somebody is, is the common name. `configuration` are further lines.
    pub async fn start_secure(tls: &RabbitTls, configuration: &str) -> Self {
        let (ca, certificate, key) = (tls.ca.display(), tls.certificate.display(), tls.key.display());
        let configuration = format!(
            "ssl_options.cacertfile = {ca}\nssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\n\
             ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n\
             auth_mechanisms.1 = EXTERNAL\n{configuration}"
        );
        let mut server = Self::prepare(&configuration, true);
        server.launch().await;
        server
    }

    fn prepare(configuration: &str, secure: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("flux-rabbit-").tempdir().expect("cannot make a temporary directory");
        let (port, distribution, mapper) = (free_port(), free_port(), free_port());
        let listen = if secure {
            format!("listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\n")
        } else {
            format!("listeners.tcp.1 = 127.0.0.1:{port}\n")
        };
        // Free disk is for the machine's owner to watch; a test's server would refuse everything.
        let text = format!(
            "{listen}log.file = false\nlog.console = true\nlog.console.level = warning\ndisk_free_limit.absolute = 1MB\n\
             {configuration}\n"
        );
        let plugins = if secure { "[rabbitmq_auth_mechanism_ssl]." } else { "[]." };
        std::fs::write(dir.path().join("rabbitmq.conf"), text).expect("cannot write RabbitMQ's configuration");
        std::fs::write(dir.path().join("plugins"), plugins).expect("cannot write RabbitMQ's list of plugins");
        let log = Log::new("rabbitmq-server", dir.path().join("rabbitmq.log"));
        Self { dir, port, distribution, mapper, epmd: None, server: Server::new("rabbitmq-server"), log, secure }
    }

    /// With the user that a new server has.
    pub fn url(&self) -> String {
        if self.secure {
            format!("amqps://localhost:{}", self.port)
        } else {
            format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    /// Its process. Panics while it is down.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// Waits until the server's own directories name these queues, and its streams. RabbitMQ 3.10 writes them seconds after a queue was
    /// made: killed before, it forgets that it has it.
    pub async fn until_it_remembers(&self, queues: &[&str]) {
        let node = format!("flux-{}@127.0.0.1", self.port);
        let store = self.dir.path().join("store").join(&node);
        let holds = |part: &str, name: &str| {
            let directory = std::fs::read(store.join(part).join(&node).join("names.dets")).unwrap_or_default();
            directory.windows(name.len()).any(|window| window == name.as_bytes())
        };
        let all =
            || holds("coordination", "rabbit_stream_coordinator") && queues.iter().all(|queue| holds("quorum", queue));
        crate::wait::eventually(READY_WITHIN, "RabbitMQ to write down what it has", || std::future::ready(all())).await;
    }

    /// SIGKILL: it is gone when this returns, what it stored is not.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    /// Kills it and removes all that it stored: a disk that was lost. [`RabbitServer::restart`] then gives an empty server.
    pub fn wipe_store(&mut self) {
        self.kill9();
        match std::fs::remove_dir_all(self.dir.path().join("store")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("cannot remove the store: {error}"),
            _ => {}
        }
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

    /// Publishes as a producer does who knows nothing of Flux, and waits until it is stored.
    pub async fn publish(&self, exchange: &str, key: &str, properties: lapin::BasicProperties, body: &[u8]) {
        let published = async {
            let properties_of_connection = lapin::ConnectionProperties::default();
            let connection = lapin::Connection::connect(&self.url(), properties_of_connection).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await?;
            let options = lapin::options::BasicPublishOptions::default();
            let confirm = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await?;
            connection.close(200, "done".into()).await?;
            Ok::<_, lapin::Error>(confirm)
        };
        let confirm = published.await.unwrap_or_else(|error| panic!("cannot publish to {exchange}: {error}"));
        assert!(confirm.is_ack(), "the queue refused it");
    }

    /// One message of a queue, for good.
    pub async fn take(&self, queue: &str) -> Option<lapin::message::BasicGetMessage> {
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(&self.url(), properties).await.ok()?;
        let channel = connection.create_channel().await.ok()?;
        let message = channel.basic_get(queue.into(), lapin::options::BasicGetOptions { no_ack: true }).await.ok()?;
        let _ = connection.close(200, "done".into()).await;
        message
    }

    /// `rabbitmqctl`, which is a node of its own and takes seconds. What it printed.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command("rabbitmqctl");
        command.arg("--longnames").args(arguments).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it does not panic");
        let output = output.expect("cannot start rabbitmqctl");
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// The directory of its configuration, store and log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    async fn launch(&mut self) {
        if self.epmd.as_mut().is_none_or(|epmd| epmd.exited().is_some()) {
            let child = Command::new(locate::epmd())
                .args(["-port", &self.mapper.to_string(), "-address", "127.0.0.1", "-relaxed_command_check"])
                .stdin(Stdio::null())
                .stdout(self.log.writer())
                .stderr(self.log.writer())
                .spawn()
                .expect("cannot start epmd");
            self.epmd = Some(Running::new(child));
        }
        let mut command = self.command("rabbitmq-server");
        command.stdin(Stdio::null()).stdout(self.log.writer()).stderr(self.log.writer());
        self.server.spawn(&mut command);
        let address = ("127.0.0.1", self.port);
        eventually_some(READY_WITHIN, format!("RabbitMQ to listen on {address:?}"), || {
            self.server.assert_up(&self.log);
            async move { tokio::net::TcpStream::connect(address).await.ok().map(drop) }
        })
        .await;
    }

    fn command(&self, name: &str) -> Command {
        let dir = self.dir.path();
        let mut command = Command::new(locate::rabbitmq(name));
        let paths: [(&str, PathBuf); 7] = [
            // Of the cookie by which nodes know each other.
            ("HOME", dir.to_owned()),
            ("RABBITMQ_MNESIA_BASE", dir.join("store")),
            ("RABBITMQ_LOG_BASE", dir.join("log")),
            ("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("plugins")),
            ("RABBITMQ_PID_FILE", dir.join("pid")),
            // Else the machine's own settings are read.
            ("RABBITMQ_CONF_ENV_FILE", dir.join("none")),
        ];
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RABBITMQ_")) {
            command.env_remove(name);
        }
        command
            .envs(paths)
            .env("ERL_EPMD_PORT", self.mapper.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("flux-{}@127.0.0.1", self.port))
            .env("RABBITMQ_USE_LONGNAME", "true")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            // The shell is replaced by Erlang, so that signals reach it.
            .env("RABBITMQ_ALLOW_INPUT", OsString::from("1"))
            // One scheduler that does not spin: tests share two cores.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-noinput +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none");
        command
    }
}

impl Drop for RabbitServer {
    fn drop(&mut self) {
        self.kill9();
        self.log.show_if_panicking();
    }
}
