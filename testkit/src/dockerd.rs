//! A Docker daemon of a test's own: its data, its sockets and its containers in one directory, none of them anybody else's.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    query_parameters::{CreateImageOptionsBuilder, ListContainersOptionsBuilder},
};
use futures::StreamExt as _;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    log::Log,
    process::Running,
    process_tree::processes_matching,
    wait::{eventually, eventually_some},
};

const SOON: Duration = Duration::from_secs(60);

/// A running `dockerd`, without a network of its own where it was not asked for: containers have `network: none`, or none that leads
/// anywhere. Dropped, it is
/// stopped, and everything that it started and mounted is gone.
#[derive(Debug)]
pub struct Dockerd {
    running: Option<Running>,
    bridged: bool,
    log: Log,
    dir: TempDir,
}

impl Dockerd {
    /// The image that every daemon has: this machine's own python3, node and bash.
    pub const IMAGE: &str = "flux-test:1";
    /// This machine, as containers see it on a bridge.
    pub const GATEWAY: &str = "10.231.77.1";

    /// Starts one, and imports [`Dockerd::IMAGE`] into it.
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// The same with a bridge, whose name is every Docker's: for a thread that is in a network namespace of its own. Nothing is
    /// forwarded from it.
    pub async fn start_with_bridge() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(bridged: bool) -> Self {
        // containerd's sockets are below it, and a socket's path is short.
        let dir = tempfile::Builder::new().prefix("flux-dk-").tempdir_in("/tmp").expect("cannot make a directory");
        let log = Log::new("dockerd", dir.path().join("log"));
        let mut dockerd = Self { running: None, bridged, log, dir };
        dockerd.restart().await;
        dockerd.import().await;
        dockerd
    }

    /// Starts it again on the same data, after [`Dockerd::kill9`].
    pub async fn restart(&mut self) {
        let program = ["/usr/sbin/dockerd", "/usr/bin/dockerd", "/usr/local/bin/dockerd"];
        let program = program.iter().map(Path::new).find(|path| path.exists()).expect(
            "there is no dockerd: `scripts/setup.sh test` installs Debian's docker.io; a test of containers does not pass without one",
        );
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let mut command = Command::new(program);
        command.args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")]);
        command.args(["--host", &format!("unix://{}", at("sock")), "--log-level", "error"]);
        let bip = format!("{}/24", Self::GATEWAY);
        command.args(if self.bridged { ["--bip", &bip] } else { ["--bridge", "none"] });
        for off in ["iptables", "ip6tables", "ip-forward", "ip-masq", "userland-proxy"] {
            command.arg(format!("--{off}=false"));
        }
        let _ = std::fs::remove_file(self.dir.path().join("pid"));
        let _ = std::fs::remove_file(self.socket());
        command.stdin(std::process::Stdio::null()).stdout(self.log.writer()).stderr(self.log.writer());
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let running = self.running.insert(Running::new(child));
        let socket = self.dir.path().join("sock");
        let log = &self.log;
        eventually_some(SOON, "dockerd to answer", || {
            let ended = running.exited();
            let socket = socket.clone();
            async move {
                if let Some(status) = ended {
                    panic!("dockerd ended with {status}; containers cannot be tested on this machine:\n{}", log.tail());
                }
                connect(&socket).await
            }
        })
        .await;
    }

    /// A configuration file for a Flux that is to use this one.
    pub fn flux_config(&self) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("cannot make a file");
        let config = serde_json::json!({ "agent": { "container": { "socket": self.socket(), "pull": "never" } } });
        std::fs::write(file.path(), config.to_string()).expect("cannot write a configuration");
        file
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub async fn docker(&self) -> Docker {
        connect(&self.socket()).await.expect("dockerd answers")
    }

    /// SIGKILL, as if it crashed: its containers run on, as Docker's do.
    pub fn kill9(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill9();
        }
        // Its containerd goes with it, sooner or later: a daemon that starts meanwhile would wait for it.
        for process in processes_matching(&self.marker()) {
            if process.command.contains("containerd.toml") {
                process.kill9();
            }
        }
        let _ = std::fs::remove_file(self.dir.path().join("exec/containerd/containerd.pid"));
    }

    /// Names of the containers that it has, whether they run or not.
    pub async fn containers(&self) -> Vec<String> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let listed = self.docker().await.list_containers(Some(options)).await.expect("dockerd answers");
        let name = |names: Option<Vec<String>>| names.unwrap_or_default().concat().trim_start_matches('/').to_owned();
        listed.into_iter().map(|container| name(container.names)).collect()
    }

    /// Waits until it has none.
    pub async fn until_empty(&self) {
        eventually(SOON, "no container to be left", || async { self.containers().await.is_empty() }).await;
    }

    async fn import(&self) {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a checkout");
        // Beside what cargo built, where it is made once.
        let target = std::env::current_exe().expect("the running test");
        let target = target.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).unwrap_or(checkout);
        let tar = target.join("test-image.tar");
        let made = Command::new(checkout.join("scripts/test-image.sh")).arg(&tar).status();
        assert!(made.expect("scripts/test-image.sh runs").success(), "the test image could not be made");
        let (repository, tag) = Self::IMAGE.split_once(':').expect("a tag");
        let options = CreateImageOptionsBuilder::new().from_src("-").repo(repository).tag(tag).build();
        let root = bollard::body_full(std::fs::read(&tar).expect("the test image").into());
        let docker = self.docker().await;
        let mut importing = std::pin::pin!(docker.create_image(Some(options), Some(root), None));
        while let Some(step) = importing.next().await {
            let step = step.expect("the image is imported");
            assert!(step.error_detail.is_none(), "the image was not imported: {step:?}");
        }
    }

    fn marker(&self) -> String {
        self.dir.path().display().to_string()
    }
}

async fn connect(socket: &Path) -> Option<Docker> {
    let docker = Docker::connect_with_unix(&socket.to_string_lossy(), SOON.as_secs(), API_DEFAULT_VERSION).ok()?;
    docker.negotiate_version().await.ok()
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It stops its containers, and unmounts what it mounted.
            running.signal(Signal::SIGTERM);
            let until = std::time::Instant::now() + Duration::from_secs(15);
            while running.exited().is_none() && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // A crashed one's containers, and containerd.
        for process in processes_matching(&self.marker()) {
            process.kill9();
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mounted in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if mounted.starts_with(&self.marker()) {
                let _ = nix::mount::umount2(mounted, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        self.log.show_if_panicking();
    }
}
