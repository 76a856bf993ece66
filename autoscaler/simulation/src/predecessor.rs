//! The rules of the system that Flux succeeds: thresholds on CPU and memory that every node sustains for the evaluation
//! window, one node at a time, and a cooldown. It has no word for a queue, and none for no nodes: it starts at one.

use flux_plan::{Action, History, Policy, Snapshot, plan};

use crate::{Scaler, Setting};

/// The plan with its own rules switched off.
pub(crate) struct Predecessor {
    policy: Policy,
    history: History,
}

impl Predecessor {
    pub(crate) fn new(setting: &Setting) -> Self {
        let mut policy = setting.policy.clone();
        policy.target_queue = std::time::Duration::ZERO;
        policy.scale_down_delay = policy.evaluation_window;
        for provider in &mut policy.providers {
            provider.min_nodes = setting.min_nodes;
        }
        Self { policy, history: History::default() }
    }
}

impl Scaler for Predecessor {
    fn name(&self) -> String {
        "predecessor".to_owned()
    }

    fn decide(&mut self, snapshot: &Snapshot) -> Vec<Action> {
        self.history.observe(snapshot, &self.policy);
        let decision = plan(snapshot, &self.policy, &self.history);
        self.history.decided(&decision);
        decision.actions.into_iter().map(|act| act.action).collect()
    }
}
