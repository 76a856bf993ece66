//! What a topology must offer to be struck.

use flux_testkit::{Api, Disk, Process};

use crate::{
    history::FaultKind,
    plan::{Cut, Far, Menu, Victim},
    producer::Producer,
};

#[allow(async_fn_in_trait, reason = "one implementation at a time, awaited in place")]
pub(crate) trait Topology {
    const AGENTS: u32;
    /// That one agent runs at once.
    const TASKS: usize;

    fn name(&self) -> &'static str;

    /// What can be done to it here.
    fn menu(&self) -> Menu;

    /// One for each gateway.
    fn apis(&self) -> Vec<Api>;

    /// Someone who may publish everything.
    async fn producer(&self) -> anyhow::Result<Producer>;

    /// What is in the arguments of each of its processes.
    fn markers(&self) -> Vec<String>;

    /// The process that has this role now.
    fn process(&self, victim: Victim) -> Option<Process>;

    /// All that go when this role does: more than one, where a server is several processes.
    fn processes(&self, victim: Victim) -> Vec<Process> {
        self.process(victim).into_iter().collect()
    }

    /// Until what the load has made by now survives the death of anything.
    async fn remembers(&self) {}

    /// What its data is on, where that can be filled.
    fn disk(&self) -> Option<&Disk>;

    /// Makes these connections of this process bad. Whether there are any that can be.
    fn set_links(&self, victim: Victim, far: Far, kind: FaultKind) -> bool;

    /// What a cut is done to, in words; `None` where there are no such servers.
    async fn describe(&self, _cut: Cut) -> Option<String> {
        None
    }

    /// Does it.
    fn cut(&self, _cut: Cut) {}

    /// Sets the wall clock of this process so far off the machine's. Whether it has one of its own.
    fn set_clock(&self, victim: Victim, seconds: i64) -> bool;

    /// All connections are well again.
    fn clear_links(&self);

    /// Kills the queue's servers and removes all that they stored.
    async fn wipe(&mut self);

    /// Starts again what died and nobody else starts.
    async fn mend(&mut self);

    /// Starts again what is somebody's to start whenever it ended, as systemd does: it may not be able to start while a fault lasts.
    /// What that was.
    fn supervise(&mut self) -> Vec<&'static str> {
        Vec::new()
    }

    /// In order. Panics where that does not succeed.
    async fn stop(&mut self);
}
