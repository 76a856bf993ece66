//! The plan itself: every rule's wish, and what of it is done.

use flux_protocol::{FunctionName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    Demand, History, Load, Node, Phase, Policy, Reason, Rule, Snapshot,
    capacity::slots,
    choice::{Fleet, Offer},
    demand::demand,
    history::count,
};

mod grow;
mod late;
mod shrink;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    Launch {
        provider: String,
        node_type: String,
    },
    /// It takes work again: cheaper than another.
    Undrain {
        node: String,
    },
    /// It takes no more work. A node of that type is launched when it is gone, if one is named.
    Drain {
        node: String,
        replaced_by: Option<String>,
    },
    Terminate {
        node: String,
    },
}

/// What is to be done, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Act {
    #[serde(flatten)]
    pub action: Action,
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Decision {
    pub at: Timestamp,
    /// In this order. When one fails, those after it that are of the same node are not tried.
    pub actions: Vec<Act>,
    /// What is not done, and why.
    pub notes: Vec<Reason>,
    pub demand: Demand,
    /// A function none of which runs, for which a node is bought, or (true) is there already and runs nothing.
    #[serde(default)]
    pub tried_for: Option<(FunctionName, bool)>,
}

/// Decides. The history has to have observed the snapshot, and is told with [`History::decided`] what is done.
pub fn plan(snapshot: &Snapshot, policy: &Policy, history: &History) -> Decision {
    let mut plan = Plan::new(snapshot, policy, history);
    plan.give_up_dead();
    plan.replace();
    if snapshot.paused {
        let said = "all nodes were removed; none is launched until POST /initialize";
        plan.notes.push(Reason::new(Rule::Held, said, &[]));
    } else {
        plan.meet_minimums();
        plan.grow();
        plan.catch_up();
    }
    plan.give_up_drained();
    if !snapshot.paused {
        plan.relieve();
    }
    plan.shrink();
    let Plan { actions, notes, demand, tried_for, .. } = plan;
    Decision { at: snapshot.at, actions, notes, demand, tried_for }
}

struct Plan<'a> {
    snapshot: &'a Snapshot,
    policy: &'a Policy,
    history: &'a History,
    demand: Demand,
    fleet: Fleet<'a>,
    /// Slots of what is there, is on its way, and was decided to be.
    capacity: f64,
    /// Nodes that count no more.
    gone: Vec<&'a str>,
    undrained: Vec<&'a str>,
    tried_for: Option<(FunctionName, bool)>,
    actions: Vec<Act>,
    notes: Vec<Reason>,
}

impl<'a> Plan<'a> {
    fn new(snapshot: &'a Snapshot, policy: &'a Policy, history: &'a History) -> Self {
        let of = |phases: &[Phase]| -> f64 {
            let nodes = snapshot.managed().filter(|node| phases.contains(&node.phase));
            nodes.map(|node| slots(node, snapshot, policy)).sum()
        };
        // Who is silent for a moment is there, with what it ran: it is given up first, and bought for then.
        let there = [Phase::Ready, Phase::Silent];
        let capacity = of(&there) + of(&[Phase::Booting]);
        Self {
            snapshot,
            policy,
            history,
            demand: demand(snapshot, policy, history, capacity, of(&there)),
            fleet: Fleet::new(policy, snapshot),
            capacity,
            gone: Vec::new(),
            undrained: Vec::new(),
            tried_for: None,
            actions: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn seconds_since(&self, node: &Node) -> f64 {
        self.snapshot.at.since(node.since).as_secs_f64()
    }

    fn act(&mut self, action: Action, reason: Reason) {
        self.actions.push(Act { action, reason });
    }

    fn terminate(&mut self, node: &'a Node, reason: Reason) {
        self.fleet.left(&node.provider, &node.node_type);
        self.gone.push(&node.name);
        self.act(Action::Terminate { node: node.name.clone() }, reason);
    }

    /// Whether a node that drains may be terminated, and why.
    fn drained(&self, node: &Node) -> Option<Reason> {
        let waited = self.seconds_since(node);
        let idle = node.load.is_some_and(|load| load.draining && load.running == 0);
        let late = waited >= self.policy.drain_timeout.as_secs_f64();
        let said = match (idle, late) {
            (true, _) => "it runs nothing any more",
            (false, true) => "it had all the time to drain; what it runs goes back to the queue",
            (false, false) => return None,
        };
        let inputs = [("running", f64::from(node.running())), ("waited_sec", waited)];
        Some(Reason::new(Rule::Drained, said, &inputs))
    }

    fn launch(&mut self, offer: &Offer<'a>, reason: Reason) {
        self.fleet.bought(offer);
        self.capacity += offer.slots;
        let (provider, node_type) = (offer.provider.name.clone(), offer.node_type.name.clone());
        self.act(Action::Launch { provider, node_type }, reason);
    }

    /// Nodes of a provider, or of all, that do not drain and are not given up.
    fn staying(&self, provider: Option<&str>) -> u32 {
        let stays = |node: &&Node| {
            provider.is_none_or(|provider| node.provider == provider)
                && !self.gone.contains(&node.name.as_str())
                && !matches!(node.phase, Phase::Leaving | Phase::Cordoned)
                && !self.drains_now(&node.name)
                && (!node.is_draining() || self.undrained.contains(&node.name.as_str()))
        };
        let there = self.snapshot.managed().filter(stays).count();
        let launched = self.actions.iter().filter(|act| match &act.action {
            Action::Launch { provider: by, .. } => provider.is_none_or(|provider| by == provider),
            _ => false,
        });
        u32::try_from(there + launched.count()).unwrap_or(u32::MAX)
    }

    /// Ready nodes, where there are any and nothing else comes or goes.
    fn settled(&self) -> Option<Vec<&'a Node>> {
        let stays = |node: &&Node| node.phase != Phase::Cordoned && !self.gone.contains(&node.name.as_str());
        let nodes: Vec<&Node> = self.snapshot.managed().filter(stays).collect();
        let settled = !nodes.is_empty() && nodes.iter().all(|node| node.phase == Phase::Ready);
        let ends = self.actions.iter().all(|act| matches!(act.action, Action::Terminate { .. }));
        (settled && ends).then_some(nodes)
    }

    /// Means over ready nodes, for reasons.
    fn measured(&self) -> [(&'static str, f64); 3] {
        let loads: Vec<_> = self.snapshot.managed().filter_map(|node| node.load).collect();
        let nodes = count(u64::try_from(loads.len()).unwrap_or(u64::MAX));
        let mean = |of: fn(&Load) -> f64| loads.iter().map(of).sum::<f64>() / nodes.max(1.0);
        [
            ("nodes", nodes),
            ("cpu_percent", mean(|load| load.cpu_percent)),
            ("memory_percent", mean(|load| load.memory_percent)),
        ]
    }

    fn drains_now(&self, name: &str) -> bool {
        self.actions.iter().any(|act| matches!(&act.action, Action::Drain { node, .. } if node == name))
    }
}
