//! The pieces apart: two gateways on one SQLite file, three agents, three `nats-server` with three replicas of
//! everything. Each gateway and agent reaches each server by a connection of its own that can be made bad.

use std::time::Duration;

use flux_runtime::{Shutdown, Tasks};
use flux_testkit::{Api, Disk, FluxCommand, FluxProcess, NatsServer, Process, eventually, free_port};
use tempfile::TempDir;

use crate::{
    history::FaultKind,
    link::{Link, Weather},
    plan::{Fault, Menu, Victim},
    strike::Topology,
};

const GATEWAYS: usize = 2;
const AGENTS: usize = 3;
const SERVERS: usize = 3;
const KEY: &str = "chaos";
/// The links between the pieces look into no certificates, and their servers ask for none.
const PLAIN: (&str, &str) = ("FLUX_DISABLE_MTLS", "true");
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// Each chunk, each way.
const SLOW: Duration = Duration::from_millis(60);

pub(crate) struct Cluster {
    // In the order in which they are to go.
    gateways: Vec<Piece>,
    agents: Vec<Piece>,
    servers: Vec<NatsServer>,
    tasks: Tasks,
    dir: TempDir,
}

/// A process that is started again by the same command.
struct Piece {
    process: FluxProcess,
    program: &'static str,
    args: Vec<String>,
    links: Vec<Link>,
    api: Option<Api>,
}

impl Piece {
    fn start(program: &'static str, args: Vec<String>, links: Vec<Link>, api: Option<Api>) -> Self {
        let process = FluxCommand::new(program).env(PLAIN.0, PLAIN.1).args(&args).spawn();
        Self { process, program, args, links, api }
    }

    fn mend(&mut self) {
        if !self.process.is_running() {
            self.process = FluxCommand::new(self.program).env(PLAIN.0, PLAIN.1).args(&self.args).spawn();
        }
    }
}

impl Cluster {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("flux-chaos-").tempdir()?;
        // Where the tests are root, the user `flux` works in it.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let servers = NatsServer::start_cluster(SERVERS).await;
        let tasks = Tasks::new(Shutdown::new());
        let mut cluster = Self { gateways: Vec::new(), agents: Vec::new(), servers, tasks, dir };
        for n in 0..GATEWAYS {
            let (links, urls) = cluster.links().await?;
            let listen = format!("127.0.0.1:{}", free_port());
            let path = |name: &str| cluster.dir.path().join(name);
            let text = format!(
                "disable_mtls: true\nqueue: {{ url: \"{urls}\", replicas: {SERVERS} }}\nstore: {{ url: \"sqlite://{}\" }}\n\
                 artifacts: {{ dir: {:?} }}\ngateway: {{ listen: \"{listen}\", api_key: {KEY} }}\n",
                path("flux.db").display(),
                path("artifacts"),
            );
            let config = path(&format!("gateway-{n}.yaml"));
            std::fs::write(&config, text)?;
            let args = vec!["--config".to_owned(), config.display().to_string()];
            let api = Api::new(format!("http://{listen}"), KEY);
            cluster.gateways.push(Piece::start("flux-gateway", args, links, Some(api.clone())));
            api.ready(READY_WITHIN).await;
        }
        for n in 0..AGENTS {
            let (links, urls) = cluster.links().await?;
            let id = format!("agent-{n}");
            let work_dir = cluster.dir.path().join(&id).display().to_string();
            let tasks = Self::TASKS.to_string();
            let args = ["--queue-url", &urls, "--id", &id, "--tasks", &tasks, "--work-dir", &work_dir];
            let args = args.map(str::to_owned).to_vec();
            cluster.agents.push(Piece::start("flux-agent", args, links, None));
        }
        let api = cluster.apis().remove(0);
        eventually(READY_WITHIN, "all agents", || async {
            api.get("/agents").await.text().matches("\"online\"").count() == AGENTS
        })
        .await;
        Ok(cluster)
    }

    /// To every server, and the URLs that go by them.
    async fn links(&self) -> std::io::Result<(Vec<Link>, String)> {
        let mut links = Vec::new();
        for server in &self.servers {
            links.push(Link::to(server.port(), &self.tasks).await?);
        }
        let urls: Vec<String> = links.iter().map(|link| format!("nats://127.0.0.1:{}", link.port)).collect();
        Ok((links, urls.join(",")))
    }

    fn piece(&self, victim: Victim) -> Option<&Piece> {
        match victim {
            Victim::Gateway(n) => self.gateways.get(n),
            Victim::Agent(n) | Victim::AgentRoot(n) | Victim::Launcher(n) => self.agents.get(n),
            Victim::Worker | Victim::Nats(_) | Victim::Root => None,
        }
    }
}

