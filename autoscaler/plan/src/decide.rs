//! The plan itself: every rule's wish, and what of it is done.

use flux_protocol::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    Demand, History, Node, Phase, Policy, Reason, Rule, Snapshot,
    capacity::slots,
    choice::{Fleet, NoOffer, Offer},
    demand::demand,
};

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
    }
    plan.give_up_drained();
    if !snapshot.paused {
        plan.relieve();
    }
    plan.shrink();
    Decision { at: snapshot.at, actions: plan.actions, notes: plan.notes, demand: plan.demand }
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
    actions: Vec<Act>,
    notes: Vec<Reason>,
}

impl<'a> Plan<'a> {
    fn new(snapshot: &'a Snapshot, policy: &'a Policy, history: &'a History) -> Self {
        let of = |phases: &[Phase]| -> f64 {
            let nodes = snapshot.managed().filter(|node| phases.contains(&node.phase));
            nodes.map(|node| slots(node, snapshot, policy)).sum()
        };
        let capacity = of(&[Phase::Ready, Phase::Booting]);
        Self {
            snapshot,
            policy,
            history,
            demand: demand(snapshot, policy, history, capacity, of(&[Phase::Ready])),
            fleet: Fleet::new(policy, snapshot),
            capacity,
            gone: Vec::new(),
            undrained: Vec::new(),
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

    /// What never started, or is silent for long, is no capacity: it goes, and the other rules see what is missing.
    fn give_up_dead(&mut self) {
        for node in self.snapshot.managed() {
            let waited = self.seconds_since(node);
            let (rule, timeout, said) = match node.phase {
                Phase::Booting => (Rule::NotStarted, self.policy.boot_timeout, "its agent was never heard of"),
                Phase::Silent => (Rule::Silent, self.policy.silent_timeout, "its agent fell silent"),
                Phase::Ready | Phase::Draining { .. } | Phase::Leaving => continue,
            };
            let timeout = timeout.as_secs_f64();
            if waited < timeout {
                continue;
            }
            if node.phase == Phase::Booting {
                self.capacity -= slots(node, self.snapshot, self.policy);
            }
            let reason = Reason::new(rule, said, &[("waited_sec", waited), ("timeout_sec", timeout)]);
            self.terminate(node, reason);
        }
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

    /// Nodes that were drained to make room for a larger one.
    fn replace(&mut self) {
        for node in self.snapshot.managed() {
            let Phase::Draining { replaced_by: Some(larger) } = &node.phase else { continue };
            let Some(reason) = self.drained(node) else { continue };
            self.terminate(node, reason);
            // What it was for may be over.
            let pressed = self.policy.target_queue.is_zero() || self.capacity < self.demand.wanted;
            if self.snapshot.paused || !pressed {
                continue;
            }
            let provider = self.policy.provider(&node.provider);
            let Some((provider, node_type)) = provider.and_then(|of| Some((of, of.node_type(larger)?))) else {
                continue;
            };
            let room = self.fleet.count(&provider.name) < provider.max_nodes;
            if room && self.fleet.affords(node_type.price_per_hour) {
                let slots = crate::capacity::slots_of_type(&provider.name, node_type, self.snapshot);
                let said = format!("in place of {}", node.name);
                self.launch(&Offer { provider, node_type, slots }, Reason::new(Rule::Replace, said, &[]));
            }
        }
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
                && node.phase != Phase::Leaving
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

    fn scheduled_minimum(&self) -> u32 {
        let holding = self.policy.schedules.iter().filter(|schedule| schedule.holds(self.snapshot.at));
        holding.map(|schedule| schedule.min_nodes).max().unwrap_or(0)
    }

    fn meet_minimums(&mut self) {
        for provider in &self.policy.providers {
            while self.staying(Some(&provider.name)) < provider.min_nodes {
                let (nodes, min) = (self.staying(Some(&provider.name)), provider.min_nodes);
                let inputs = [("nodes", f64::from(nodes)), ("min_nodes", f64::from(min))];
                let said = format!("{} has fewer nodes than its minimum", provider.name);
                let reason = Reason::new(Rule::Minimum, said, &inputs);
                if self.undrain(Some(&provider.name), &reason) {
                    continue;
                }
                match self.fleet.offer_of(provider) {
                    Ok(offer) => self.launch(&offer, reason),
                    Err(why) => {
                        self.held(why, &reason);
                        break;
                    }
                }
            }
        }
        let min = self.scheduled_minimum();
        while self.staying(None) < min {
            let inputs = [("nodes", f64::from(self.staying(None))), ("min_nodes", f64::from(min))];
            let reason = Reason::new(Rule::Schedule, "the calendar asks for more nodes", &inputs);
            if !self.one_more(&reason) {
                break;
            }
        }
    }

    /// A node more, or one that drains back. False: there is none to be had.
    fn one_more(&mut self, reason: &Reason) -> bool {
        if self.undrain(None, reason) {
            return true;
        }
        match self.fleet.offer() {
            Ok(offer) => {
                self.launch(&offer, reason.clone());
                true
            }
            Err(why) => {
                self.held(why, reason);
                if why == NoOffer::AtMaximum {
                    self.make_room(reason);
                }
                false
            }
        }
    }

    fn held(&mut self, why: NoOffer, reason: &Reason) {
        let said = match why {
            NoOffer::AtMaximum => "every provider has max_nodes",
            NoOffer::AtSpendCap => "max_cost_per_hour would be passed",
            NoOffer::Refused => "no provider has a machine just now",
        };
        let inputs = [("nodes", f64::from(self.fleet.total())), ("cost_per_hour", self.fleet.cost_per_hour())];
        let said = format!("{} asks for more: {said}", reason.rule.as_str());
        self.notes.push(Reason::new(Rule::Held, said, &inputs));
    }

    /// Takes back the drain of a node that could still do the work.
    fn undrain(&mut self, provider: Option<&str>, reason: &Reason) -> bool {
        let back = |node: &&Node| {
            node.phase == Phase::Draining { replaced_by: None }
                && provider.is_none_or(|provider| node.provider == provider)
                && node.load.is_some()
                && !self.gone.contains(&node.name.as_str())
                && !self.undrained.contains(&node.name.as_str())
                // One that had all its time is perhaps not one that answers.
                && self.seconds_since(node) < self.policy.drain_timeout.as_secs_f64()
        };
        let Some(node) = self.snapshot.managed().filter(back).max_by_key(|node| node.running()) else { return false };
        self.undrained.push(&node.name);
        self.capacity += slots(node, self.snapshot, self.policy);
        self.act(Action::Undrain { node: node.name.clone() }, reason.clone());
        true
    }

    fn grow(&mut self) {
        let (wanted, had) = (self.demand.wanted, self.capacity);
        while self.capacity + 1e-9 < wanted {
            let demand = self.demand;
            let rule = if demand.panic && demand.burst > demand.load { Rule::Panic } else { Rule::Queue };
            let inputs = [
                ("wanted_slots", wanted),
                ("capacity_slots", had),
                ("load_slots", demand.load),
                ("burst_slots", demand.burst),
                ("waiting", crate::history::count(demand.waiting)),
                ("running", f64::from(demand.running)),
                ("service_sec", demand.service_seconds),
            ];
            let reason = Reason::new(rule, "load and backlog need more slots than there are", &inputs);
            if !self.one_more(&reason) {
                return;
            }
        }
        // Who waits and has nobody: one node, whatever the queue's rule says.
        if self.demand.waiting > 0 && self.staying(None) == 0 {
            let inputs = [("waiting", crate::history::count(self.demand.waiting))];
            self.one_more(&Reason::new(Rule::Queue, "work waits, and there is no node", &inputs));
        }
    }

    /// Ready nodes, where there are any and nothing else comes or goes.
    fn settled(&self) -> Option<Vec<&'a Node>> {
        let stays = |node: &&Node| !self.gone.contains(&node.name.as_str());
        let nodes: Vec<&Node> = self.snapshot.managed().filter(stays).collect();
        let settled = !nodes.is_empty() && nodes.iter().all(|node| node.phase == Phase::Ready);
        let ends = self.actions.iter().all(|act| matches!(act.action, Action::Terminate { .. }));
        (settled && ends).then_some(nodes)
    }

    /// The predecessor's rule upwards: every node under pressure for the whole window.
    fn relieve(&mut self) {
        let (policy, history) = (self.policy, self.history);
        let Some(nodes) = self.settled() else { return };
        let pressed = nodes.iter().all(|node| {
            let sustained =
                |holds: &dyn Fn(f64, f64) -> bool| history.sustained(&node.name, policy.evaluation_window, holds);
            sustained(&|cpu, _| cpu >= policy.cpu_upper_threshold)
                || sustained(&|_, mem| mem >= policy.mem_upper_threshold)
        });
        if !pressed {
            return;
        }
        let reason =
            Reason::new(Rule::Pressure, "CPU or memory is at its upper threshold on every node", &self.measured());
        if history.cools_down(self.snapshot.at, policy.cooldown) {
            self.notes.push(Reason { rule: Rule::Held, said: format!("{}: cooling down", reason.said), ..reason });
            return;
        }
        self.one_more(&reason);
    }

    /// Means over ready nodes, for reasons.
    fn measured(&self) -> [(&'static str, f64); 3] {
        let loads: Vec<_> = self.snapshot.managed().filter_map(|node| node.load).collect();
        let nodes = crate::history::count(u64::try_from(loads.len()).unwrap_or(u64::MAX));
        let mean = |of: fn(&crate::Load) -> f64| loads.iter().map(of).sum::<f64>() / nodes.max(1.0);
        [
            ("nodes", nodes),
            ("cpu_percent", mean(|load| load.cpu_percent)),
            ("memory_percent", mean(|load| load.memory_percent)),
        ]
    }

    /// At the maximum: an idle node that is not of its provider's largest type goes, and one of that type comes.
    fn make_room(&mut self, reason: &Reason) {
        // One at a time.
        let moves = |node: &Node| {
            let back = self.undrained.contains(&node.name.as_str());
            node.phase == Phase::Booting || (node.is_draining() && !back)
        };
        let busy_already = self.snapshot.managed().any(moves)
            || self.actions.iter().any(|act| !matches!(act.action, Action::Terminate { .. }))
            || self.history.cools_down(self.snapshot.at, self.policy.cooldown);
        if busy_already {
            return;
        }
        for node in self.snapshot.managed() {
            // Not one that was just taken back.
            let idle = node.phase == Phase::Ready
                && node.since < self.snapshot.at
                && node.load.is_some_and(|load| load.running == 0);
            let provider = self.policy.provider(&node.provider);
            let Some(larger) = provider.and_then(|of| of.largest()).filter(|larger| larger.name != node.node_type)
            else {
                continue;
            };
            let more = larger.price_per_hour - self.policy.price(&node.provider, &node.node_type);
            let refused = self.snapshot.is_refused(&node.provider, &larger.name);
            if !idle || refused || !self.fleet.affords(more) || self.gone.contains(&node.name.as_str()) {
                continue;
            }
            let said =
                format!("{} asks for more at max_nodes: it makes room for a {}", reason.rule.as_str(), larger.name);
            let replaced_by = Some(larger.name.clone());
            let reason = Reason { rule: Rule::Replace, said, ..reason.clone() };
            self.act(Action::Drain { node: node.name.clone(), replaced_by }, reason);
            return;
        }
    }

    fn shrink(&mut self) {
        let growing = self.actions.iter().any(|act| !matches!(act.action, Action::Terminate { .. }))
            || self
                .snapshot
                .managed()
                .any(|node| node.phase == Phase::Booting && !self.gone.contains(&node.name.as_str()));
        if growing {
            return;
        }
        if self.demand.panic || self.history.panicked_within(self.policy.load_window) {
            return;
        }
        let queue_says = !self.policy.target_queue.is_zero();
        let Some(long) = self.history.most_wanted(self.policy.scale_down_delay) else { return };
        let recurring = self.history.recurring(self.snapshot.at, self.policy.recurring_gap);
        let wanted = long.max(self.demand.wanted).max(recurring);
        // Nor so much that the burst there is now would be one that panics.
        let wanted = wanted.max(self.demand.short / self.policy.panic_threshold);
        if queue_says {
            while self.remove_one(wanted, Rule::Unneeded, "what is left was enough for all that was asked lately") {}
        }
        self.quieten();
    }

    /// The predecessor's rule downwards: every node quiet for the whole window.
    fn quieten(&mut self) {
        let (policy, history) = (self.policy, self.history);
        let Some(nodes) = self.settled() else { return };
        let quiet = nodes.iter().all(|node| {
            history.sustained(&node.name, policy.evaluation_window, |cpu, mem| {
                cpu < policy.cpu_lower_threshold && mem < policy.mem_lower_threshold
            })
        });
        let Some(wanted) = history.most_wanted(policy.evaluation_window).filter(|_| quiet) else { return };
        let wanted = wanted.max(history.recurring(self.snapshot.at, policy.recurring_gap));
        let wanted = wanted.max(self.demand.short / policy.panic_threshold);
        if !history.cools_down(self.snapshot.at, policy.cooldown) {
            let said = "CPU and memory are below their lower thresholds on every node";
            self.remove_one(wanted.max(self.demand.wanted), Rule::Quiet, said);
        }
    }

    /// Drains the node that is missed least, if `wanted` slots stay. Idle ones go first.
    fn remove_one(&mut self, wanted: f64, rule: Rule, said: &str) -> bool {
        let ready = self.snapshot.managed().filter(|node| node.phase == Phase::Ready && !self.drains_now(&node.name));
        let mut nodes: Vec<&Node> = ready.collect();
        let total = self.staying(None);
        nodes.retain(|node| {
            let min = self.policy.provider(&node.provider).map_or(0, |provider| provider.min_nodes);
            let of_provider = self.staying(Some(&node.provider));
            let keeps = self.capacity - slots(node, self.snapshot, self.policy);
            of_provider > min && total > self.scheduled_minimum() && keeps + 1e-9 >= wanted && self.bears_without(node)
        });
        let excess = |node: &Node| {
            let provider = self.policy.provider(&node.provider);
            provider.map_or(f64::MAX, |provider| self.fleet.fullness(provider))
        };
        nodes.sort_by(|a, b| {
            let load = |node: &Node| node.load.map_or(0.0, |load| load.used);
            (a.running() > 0)
                .cmp(&(b.running() > 0))
                .then(load(a).total_cmp(&load(b)))
                .then(excess(b).total_cmp(&excess(a)))
                .then(a.name.cmp(&b.name))
        });
        let Some(node) = nodes.first() else { return false };
        let inputs = [
            ("wanted_slots", wanted),
            ("capacity_slots", self.capacity),
            ("running", f64::from(node.running())),
            ("nodes", f64::from(total)),
        ];
        self.capacity -= slots(node, self.snapshot, self.policy);
        self.act(Action::Drain { node: node.name.clone(), replaced_by: None }, Reason::new(rule, said, &inputs));
        true
    }

    fn drains_now(&self, name: &str) -> bool {
        self.actions.iter().any(|act| matches!(&act.action, Action::Drain { node, .. } if node == name))
    }

    /// Whether the others can take over its CPU and memory and stay below the upper thresholds. An idle one has none to take.
    fn bears_without(&self, node: &Node) -> bool {
        if node.running() == 0 {
            return true;
        }
        let others = |of: fn(&crate::Load) -> f64| {
            let stays = self.snapshot.managed().filter(|one| one.phase == Phase::Ready && !self.drains_now(&one.name));
            let loads: Vec<f64> = stays.filter_map(|one| one.load.as_ref().map(of)).collect();
            let left = crate::history::count(u64::try_from(loads.len()).unwrap_or(0)) - 1.0;
            if left <= 0.0 { f64::INFINITY } else { loads.iter().sum::<f64>() / left }
        };
        let fits = |load: f64, upper: f64| load < upper;
        fits(others(|load| load.cpu_percent), self.policy.cpu_upper_threshold)
            && fits(others(|load| load.memory_percent), self.policy.mem_upper_threshold)
    }

    fn give_up_drained(&mut self) {
        for node in self.snapshot.managed() {
            let back = self.undrained.contains(&node.name.as_str()) || self.gone.contains(&node.name.as_str());
            if node.phase != (Phase::Draining { replaced_by: None }) || back {
                continue;
            }
            if let Some(reason) = self.drained(node) {
                self.terminate(node, reason);
            }
        }
    }
}
