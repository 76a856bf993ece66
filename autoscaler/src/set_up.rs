//! From a machine that runs to an agent that is heard of: beside the looks, so many at once, and begun anew after a crash.
//!
//! A machine that runs, belongs to a member that boots, and whose agent nobody hears, is to be set up. That is all there is to
//! know, and it is in the record and at the provider: nothing is written for it. What fails makes its member leave.
//!
//! ```text
//!   a look ──► take outcomes ──► (failed: the member leaves, the provider is not asked for a while)
//!          └─► begin tasks, while there is room ──► SetUp::set_up ──► outcome
//! ```

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_plan::{Action, Decision, Reason, Rule};
use flux_protocol::{
    AgentId, PoolName, Timestamp,
    autoscaler::{ActionRecord, ManagedState, SaidReason},
    limits,
};
use flux_provider::{Node, NodeId, NodeState};
use flux_runtime::Tasks;
use tokio::sync::oneshot;

use crate::fleet::Fleet;

/// What turns a running machine of a provider into an agent. A provider whose machines start their agents by themselves has none.
///
/// **Repeating.** May be called again for the same machine, after any outcome and after none. Dropped, it ends where it is.
#[async_trait]
pub trait SetUp: Send + Sync {
    /// What the machine lacks to be set up, and may have at the next look; `None`: nothing.
    fn lacks(&self, node: &Node) -> Option<String>;

    /// Makes it the agent of that name. Comes back when that was heard of.
    ///
    /// # Errors
    /// It was given up: the machine is of no use.
    async fn set_up(&self, agent: &AgentId, pool: &PoolName, node: &Node) -> Result<(), NotSetUp>;

    /// The machine is gone.
    fn forget(&self, node: &NodeId);
}

/// Why a machine did not become an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NotSetUp {
    pub why: String,
    /// The end of what it printed, without secrets.
    pub output: String,
}

type Outcome = Result<(), NotSetUp>;

/// Failures of a provider's machines, one after the other.
struct Failing {
    times: u32,
    said: String,
    until: Timestamp,
}

/// The set-ups that go on.
pub struct SetUps {
    by_provider: BTreeMap<String, Arc<dyn SetUp>>,
    tasks: Tasks,
    /// Whoever drops a receiver ends its task.
    running: BTreeMap<String, oneshot::Receiver<Outcome>>,
    failing: BTreeMap<String, Failing>,
    /// Members whose machines lack something, as of the last look, and what.
    lacking: BTreeMap<String, String>,
}

impl SetUps {
    pub fn new(by_provider: BTreeMap<String, Arc<dyn SetUp>>, tasks: Tasks) -> Self {
        Self { by_provider, tasks, running: BTreeMap::new(), failing: BTreeMap::new(), lacking: BTreeMap::new() }
    }

    /// Ends all that go on: they are another's to go on with.
    pub(crate) fn drop_all(&mut self) {
        self.running.clear();
    }

    /// Ends those of members that are to go: none asks for an identity that was revoked a moment ago.
    pub(crate) fn drop_leaving(&mut self, fleet: &Fleet) {
        self.running.retain(|name, _| {
            fleet
                .members
                .get(name)
                .is_some_and(|member| matches!(member.state, ManagedState::Booting | ManagedState::Ready))
        });
    }

    /// Takes outcomes. Who failed leaves, and is told of.
    pub(crate) fn take(&mut self, fleet: &mut Fleet, at: Timestamp) -> Vec<ActionRecord> {
        self.drop_leaving(fleet);
        let mut failed = Vec::new();
        let mut running = std::mem::take(&mut self.running);
        running.retain(|name, outcome| {
            let Some(member) = fleet.members.get_mut(name) else { return false };
            let outcome = match outcome.try_recv() {
                Ok(outcome) => outcome,
                Err(oneshot::error::TryRecvError::Empty) => return true,
                // It panicked, or the process ends.
                Err(oneshot::error::TryRecvError::Closed) => {
                    if self.tasks.shutdown().is_draining() {
                        return false;
                    }
                    Err(NotSetUp { why: "setting it up ended without an outcome".to_owned(), output: String::new() })
                }
            };
            match outcome {
                Ok(()) => {
                    self.failing.remove(&member.provider);
                }
                // It works, whatever became of the connection to it.
                Err(_) if member.state == ManagedState::Ready => {}
                Err(not) => {
                    member.enter(ManagedState::Leaving, at);
                    failed.push(self.failed(name, &member.provider, member.provider_id.as_ref(), &not, at));
                }
            }
            false
        });
        self.running = running;
        failed
    }

