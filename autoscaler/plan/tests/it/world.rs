//! Machines that do what a plan says.

use std::time::Duration;

use flux_plan::{
    Action, Decision, History, Load, Node, NodeType, Phase, Policy, ProviderPolicy, ScheduledMinimum, Snapshot, plan,
};
use flux_protocol::Timestamp;

/// A Monday, at nine.
pub(crate) fn start() -> Timestamp {
    "2026-11-30T09:00:00Z".parse().expect("a time")
}

pub(crate) fn node_type(name: &str, price_per_hour: f64, slots: u32) -> NodeType {
    NodeType { name: name.to_owned(), price_per_hour, slots }
}

pub(crate) fn provider(name: &str, min_nodes: u32, max_nodes: u32) -> ProviderPolicy {
    let node_types = vec![node_type("small", 0.1, 4), node_type("large", 0.3, 16)];
    ProviderPolicy { name: name.to_owned(), min_nodes, max_nodes, node_types, share: 1.0 }
}

pub(crate) fn node(name: &str, provider: &str, load: Option<Load>) -> Node {
    Node {
        name: name.to_owned(),
        provider: provider.to_owned(),
        node_type: "small".to_owned(),
        managed: true,
        phase: if load.is_some() { Phase::Ready } else { Phase::Booting },
        since: start(),
        load,
    }
}

pub(crate) fn load(running: u32) -> Load {
    let used = f64::from(running) / 4.0;
    Load { cpu_percent: 90.0 * used, memory_percent: 30.0, running, slots: 4, used, draining: false }
}

pub(crate) fn on_mondays(min_nodes: u32) -> ScheduledMinimum {
    ScheduledMinimum::try_new("0 9 * * 1", Duration::from_secs(600), min_nodes).expect("an expression")
}

/// What a plan sees, over time.
pub(crate) struct World {
    pub(crate) policy: Policy,
    pub(crate) history: History,
    pub(crate) snapshot: Snapshot,
    launched: u32,
}

impl World {
    pub(crate) fn new(policy: Policy) -> Self {
        let snapshot = Snapshot { at: start(), ..Snapshot::default() };
        Self { policy, history: History::default(), snapshot, launched: 0 }
    }

    /// Plans once, and remembers it.
    pub(crate) fn decide(&mut self) -> Decision {
        self.history.observe(&self.snapshot, &self.policy);
        let decision = plan(&self.snapshot, &self.policy, &self.history);
        self.history.decided(&decision);
        decision
    }

    /// Does it, at once.
    pub(crate) fn apply(&mut self, decision: &Decision) {
        let at = self.snapshot.at;
        for act in &decision.actions {
            match &act.action {
                Action::Launch { provider, node_type } => {
                    self.launched += 1;
                    let mut new = node(&format!("node-{}", self.launched), provider, None);
                    (new.node_type, new.since) = (node_type.clone(), at);
                    self.snapshot.nodes.push(new);
                }
                Action::Drain { node, replaced_by } => {
                    self.with(node, |node| node.phase = Phase::Draining { replaced_by: replaced_by.clone() });
                }
                Action::Undrain { node } => self.with(node, |node| node.phase = Phase::Ready),
                Action::Terminate { node } => self.snapshot.nodes.retain(|one| one.name != *node),
            }
        }
    }

    fn with(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let at = self.snapshot.at;
        let node = self.snapshot.nodes.iter_mut().find(|node| node.name == name).expect("a node that there is");
        change(node);
        node.since = at;
    }

    /// Time goes on; what booted for a minute is ready. `running` is spread over what takes work.
    pub(crate) fn pass(&mut self, seconds: u64, waiting: u64, running: u32, ended: u64) {
        self.snapshot.at = self.snapshot.at.plus(Duration::from_secs(seconds));
        self.snapshot.waiting = waiting;
        self.snapshot.finished += ended;
        let at = self.snapshot.at;
        let mut left = running;
        for node in self.snapshot.nodes.iter_mut().filter(|node| node.managed) {
            if node.phase == Phase::Booting && at.since(node.since) >= Duration::from_secs(60) {
                (node.phase, node.since) = (Phase::Ready, at);
            }
            match &node.phase {
                Phase::Ready => {
                    let slots = if node.node_type == "large" { 16 } else { 4 };
                    let takes = left.min(slots);
                    left -= takes;
                    node.load = Some(Load { slots, used: f64::from(takes) / f64::from(slots), ..load(takes.min(4)) });
                    if let Some(load) = &mut node.load {
                        (load.running, load.cpu_percent) = (takes, 90.0 * load.used);
                    }
                }
                Phase::Draining { .. } => {
                    if let Some(load) = &mut node.load {
                        (load.running, load.used, load.draining) = (0, 0.0, true);
                    }
                }
                Phase::Booting | Phase::Silent | Phase::Cordoned | Phase::Leaving => {}
            }
        }
    }

    pub(crate) fn count(&self, provider: &str) -> u32 {
        let nodes = self.snapshot.nodes.iter().filter(|node| node.managed && node.provider == provider);
        u32::try_from(nodes.count()).expect("a few")
    }

    pub(crate) fn cost_per_hour(&self) -> f64 {
        let price = |node: &Node| if node.node_type == "large" { 0.3 } else { 0.1 };
        self.snapshot.nodes.iter().filter(|node| node.managed).map(price).sum()
    }
}
