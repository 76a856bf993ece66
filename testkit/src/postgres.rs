//! A PostgreSQL of a test's own, that can be killed, stopped and started again.

use std::{
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::Signal,
    unistd::{Uid, User, chown},
};
use tempfile::TempDir;

use crate::{
    log::Log,
    port::free_port,
    process::Server,
    process_tree::{Process, descendants},
    wait::eventually,
};

const SOON: Duration = Duration::from_secs(60);
const USER: &str = "flux";

/// A server on a port of 127.0.0.1 and in a directory of its own. Dropping it stops it and removes both. It does not sync
/// its files, unless a test says so: what the death of its processes leaves is as it would be.
#[derive(Debug)]
pub struct PostgresServer {
    dir: TempDir,
    port: u16,
    /// None while it is down.
    server: Server,
    log: Log,
    owner: Option<User>,
}

impl PostgresServer {
    pub async fn start() -> Self {
        Self::start_with("", &[]).await
    }

    /// The same with further lines of its configuration, and with files in its data directory, which it alone can read.
    pub async fn start_with(configuration: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("flux-pg-").tempdir_in("/tmp").expect("cannot make a directory");
        // PostgreSQL refuses to be root.
        let owner = Uid::effective().is_root().then(|| {
            let found = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
            found.expect("there is neither a user postgres nor nobody")
        });
        let log = Log::new("postgres", dir.path().join("postgres.log"));
        let mut server = Self { dir, port: free_port(), server: Server::new("postgres"), log, owner };
        server.give(server.dir.path());
        server.initialise();
        let port = server.port;
        let settings = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nfsync = off\n\
             max_connections = 200\nshared_buffers = 64MB\nlog_min_messages = warning\n{configuration}\n"
        );
        server.write("postgresql.auto.conf", &settings);
        for (name, content) in files {
            server.write(name, content);
        }
        server.launch().await;
        server
    }

    /// `postgres://…` of the database that is there.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs SQL by `psql`; what it printed, without headers.
    pub fn sql(&self, sql: &str) -> String {
        let output = self
            .command("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", sql])
            .output()
            .expect("cannot start psql");
        assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    /// Its process. Panics while it is down.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// SIGKILL, to all of its processes at once.
    pub fn kill9(&mut self) {
        if self.server.is_running() {
            let workers = descendants(self.server.pid());
            self.server.kill9();
            workers.iter().for_each(Process::kill9);
        }
    }

    /// Stops it in order, without waiting for those who are connected.
    pub async fn stop(&mut self) {
        self.server.stop(Signal::SIGINT, SOON).await;
    }

    /// Starts it again on the same port and data, after [`PostgresServer::kill9`] or [`PostgresServer::stop`].
    pub async fn restart(&mut self) {
        self.stop().await;
        self.launch().await;
    }

    /// SIGSTOP, to all of its processes: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.server.pause();
        descendants(self.server.pid()).iter().for_each(Process::pause);
    }

    pub fn resume(&self) {
        descendants(self.server.pid()).iter().for_each(Process::resume);
        self.server.signal(Signal::SIGCONT);
    }

    fn initialise(&self) {
        let output = self
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username", USER, "-D"])
            .arg(self.data_dir())
            .output()
            .expect("cannot start initdb");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    }

    async fn launch(&mut self) {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data_dir());
        command.stdin(Stdio::null()).stdout(self.log.writer()).stderr(self.log.writer());
        self.server.spawn(&mut command);
        let port = self.port.to_string();
        eventually(SOON, format!("postgres to answer on port {port}"), || {
            self.server.assert_up(&self.log);
            let mut ready = self.command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &port]);
            std::future::ready(ready.status().is_ok_and(|status| status.success()))
        })
        .await;
    }

    /// One of its programs, as the user that it runs as.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        command.current_dir(self.dir.path());
        command
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.data_dir().join(name);
        std::fs::write(&path, content).expect("cannot write a file of postgres");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        self.give(&path);
    }

    fn give(&self, path: &Path) {
        if let Some(owner) = &self.owner {
            chown(path, Some(owner.uid), Some(owner.gid)).expect("cannot give a file to postgres");
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill9();
        self.log.show_if_panicking();
    }
}

/// Debian keeps them apart, by version.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.exists());
    found.pop().or_else(on_path).unwrap_or_else(|| {
        panic!("there is no `{name}`: `scripts/setup.sh test` installs Debian's postgresql; a test of it does not pass without")
    })
}