    fn failed(
        &mut self,
        name: &str,
        provider: &str,
        id: Option<&NodeId>,
        not: &NotSetUp,
        at: Timestamp,
    ) -> ActionRecord {
        let (times, pause) = self.fails(provider, &not.why, at);
        let id = id.map_or_else(String::new, |id| format!(" ({id} at {provider})"));
        tracing::warn!(node = %name, why = %not.why, output = %not.output, pause_seconds = pause.as_secs(), "a machine could not be set up: it is terminated");
        let inputs = BTreeMap::from([
            ("failed_one_after_another".to_owned(), f64::from(times)),
            ("asked_again_in_sec".to_owned(), pause.as_secs_f64()),
        ]);
        ActionRecord {
            action: "terminate".to_owned(),
            what: format!("{name}{id}"),
            reason: SaidReason { rule: RULE.to_owned(), said: not.why.clone(), inputs },
            output: Some(end_of(&not.output, limits::AUTOSCALER_OUTPUT)).filter(|output| !output.is_empty()),
        }
    }

    /// Its provider is not asked for a while: how many failed one after the other, and that while.
    fn fails(&mut self, provider: &str, why: &str, at: Timestamp) -> (u32, Duration) {
        let (times, until) = match self.failing.get(provider) {
            // Launched before the first of them failed: all are one failure.
            Some(failing) if at < failing.until => (failing.times, failing.until),
            before => {
                let before = before.map_or(0, |failing| failing.times);
                let pause = limits::SET_UP_FAILED.saturating_mul(1 << before.min(16)).min(limits::SET_UP_FAILED_MOST);
                (before + 1, at.plus(pause))
            }
        };
        let said = format!("{provider}: a machine could not be set up: {why}");
        self.failing.insert(provider.to_owned(), Failing { times, said, until });
        (times, until.since(at))
    }