impl Topology for Cluster {
    const NAME: &'static str = "cluster";
    const AGENTS: u32 = 3;
    const TASKS: usize = 16;

    fn menu(&self) -> Menu {
        let mut faults = vec![(Fault::Wipe, 2)];
        for n in 0..GATEWAYS {
            faults.extend([(Fault::Kill(Victim::Gateway(n)), 10), (Fault::Pause(Victim::Gateway(n)), 2)]);
        }
        for n in 0..AGENTS {
            faults.extend([
                (Fault::Kill(Victim::Agent(n)), 7),
                (Fault::Kill(Victim::Launcher(n)), 4),
                (Fault::Kill(Victim::AgentRoot(n)), 3),
                (Fault::Pause(Victim::Agent(n)), 2),
            ]);
        }
        for n in 0..SERVERS {
            faults.extend([(Fault::Kill(Victim::Nats(n)), 3), (Fault::Pause(Victim::Nats(n)), 1)]);
        }
        let connected = (0..GATEWAYS).map(Victim::Gateway).chain((0..AGENTS).map(Victim::Agent));
        for victim in connected {
            for kind in [FaultKind::SlowLink, FaultKind::StalledLink, FaultKind::BrokenLink] {
                faults.push((Fault::Link(victim, kind), 1));
            }
        }
        Menu { faults, longest_hold_ms: 4_000, longest_calm_ms: 1_000 }
    }

    fn apis(&self) -> Vec<Api> {
        self.gateways.iter().filter_map(|piece| piece.api.clone()).collect()
    }

    fn queue_urls(&self) -> Vec<String> {
        self.servers.iter().map(NatsServer::url).collect()
    }

    fn queue_options(&self) -> async_nats::ConnectOptions {
        async_nats::ConnectOptions::new()
    }

    fn markers(&self) -> Vec<String> {
        vec![self.dir.path().display().to_string()]
    }

    fn process(&self, victim: Victim) -> Option<Process> {
        let found = match victim {
            Victim::Nats(n) => Process::of(self.servers.get(n)?.pid()),
            Victim::Gateway(_) | Victim::AgentRoot(_) => Process::of(self.piece(victim)?.process.pid()),
            Victim::Agent(_) | Victim::Launcher(_) => {
                let launcher = matches!(victim, Victim::Launcher(_));
                let tree = self.piece(victim)?.process.descendants();
                let part = if launcher { "__launcher" } else { "--queue-url" };
                tree.into_iter().find(|process| process.command.contains(part))
            }
            Victim::Worker | Victim::Root => None,
        };
        found.filter(Process::is_alive)
    }

    fn disk(&self) -> Option<&Disk> {
        None
    }

    fn set_links(&self, victim: Victim, kind: FaultKind) -> bool {
        let weather = match kind {
            FaultKind::SlowLink => Weather::Slow(SLOW),
            FaultKind::StalledLink => Weather::Stalled,
            FaultKind::BrokenLink => Weather::Broken,
            _ => return false,
        };
        self.piece(victim).is_some_and(|piece| {
            piece.links.iter().for_each(|link| link.set(weather));
            true
        })
    }

    fn clear_links(&self) {
        let pieces = self.gateways.iter().chain(&self.agents);
        pieces.flat_map(|piece| &piece.links).for_each(|link| link.set(Weather::Clear));
    }

    async fn wipe(&mut self) {
        self.servers.iter_mut().for_each(NatsServer::wipe_store);
        NatsServer::start_together(&mut self.servers).await;
    }

    async fn mend(&mut self) {
        if self.servers.iter_mut().any(|server| !server.is_running()) {
            NatsServer::start_together(&mut self.servers).await;
        }
        self.gateways.iter_mut().chain(&mut self.agents).for_each(Piece::mend);
    }

    async fn stop(&mut self) {
        for piece in self.agents.iter_mut().chain(&mut self.gateways) {
            piece.process.terminate();
            let status = piece.process.wait_exit(STOPPED_WITHIN).await;
            assert_eq!(status.code(), Some(0), "{} ended with {status}:\n{}", piece.program, piece.process.log());
        }
        self.tasks.shutdown().start_drain();
    }
}
