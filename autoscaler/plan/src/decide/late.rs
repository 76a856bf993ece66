//! What waits for too long already, whatever the estimates say: service times may be misjudged, a node may be full of less than
//! its slots, a function may run only so often on a node.

use super::{Action, Plan};
use crate::{Node, Phase, Reason, Rule, Wait, history::count};

impl Plan<'_> {
    /// A node more, if one can help. It is no estimate, so it is one at a time, and what it changes is seen before the next.
    pub(super) fn catch_up(&mut self) {
        let target = self.policy.target_queue;
        // Estimates that ask for more have been heard.
        let enough = self.capacity + 1e-9 >= self.demand.wanted;
        if target.is_zero() || !enough || self.staying(None) == 0 {
            return;
        }
        let (in_vain, late): (Vec<_>, Vec<_>) = self.late().partition(|wait| self.is_in_vain(wait));
        let longest = |waits: &[&Wait]| {
            waits
                .iter()
                .max_by(|a, b| a.oldest.cmp(&b.oldest).then_with(|| b.function.cmp(&a.function)))
                .copied()
                .cloned()
        };
        let Some(wait) = longest(&late) else {
            if let Some(wait) = longest(&in_vain) {
                self.not_for(&wait, "there was a node for it, and none of it runs: no agent may be able to run it");
            }
            return;
        };
        if let Some(why) = self.helps_already() {
            self.not_for(&wait, why);
            return;
        }
        if self.snapshot.managed().any(is_idle) {
            self.not_for(&wait, "a node runs nothing: it does not wait for another");
            self.tried_for = (wait.running == 0).then_some((wait.function, true));
            return;
        }
        if self.is_caught_up_with(&wait) {
            self.not_for(&wait, "it gets shorter fast enough");
            return;
        }
        let said =
            format!("{} waits longer than target_queue_seconds, though there seem to be slots enough", wait.function);
        let reason = Reason::new(Rule::Late, said, &self.inputs(&wait));
        if self.one_more(&reason) && wait.running == 0 {
            self.tried_for = Some((wait.function, false));
        }
    }

    fn late(&self) -> impl Iterator<Item = &Wait> {
        let target = self.policy.target_queue;
        self.snapshot.waits.iter().filter(move |wait| !target.is_zero() && wait.oldest >= target)
    }

    /// Whether none of it runs on our nodes though there was a node for it.
    fn is_in_vain(&self, wait: &Wait) -> bool {
        let now = self.tried_for.as_ref().is_some_and(|(function, there)| *there && *function == wait.function);
        wait.running == 0 && (now || self.history.was_tried_for(&wait.function))
    }

    /// What was done lately, and is to be seen first.
    fn helps_already(&self) -> Option<&'static str> {
        let (at, cooldown) = (self.snapshot.at, self.policy.cooldown);
        let boots = |node: &Node| node.phase == Phase::Booting && !self.gone.contains(&node.name.as_str());
        let comes = |action: &Action| matches!(action, Action::Launch { .. } | Action::Undrain { .. });
        let just_came =
            |node: &Node| node.phase == Phase::Ready && (node.since >= at || at.since(node.since) < cooldown);
        if self.snapshot.managed().any(boots) || self.actions.iter().any(|act| comes(&act.action)) {
            Some("a node is on its way")
        } else if self.snapshot.managed().any(just_came) || self.history.cools_down(at, cooldown) {
            Some("cooling down")
        } else {
            None
        }
    }

    /// Whether it is in time again within as long as a backlog is to take, if it goes on as since `cooldown` ago.
    fn is_caught_up_with(&self, wait: &Wait) -> bool {
        let Some((at, before)) = self.history.was_late(&wait.function, self.policy.cooldown) else { return false };
        let seconds = self.snapshot.at.since(at).as_secs_f64();
        let target = self.policy.target_queue.as_secs_f64();
        let oldest = wait.oldest.as_secs_f64();
        let shorter = before.as_secs_f64() - oldest;
        shorter > 0.0 && (oldest - target) * seconds <= shorter * target
    }

    /// While something waits for too long those stay that run something, however little is said to be needed; and one that does
    /// not: without it another would be bought. A look that the queue did not answer changes nothing at once.
    pub(super) fn is_waited_with(&self, node: &Node) -> bool {
        let untold = self.history.untold_late().any(|function| !self.history.was_tried_for(function));
        if !untold && self.late().all(|wait| self.is_in_vain(wait)) {
            return false;
        }
        let other = |one: &Node| one.name != node.name && is_idle(one) && !self.drains_now(&one.name);
        !is_idle(node) || !self.snapshot.managed().any(other)
    }

    fn not_for(&mut self, wait: &Wait, why: &str) {
        let said = format!("{} waits longer than target_queue_seconds: {why}", wait.function);
        let inputs = self.inputs(wait);
        self.notes.push(Reason::new(Rule::Held, said, &inputs));
    }

    fn inputs(&self, wait: &Wait) -> [(&'static str, f64); 7] {
        [
            ("waited_sec", wait.oldest.as_secs_f64()),
            ("target_sec", self.policy.target_queue.as_secs_f64()),
            ("waiting", count(wait.waiting)),
            ("running", count(wait.running)),
            ("wanted_slots", self.demand.wanted),
            ("capacity_slots", self.capacity),
            ("service_sec", self.demand.service_seconds),
        ]
    }
}

fn is_idle(node: &Node) -> bool {
    node.phase == Phase::Ready && node.load.is_some_and(|load| load.running == 0)
}