    /// Machines that are given up by that decision for not having started, each with its why: failures like those that a set-up
    /// tells of. A machine that did not come to its turn is none.
    pub(crate) fn not_started(
        &mut self,
        fleet: &Fleet,
        decision: &Decision,
        at: Timestamp,
    ) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for act in decision.actions.iter().filter(|act| act.reason.rule == Rule::NotStarted) {
            let Action::Terminate { node: name } = &act.action else { continue };
            let Some(member) = fleet.members.get(name).filter(|member| member.provider_id.is_some()) else { continue };
            if !self.by_provider.contains_key(&member.provider) {
                continue;
            }
            let why = if self.running.contains_key(name) {
                "`boot_timeout_sec` was over while it was still being set up; the autoscaler's log has the steps that were done"
                    .to_owned()
            } else if let Some(lacks) = self.lacking.get(name) {
                format!("`boot_timeout_sec` was over for {lacks}")
            } else if self.running.len() >= limits::BOOTSTRAPS_AT_ONCE {
                continue;
            } else {
                "its agent was not heard of within `boot_timeout_sec`".to_owned()
            };
            let (_, pause) = self.fails(&member.provider, &why, at);
            tracing::warn!(node = %name, %why, pause_seconds = pause.as_secs(), "a machine is not an agent in time: it is terminated");
            all.insert(name.clone(), why);
        }
        all
    }

    /// No more are bought than can be set up: a machine that waits for its turn costs, and is late through no fault of its own.
    pub(crate) fn keep_to_places(&self, fleet: &Fleet, decision: &mut Decision) {
        let coming = fleet.members.values().filter(|member| {
            self.by_provider.contains_key(&member.provider)
                && matches!(member.state, ManagedState::Wanted | ManagedState::Booting)
        });
        let mut free = limits::BOOTSTRAPS_AT_ONCE.saturating_sub(coming.count());
        let mut held_back: u32 = 0;
        decision.actions.retain(|act| match &act.action {
            // One whose place is made already is not held back.
            Action::Launch { provider, .. }
                if act.reason.rule != Rule::Replace && self.by_provider.contains_key(provider) =>
            {
                let fits = free > 0;
                free = free.saturating_sub(1);
                held_back += u32::from(!fits);
                fits
            }
            _ => true,
        });
        if held_back > 0 {
            let said =
                "no more are launched than are set up at once; the others follow when these are ready".to_owned();
            let inputs = BTreeMap::from([("held_back".to_owned(), f64::from(held_back))]);
            decision.notes.push(Reason { rule: Rule::Held, said, inputs });
        }
    }

    /// Providers that are not to be asked for machines, and until when.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&String, Timestamp)> {
        self.failing.iter().map(|(provider, failing)| (provider, failing.until))
    }

    /// What is to be said at every look, until a machine of the provider was set up.
    pub(crate) fn notes(&self, at: Timestamp) -> Vec<SaidReason> {
        let failing = self.failing.values().map(|failing| {
            let left = if failing.until > at { failing.until.since(at) } else { Duration::ZERO };
            SaidReason {
                rule: RULE.to_owned(),
                said: failing.said.clone(),
                // In tens: the status is published whenever it changes.
                inputs: BTreeMap::from([("asked_again_in_sec".to_owned(), (left.as_secs_f64() / 10.0).ceil() * 10.0)]),
            }
        });
        let lacking = self.lacking.values().map(|said| SaidReason {
            rule: RULE.to_owned(),
            said: said.clone(),
            inputs: BTreeMap::new(),
        });
        failing.chain(lacking).collect()
    }

    /// Begins what is to be begun. `listed` are machines under their members' names.
    pub(crate) fn begin(&mut self, fleet: &Fleet, listed: &BTreeMap<String, Node>, pool: &PoolName) {
        self.lacking.clear();
        for (name, member) in &fleet.members {
            let Some(set_up) = self.by_provider.get(&member.provider) else { continue };
            let Some(node) = listed.get(name).filter(|node| node.state == NodeState::Running) else { continue };
            if member.state != ManagedState::Booting || self.running.contains_key(name) {
                continue;
            }
            if let Some(lacks) = set_up.lacks(node) {
                self.lacking.insert(name.clone(), format!("{} at {}: {lacks}", node.id, member.provider));
                continue;
            }
            let Ok(agent) = AgentId::parse(name) else { continue };
            if self.running.len() >= limits::BOOTSTRAPS_AT_ONCE {
                break;
            }
            let (mut told, outcome) = oneshot::channel();
            let (set_up, node, pool) = (Arc::clone(set_up), node.clone(), pool.clone());
            let ends = Arc::clone(self.tasks.shutdown());
            tracing::info!(node = %agent, provider_id = %node.id, "a machine is set up");
            self.tasks.spawn("set-up", async move {
                let outcome = tokio::select! {
                    outcome = set_up.set_up(&agent, &pool, &node) => outcome,
                    // Nobody waits for it any more.
                    () = told.closed() => return,
                    () = ends.draining() => return,
                };
                let _ = told.send(outcome);
            });
            self.running.insert(name.clone(), outcome);
        }
    }

    pub(crate) fn forget(&self, provider: &str, node: &NodeId) {
        if let Some(set_up) = self.by_provider.get(provider) {
            set_up.forget(node);
        }
    }
}

/// As decisions and notes have it.
const RULE: &str = "set_up";

/// The last bytes, from the beginning of a character on.
fn end_of(text: &str, most: usize) -> String {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_text() {
        assert_eq!(end_of("abc", 5), "abc");
        assert_eq!(end_of("abc", 2), "bc");
        assert_eq!(end_of("ab\u{20ac}", 2), "", "a character that does not fit whole is left out");
    }
}
