//! The pieces apart: two gateways and three agents, on a queue and a store of some engine. Each gateway and agent reaches each
//! server by a connection of its own that can be made bad, and has a wall clock of its own that can be set: what it starts is
//! loaded with Debian's `libfaketime`.

use std::{path::PathBuf, time::Duration};

use flux_runtime::{Shutdown, Tasks};
use flux_testkit::{Api, Disk, FluxCommand, FluxProcess, Process, eventually, free_port};
use tempfile::TempDir;

use crate::{
    engines::{Engines, Queue, Store},
    history::FaultKind,
    link::{Link, Ways, Weather},
    plan::{Cut, Far, Fault, Menu, Victim},
    producer::Producer,
    strike::Topology,
};

const GATEWAYS: usize = 2;
const AGENTS: usize = 3;
const KEY: &str = "chaos";
/// The links between the pieces look into no certificates, and their servers ask for none.
const PLAIN: (&str, &str) = ("FLUX_DISABLE_MTLS", "true");
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// It must be there; `scripts/setup.sh chaos` installs it.
const FAKE_TIME: &str = "/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1";
/// Each chunk, each way.
const SLOW: Duration = Duration::from_millis(60);

pub(crate) struct Cluster {
    // In the order in which they are to go.
    gateways: Vec<Piece>,
    agents: Vec<Piece>,
    engines: Engines,
    queue: Queue,
    store: Store,
    tasks: Tasks,
    dir: TempDir,
}

/// A process that is started again by the same command.
struct Piece {
    process: FluxProcess,
    program: &'static str,
    args: Vec<String>,
    links: Links,
    clock: Clock,
    api: Option<Api>,
}

/// Its connections.
struct Links {
    queue: Vec<Link>,
    store: Option<Link>,
}

impl Links {
    fn to(&self, far: Far) -> impl Iterator<Item = &Link> {
        let queue = self.queue.iter().filter(move |_| far == Far::Queue);
        queue.chain(self.store.iter().filter(move |_| far == Far::Store))
    }
}

impl Piece {
    fn start(program: &'static str, args: Vec<String>, links: Links, clock: Clock, api: Option<Api>) -> Self {
        let process = clock.command(program).args(&args).spawn();
        Self { process, program, args, links, clock, api }
    }

    /// Whether it had ended.
    fn mend(&mut self) -> bool {
        let ended = !self.process.is_running();
        if ended {
            self.process = self.clock.command(self.program).args(&self.args).spawn();
        }
        ended
    }
}

/// The wall clock of one piece: a file that says how far off it is.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    fn new(file: PathBuf) -> anyhow::Result<Self> {
        let library = PathBuf::from(FAKE_TIME.replace("{arch}", std::env::consts::ARCH));
        anyhow::ensure!(library.exists(), "{} is missing: run `scripts/setup.sh chaos`", library.display());
        let clock = Self { library, file };
        clock.set(0);
        std::fs::set_permissions(&clock.file, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(clock)
    }

    fn command(&self, program: &str) -> FluxCommand {
        FluxCommand::new(program)
            .env(PLAIN.0, PLAIN.1)
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_CACHE_DURATION", "1")
            // Waiting goes by a clock that nothing steps, as on a real machine.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    fn set(&self, seconds: i64) {
        // In one step: a reader finds the old or the new.
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).expect("the clock's file");
        std::fs::rename(&next, &self.file).expect("the clock's file");
    }
}

impl Cluster {
    pub(crate) async fn start(engines: Engines) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("flux-chaos-").tempdir()?;
        // Where the tests are root, the user `flux` works in it.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let tasks = Tasks::new(Shutdown::new());
        let (queue, store) = engines.start(&tasks).await?;
        let mut cluster = Self { gateways: Vec::new(), agents: Vec::new(), engines, queue, store, tasks, dir };
        for n in 0..GATEWAYS {
            let (queue, urls) = cluster.queue.links(&cluster.tasks).await?;
            let (store, store_url) = cluster.store.link(cluster.dir.path(), &cluster.tasks).await?;
            let links = Links { queue, store };
            let replicas = cluster.queue.replicas();
            let listen = format!("127.0.0.1:{}", free_port());
            let path = |name: &str| cluster.dir.path().join(name);
            let text = format!(
                "disable_mtls: true\nqueue: {{ url: \"{urls}\", replicas: {replicas} }}\nstore: {{ url: \"{store_url}\" }}\n\
                 artifacts: {{ dir: {:?} }}\ngateway: {{ listen: \"{listen}\", api_key: {KEY} }}\n",
                path("artifacts"),
            );
            let config = path(&format!("gateway-{n}.yaml"));
            std::fs::write(&config, text)?;
            let args = vec!["--config".to_owned(), config.display().to_string()];
            let api = Api::new(format!("http://{listen}"), KEY);
            let clock = Clock::new(path(&format!("gateway-{n}.clock")))?;
            cluster.gateways.push(Piece::start("flux-gateway", args, links, clock, Some(api.clone())));
            api.ready(READY_WITHIN).await;
        }
        for n in 0..AGENTS {
            let (queue, urls) = cluster.queue.links(&cluster.tasks).await?;
            let links = Links { queue, store: None };
            let id = format!("agent-{n}");
            let work_dir = cluster.dir.path().join(&id).display().to_string();
            let tasks = Self::TASKS.to_string();
            let args = ["--queue-url", &urls, "--id", &id, "--tasks", &tasks, "--work-dir", &work_dir];
            let args = args.map(str::to_owned).to_vec();
            let clock = Clock::new(cluster.dir.path().join(format!("{id}.clock")))?;
            cluster.agents.push(Piece::start("flux-agent", args, links, clock, None));
        }
        let api = cluster.apis().remove(0);
        eventually(READY_WITHIN, "all agents", || async {
            api.get("/agents").await.text().matches("\"online\"").count() == AGENTS
        })
        .await;
        Ok(cluster)
    }

    fn links(&self, victim: Victim, far: Far) -> impl Iterator<Item = &Link> {
        self.piece(victim).into_iter().flat_map(move |piece| piece.links.to(far))
    }

    fn piece(&self, victim: Victim) -> Option<&Piece> {
        match victim {
            Victim::Gateway(n) => self.gateways.get(n),
            Victim::Agent(n) | Victim::AgentRoot(n) | Victim::Launcher(n) => self.agents.get(n),
            _ => None,
        }
    }
}

