//! `flux up`: everything in one tree of processes, on one machine.

use flux_testkit::{Api, FluxUp, Process};

use crate::{
    plan::{Fault, Menu, Victim},
    strike::Topology,
};

pub(crate) struct Embedded {
    up: FluxUp,
}

impl Embedded {
    pub(crate) async fn start() -> Self {
        Self { up: FluxUp::start().await }
    }
}

impl Topology for Embedded {
    const NAME: &'static str = "embedded";
    const AGENTS: u32 = 1;

    fn menu(&self) -> Menu {
        let faults = vec![
            (Fault::Kill(Victim::Worker), 28),
            (Fault::Kill(Victim::Launcher(0)), 22),
            (Fault::Kill(Victim::Nats(0)), 22),
            (Fault::Kill(Victim::Root), 10),
            (Fault::Pause(Victim::Worker), 6),
            (Fault::Pause(Victim::Launcher(0)), 5),
            (Fault::Pause(Victim::Nats(0)), 5),
            (Fault::Pause(Victim::Root), 2),
        ];
        Menu { faults, longest_hold_ms: 2_500, longest_calm_ms: 900 }
    }

    fn apis(&self) -> Vec<Api> {
        vec![self.up.api.clone()]
    }

    fn queue_urls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.up.path("run/settings.json")).expect("what `flux up` wrote");
        let settings: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        vec![settings["queue"]["url"].as_str().expect("the queue's URL").to_owned()]
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
            Victim::Gateway(_) | Victim::Agent(_) | Victim::AgentRoot(_) => return None,
        };
        let tree = self.up.process.descendants();
        tree.into_iter().find(|process| process.name.contains(part) || process.command.contains(part))
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
