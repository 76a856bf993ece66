//! `flux up`: everything in one tree of processes, on one machine.

use std::{io, path::Path};

use flux_testkit::{Api, Disk, FluxUp, Process, eventually_some};

use crate::{
    faults::RECOVERS_WITHIN,
    history::FaultKind,
    plan::{Far, Fault, Menu, Victim},
    producer::Producer,
    strike::Topology,
};

/// Room for what a run stores, and small enough to be filled in a moment.
const DISK_MIB: usize = 256;

pub(crate) struct Embedded {
    up: FluxUp,
    /// Under its data, where we may mount one. After it, so that it is unmounted later.
    disk: Option<Disk>,
}

impl Embedded {
    pub(crate) async fn start() -> Self {
        let disk = Disk::mount(DISK_MIB);
        let tasks = Self::TASKS.to_string();
        let args = ["--tasks", tasks.as_str()];
        let up = match &disk {
            Some(disk) => FluxUp::start_below(disk.path(), &args).await,
            None => FluxUp::start_with(&args).await,
        };
        Self { up, disk }
    }
}

impl Topology for Embedded {
    const AGENTS: u32 = 1;
    const TASKS: usize = 32;

    fn name(&self) -> &'static str {
        "embedded"
    }

    fn menu(&self) -> Menu {
        let mut faults = vec![
            (Fault::Kill(Victim::Worker), 28),
            (Fault::Kill(Victim::Launcher(0)), 22),
            (Fault::Kill(Victim::Nats(0)), 22),
            (Fault::Kill(Victim::Root), 10),
            (Fault::Pause(Victim::Worker), 6),
            (Fault::Pause(Victim::Launcher(0)), 5),
            (Fault::Pause(Victim::Nats(0)), 5),
            (Fault::Pause(Victim::Root), 2),
            (Fault::Wipe(Victim::Nats(0)), 3),
        ];
        if self.disk.is_some() {
            faults.push((Fault::DiskFull, 3));
        }
        Menu { faults, longest_hold_ms: 2_500, longest_calm_ms: 900 }
    }

    fn apis(&self) -> Vec<Api> {
        vec![self.up.api.clone()]
    }

    async fn producer(&self) -> anyhow::Result<Producer> {
        Producer::nats(self.up.queue_options(), vec![self.up.queue_url()]).await
    }

    fn markers(&self) -> Vec<String> {
        vec![self.up.marker()]
    }

    fn process(&self, victim: Victim) -> Option<Process> {
        let part = match victim {
            Victim::Root => return Process::of(self.up.process.pid()),
            Victim::Worker => "__serve",
            Victim::Launcher(_) => "__launcher",
            Victim::Nats(_) => "nats-server",
            _ => return None,
        };
        let tree = self.up.process.descendants();
        tree.into_iter().find(|process| process.name.contains(part) || process.command.contains(part))
    }

    fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// What is in one tree finds its queue itself.
    fn set_links(&self, _victim: Victim, _far: Far, _kind: FaultKind) -> bool {
        false
    }

    fn set_clock(&self, _victim: Victim, _seconds: i64) -> bool {
        false
    }

    fn clear_links(&self) {}

    /// The root of the tree is held meanwhile, so that it does not start the next server too soon.
    async fn wipe(&mut self) {
        self.up.process.pause();
        if let Some(server) = self.process(Victim::Nats(0)) {
            server.kill9();
            eventually_some(RECOVERS_WITHIN, "nats-server to be dead", || {
                std::future::ready((!server.is_alive()).then_some(()))
            })
            .await;
        }
        empty(&self.up.path("nats")).expect("the queue's directory");
        self.up.process.resume();
    }

    async fn mend(&mut self) {
        if !self.up.process.is_running() {
            self.up.restart().await;
        }
    }

    async fn stop(&mut self) {
        let status = self.up.stop().await;
        assert_eq!(status.code(), Some(0), "{}", self.up.process.log());
    }
}

/// Removes what is in a directory, and not the directory.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    Ok(())
}