impl Topology for Cluster {
    const AGENTS: u32 = 3;
    const TASKS: usize = 16;

    fn name(&self) -> &'static str {
        self.engines.name()
    }

    fn menu(&self) -> Menu {
        let mut faults = vec![(Fault::Wipe(self.queue.victims()[0].0), 2)];
        faults.extend(self.queue.cuts().into_iter().map(|cut| (Fault::Cut(cut), 1)));
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
        let store = self.store.victim().map(|victim| (victim, 6));
        for (victim, often) in self.queue.victims().into_iter().chain(store) {
            faults.extend([(Fault::Kill(victim), often), (Fault::Pause(victim), often.div_ceil(3))]);
        }
        let connected = (0..GATEWAYS).map(Victim::Gateway).chain((0..AGENTS).map(Victim::Agent));
        for victim in connected {
            for kind in [FaultKind::SlowLink, FaultKind::StalledLink, FaultKind::BrokenLink] {
                let all = [Far::Queue, Far::Store].map(|far| (far, self.links(victim, far).count()));
                let there = all.into_iter().filter(|(_, links)| *links > 0);
                faults.extend(there.map(|(far, _)| (Fault::Link(victim, far, kind), 1)));
            }
            faults.push((Fault::Clock(victim), 2));
        }
        Menu { faults, longest_hold_ms: 4_000, longest_calm_ms: 1_000 }
    }

    fn apis(&self) -> Vec<Api> {
        self.gateways.iter().filter_map(|piece| piece.api.clone()).collect()
    }

    async fn producer(&self) -> anyhow::Result<Producer> {
        self.queue.producer().await
    }

    fn markers(&self) -> Vec<String> {
        vec![self.dir.path().display().to_string()]
    }

    fn process(&self, victim: Victim) -> Option<Process> {
        let found = match victim {
            Victim::Nats(_) | Victim::Rabbit => Process::of(self.queue.pid(victim)?),
            Victim::Redis | Victim::Postgres => self.store.processes().into_iter().next(),
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

    fn processes(&self, victim: Victim) -> Vec<Process> {
        match victim {
            Victim::Redis | Victim::Postgres => self.store.processes(),
            _ => self.process(victim).into_iter().collect(),
        }
    }

    async fn remembers(&self) {
        self.queue.remembers().await;
    }

    fn disk(&self) -> Option<&Disk> {
        None
    }

    fn set_links(&self, victim: Victim, far: Far, kind: FaultKind) -> bool {
        let weather = match kind {
            FaultKind::SlowLink => Weather::Slow(SLOW),
            FaultKind::StalledLink => Weather::Stalled(Ways::Both),
            FaultKind::BrokenLink => Weather::Broken,
            _ => return false,
        };
        self.links(victim, far).inspect(|link| link.set(weather)).count() > 0
    }

    fn set_clock(&self, victim: Victim, seconds: i64) -> bool {
        self.piece(victim).is_some_and(|piece| {
            piece.clock.set(seconds);
            true
        })
    }

    fn clear_links(&self) {
        let pieces = self.gateways.iter().chain(&self.agents);
        let links = pieces.flat_map(|piece| piece.links.queue.iter().chain(&piece.links.store));
        links.for_each(|link| link.set(Weather::Clear));
        self.queue.heal();
    }

    async fn describe(&self, cut: Cut) -> Option<String> {
        self.queue.describe(cut).await
    }

    fn cut(&self, cut: Cut) {
        self.queue.cut(cut, SLOW);
    }

    async fn wipe(&mut self) {
        self.queue.wipe().await;
    }

    async fn mend(&mut self) {
        self.queue.mend().await;
        self.store.mend().await;
        self.supervise();
    }

    fn supervise(&mut self) -> Vec<&'static str> {
        let pieces = self.gateways.iter_mut().chain(&mut self.agents);
        pieces.filter_map(|piece| piece.mend().then_some(piece.program)).collect()
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
