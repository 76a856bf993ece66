//! Fewer nodes, and an end to those that are of no use.

use super::{Action, Plan};
use crate::{Load, Node, Phase, Reason, Rule, capacity::slots, history::count};

impl<'a> Plan<'a> {
    /// What never started, or is silent for long, is no capacity any more: it goes, and the other rules see what is missing.
    pub(super) fn give_up_dead(&mut self) {
        for node in self.snapshot.managed() {
            let waited = self.seconds_since(node);
            let (rule, timeout, said) = match node.phase {
                Phase::Booting => (Rule::NotStarted, self.policy.boot_timeout, "its agent was never heard of"),
                Phase::Silent => (Rule::Silent, self.policy.silent_timeout, "its agent fell silent"),
                Phase::Ready | Phase::Draining { .. } | Phase::Cordoned | Phase::Leaving => continue,
            };
            let timeout = timeout.as_secs_f64();
            if waited < timeout {
                continue;
            }
            self.capacity -= slots(node, self.snapshot, self.policy);
            let reason = Reason::new(rule, said, &[("waited_sec", waited), ("timeout_sec", timeout)]);
            self.terminate(node, reason);
        }
    }

    pub(super) fn shrink(&mut self) {
        let growing = self.actions.iter().any(|act| !matches!(act.action, Action::Terminate { .. }))
            || self.snapshot.managed().any(|node| {
                matches!(node.phase, Phase::Booting | Phase::Silent) && !self.gone.contains(&node.name.as_str())
            });
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
    pub(super) fn quieten(&mut self) {
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
    pub(super) fn remove_one(&mut self, wanted: f64, rule: Rule, said: &str) -> bool {
        let ready = self.snapshot.managed().filter(|node| node.phase == Phase::Ready && !self.drains_now(&node.name));
        let mut nodes: Vec<&Node> = ready.collect();
        let total = self.staying(None);
        nodes.retain(|node| {
            let min = self.policy.provider(&node.provider).map_or(0, |provider| provider.min_nodes);
            let of_provider = self.staying(Some(&node.provider));
            let keeps = self.capacity - slots(node, self.snapshot, self.policy);
            of_provider > min
                && total > self.scheduled_minimum()
                && keeps + 1e-9 >= wanted
                && self.bears_without(node)
                && !self.is_waited_with(node)
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

    /// Whether the others can take over its CPU and memory and stay below the upper thresholds. An idle one has none to take.
    pub(super) fn bears_without(&self, node: &Node) -> bool {
        if node.running() == 0 {
            return true;
        }
        let others = |of: fn(&Load) -> f64| {
            let stays = self.snapshot.managed().filter(|one| one.phase == Phase::Ready && !self.drains_now(&one.name));
            let loads: Vec<f64> = stays.filter_map(|one| one.load.as_ref().map(of)).collect();
            let left = count(u64::try_from(loads.len()).unwrap_or(0)) - 1.0;
            if left <= 0.0 { f64::INFINITY } else { loads.iter().sum::<f64>() / left }
        };
        let fits = |load: f64, upper: f64| load < upper;
        fits(others(|load| load.cpu_percent), self.policy.cpu_upper_threshold)
            && fits(others(|load| load.memory_percent), self.policy.mem_upper_threshold)
    }

    pub(super) fn give_up_drained(&mut self) {
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
