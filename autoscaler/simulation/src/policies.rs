//! Whoever decides about nodes.

use flux_plan::{Action, History, Policy, Snapshot, plan};

use crate::{Setting, Traffic, knative::Knative, oracle::Oracle, predecessor::Predecessor};

/// A policy: told what is there, says what is to be done.
pub trait Scaler {
    fn name(&self) -> String;
    fn decide(&mut self, snapshot: &Snapshot) -> Vec<Action>;
}

/// What `flux-autoscaler` runs.
struct Flux {
    policy: Policy,
    history: History,
}

impl Scaler for Flux {
    fn name(&self) -> String {
        "flux".to_owned()
    }

    fn decide(&mut self, snapshot: &Snapshot) -> Vec<Action> {
        self.history.observe(snapshot, &self.policy);
        let decision = plan(snapshot, &self.policy, &self.history);
        self.history.decided(&decision);
        decision.actions.into_iter().map(|act| act.action).collect()
    }
}

/// So many nodes, always.
struct Fixed(u32);

impl Scaler for Fixed {
    fn name(&self) -> String {
        format!("fixed, {}", self.0)
    }

    fn decide(&mut self, snapshot: &Snapshot) -> Vec<Action> {
        to_count(snapshot, self.0)
    }
}

/// Everybody who is compared on this traffic: the plan itself first, the oracle second, the predecessor third.
pub fn compared(traffic: &Traffic, setting: &Setting) -> Vec<Box<dyn Scaler>> {
    let oracle = Oracle::new(traffic, setting);
    let (mean, peak) = (oracle.mean_nodes(), oracle.peak_nodes());
    vec![
        Box::new(Flux { policy: setting.policy.clone(), history: History::default() }),
        Box::new(oracle),
        Box::new(Predecessor::new(setting)),
        Box::new(Knative::new(setting)),
        Box::new(Fixed(mean)),
        Box::new(Fixed(peak)),
    ]
}

/// Launches or removes at once until there are so many: for policies that do not drain by degrees. Idle nodes go first.
pub(crate) fn to_count(snapshot: &Snapshot, count: u32) -> Vec<Action> {
    use flux_plan::Phase;

    let staying = |node: &&flux_plan::Node| !matches!(node.phase, Phase::Draining { .. });
    let there = snapshot.nodes.iter().filter(staying).count();
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    let mut actions: Vec<Action> = (there..wanted).map(|_| launch()).collect();
    let mut ready: Vec<&flux_plan::Node> = snapshot.nodes.iter().filter(|node| node.phase == Phase::Ready).collect();
    ready.sort_by_key(|node| node.load.map_or(0, |load| load.running));
    let excess = ready.iter().take(there.saturating_sub(wanted));
    actions.extend(excess.map(|node| Action::Drain { node: node.name.clone(), replaced_by: None }));
    actions.extend(drained(snapshot));
    actions
}

/// Terminates what has drained.
pub(crate) fn drained(snapshot: &Snapshot) -> impl Iterator<Item = Action> {
    let empty = snapshot.nodes.iter().filter(|node| node.load.is_some_and(|load| load.draining && load.running == 0));
    empty.map(|node| Action::Terminate { node: node.name.clone() })
}

pub(crate) fn launch() -> Action {
    use crate::setting::{NODE_TYPE, PROVIDER};
    Action::Launch { provider: PROVIDER.to_owned(), node_type: NODE_TYPE.to_owned() }
}
