//! More nodes, and larger ones.

use super::{Action, Plan};
use crate::{
    Node, Phase, Reason, Rule,
    capacity::{slots, slots_of_type},
    choice::{NoOffer, Offer},
    history::count,
};

impl<'a> Plan<'a> {
    /// Nodes that were drained to make room for a larger one.
    pub(super) fn replace(&mut self) {
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
                let slots = slots_of_type(&provider.name, node_type, self.snapshot);
                let said = format!("in place of {}", node.name);
                self.launch(&Offer { provider, node_type, slots }, Reason::new(Rule::Replace, said, &[]));
            }
        }
    }

    pub(super) fn scheduled_minimum(&self) -> u32 {
        let holding = self.policy.schedules.iter().filter(|schedule| schedule.holds(self.snapshot.at));
        holding.map(|schedule| schedule.min_nodes).max().unwrap_or(0)
    }

    pub(super) fn meet_minimums(&mut self) {
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
    pub(super) fn one_more(&mut self, reason: &Reason) -> bool {
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

    pub(super) fn held(&mut self, why: NoOffer, reason: &Reason) {
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
    pub(super) fn undrain(&mut self, provider: Option<&str>, reason: &Reason) -> bool {
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

    pub(super) fn grow(&mut self) {
        let (wanted, had) = (self.demand.wanted, self.capacity);
        while self.capacity + 1e-9 < wanted {
            let demand = self.demand;
            let rule = if demand.panic && demand.burst > demand.load { Rule::Panic } else { Rule::Queue };
            let inputs = [
                ("wanted_slots", wanted),
                ("capacity_slots", had),
                ("load_slots", demand.load),
                ("burst_slots", demand.burst),
                ("waiting", count(demand.waiting)),
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
            let inputs = [("waiting", count(self.demand.waiting))];
            self.one_more(&Reason::new(Rule::Queue, "work waits, and there is no node", &inputs));
        }
    }

    /// The predecessor's rule upwards: every node under pressure for the whole window.
    pub(super) fn relieve(&mut self) {
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

    /// At the maximum: an idle node that is not of its provider's largest type goes, and one of that type comes.
    pub(super) fn make_room(&mut self, reason: &Reason) {
        // One at a time.
        let moves = |node: &Node| {
            let back = self.undrained.contains(&node.name.as_str());
            // What was taken back in this very moment is still to show that it is enough.
            let just_back = node.phase == Phase::Ready && node.since >= self.snapshot.at;
            node.phase == Phase::Booting || just_back || (node.is_draining() && !back)
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
}
