//! What was bought and what is meant to be: one value, whose every change is written before anything is done for it.
//!
//! ```text
//!   (plan: launch) ──► Wanted ──► Booting ──► Ready ◄──► Draining ──► Leaving ──► (gone)
//!                         │          │          │                        ▲
//!                         └──────────┴──────────┴── given up, removed ───┘
//!                              (found, and in no intent) ──► Draining
//! ```

use std::collections::{BTreeMap, BTreeSet};

use flux_plan::{Action, Load, Node as PlanNode, Phase, Policy, Wait};
use flux_protocol::{
    FunctionName, Timestamp,
    autoscaler::{ManagedNode, ManagedState},
    limits,
};
use flux_provider::{ClientToken, ClusterName, LIST_LAGS_AT_MOST, Node, NodeId, NodeState};
use serde::{Deserialize, Serialize};

/// Members are found under their name: the client token of their launch, and the id of their agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Fleet {
    /// Grows each time that another acts. Who finds a greater one than its own has lost the lease.
    pub epoch: u64,
    pub paused: bool,
    pub members: BTreeMap<String, Member>,
    /// Whose machine is gone, and whose identity is still to be revoked.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub to_forget: BTreeSet<String>,
    /// Where each provider's machines are: a list of another place has none of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub provider: String,
    pub node_type: String,
    pub state: ManagedState,
    /// Since when it is in this state.
    pub since: Timestamp,
    pub wanted_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<NodeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<String>,
    /// We told it to take no more work, and have not heard that it works again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
}

/// When an agent was heard of last, and what it said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heard {
    pub at: Timestamp,
    /// Unknown where it said it to a keeper before.
    pub load: Option<Load>,
}

/// What was terminated lately, and when: a list may have it still.
pub type Ended = BTreeMap<NodeId, Timestamp>;

/// What nobody meant to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// It has our tag and a name of ours, and is a member now.
    pub adopted: Vec<NodeId>,
    /// It has our tag and no name of ours: somebody else's to end.
    pub strays: Vec<NodeId>,
}

impl Member {
    pub fn enter(&mut self, state: ManagedState, at: Timestamp) {
        if self.state != state {
            (self.state, self.since) = (state, at);
        }
    }
}

impl Fleet {
    /// Writes down where providers are configured to have their machines. Not of those that have some elsewhere: they come
    /// back, with where that is, and are not to be asked for anything.
    pub fn settle(&mut self, configured: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut moved = BTreeMap::new();
        for (provider, place) in configured {
            let has_machines = self.members.values().any(|member| member.provider == *provider);
            match self.places.get(provider) {
                Some(before) if before == place => {}
                Some(before) if has_machines => {
                    moved.insert(provider.clone(), before.clone());
                }
                // Also of a record from before it said where: they are taken to be where they are looked for.
                _ => {
                    self.places.insert(provider.clone(), place.clone());
                }
            }
        }
        moved
    }

    /// Brings it in line with what a provider has. What has our tag and is in no intent is adopted: it drains, unless the plan
    /// takes it back. `ended` was terminated a moment ago, whatever the list says.
    pub fn reconcile(&mut self, provider: &str, listed: &[Node], ended: &Ended, at: Timestamp) -> Found {
        let mut found = Found::default();
        for node in listed.iter().filter(|node| node.state.is_alive()) {
            let Some(token) = &node.client_token else {
                found.strays.push(node.id.clone());
                continue;
            };
            match self.members.get_mut(token.as_str()) {
                Some(member) if member.provider != provider => found.strays.push(node.id.clone()),
                Some(member) => {
                    // It was launched, and whoever did so did not come to write it down.
                    member.provider_id = Some(node.id.clone());
                    if member.state == ManagedState::Wanted {
                        member.enter(ManagedState::Booting, at);
                    }
                }
                None if ended.contains_key(&node.id) => {}
                None => {
                    let member = Member {
                        provider: provider.to_owned(),
                        node_type: node.node_type.to_string(),
                        state: ManagedState::Draining,
                        since: at,
                        wanted_at: at,
                        provider_id: Some(node.id.clone()),
                        replaced_by: None,
                        drained: false,
                    };
                    self.members.insert(token.to_string(), member);
                    found.adopted.push(node.id.clone());
                }
            }
        }
        let to_forget = &mut self.to_forget;
        self.members.retain(|name, member| {
            if member.provider != provider {
                return true;
            }
            let of = listed.iter().find(|node| {
                node.client_token.as_ref().is_some_and(|token| token.as_str() == name)
                    || member.provider_id.as_ref() == Some(&node.id)
            });
            let stays = match of.map(|node| node.state) {
                Some(NodeState::Pending | NodeState::Running) => true,
                Some(NodeState::Stopping | NodeState::Gone) => false,
                // A list may lag behind a launch, and what is still to be launched is in none.
                None => {
                    let asked = match member.state {
                        // A launch may have taken long.
                        ManagedState::Booting | ManagedState::Leaving => member.since,
                        _ => member.wanted_at,
                    };
                    member.state == ManagedState::Wanted || at.since(asked) <= LIST_LAGS_AT_MOST
                }
            };
            if !stays {
                to_forget.insert(name.clone());
            }
            stays
        });
        found
    }

    /// Agents that were heard of are ready.
    pub fn hear(&mut self, loads: &BTreeMap<String, Load>, at: Timestamp) {
        for (name, member) in &mut self.members {
            let Some(load) = loads.get(name) else { continue };
            match member.state {
                ManagedState::Booting => member.enter(ManagedState::Ready, at),
                ManagedState::Draining => member.drained = true,
                // Not what it said before it was told.
                ManagedState::Ready if !load.draining && at.since(member.since) >= limits::AGENT_OFFLINE_AFTER => {
                    member.drained = false;
                }
                ManagedState::Wanted | ManagedState::Ready | ManagedState::Leaving => {}
            }
        }
    }

    /// Writes down what is to be done.
    pub fn intend(&mut self, actions: &[&Action], cluster: &ClusterName, at: Timestamp) {
        for action in actions {
            match action {
                Action::Launch { provider, node_type } => {
                    let member = Member {
                        provider: provider.clone(),
                        node_type: node_type.clone(),
                        state: ManagedState::Wanted,
                        since: at,
                        wanted_at: at,
                        provider_id: None,
                        replaced_by: None,
                        drained: false,
                    };
                    self.members.insert(ClientToken::fresh(cluster).to_string(), member);
                }
                Action::Undrain { node } => self.enter(node, ManagedState::Ready, None, at),
                Action::Drain { node, replaced_by } => {
                    self.enter(node, ManagedState::Draining, replaced_by.clone(), at);
                }
                Action::Terminate { node } => self.enter(node, ManagedState::Leaving, None, at),
            }
        }
    }

    fn enter(&mut self, name: &str, state: ManagedState, replaced_by: Option<String>, at: Timestamp) {
        if let Some(member) = self.members.get_mut(name) {
            member.enter(state, at);
            member.replaced_by = replaced_by;
        }
    }

    /// All go, and none comes until somebody asks for them.
    pub fn remove_all(&mut self, at: Timestamp) -> u32 {
        self.paused = true;
        let mut removed = 0;
        for member in self.members.values_mut().filter(|member| member.state != ManagedState::Leaving) {
            member.enter(ManagedState::Leaving, at);
            removed += 1;
        }
        removed
    }

    /// The machines as the plan sees them. `heard` says since when an agent is silent, and what it said last. What boots, or is to
    /// go, at a provider that is not `in_reach` may never come or go: it costs, and no rule waits for it.
    pub fn seen(
        &self,
        loads: &BTreeMap<String, Load>,
        heard: &BTreeMap<String, Heard>,
        in_reach: impl Fn(&str) -> bool,
    ) -> Vec<PlanNode> {
        let node = |(name, member): (&String, &Member)| {
            // One that we take back is as good as back.
            let load = loads.get(name).map(|load| Load { draining: load.draining && !taken_back(member), ..*load });
            let last = heard.get(name);
            let silent_since = || last.map_or(member.since, |last| last.at.max(member.since));
            let (phase, since) = match member.state {
                ManagedState::Wanted | ManagedState::Booting | ManagedState::Leaving if !in_reach(&member.provider) => {
                    (Phase::Cordoned, member.since)
                }
                // From when it was ordered: a launch that does not succeed does not begin anew.
                ManagedState::Wanted | ManagedState::Booting => (Phase::Booting, member.wanted_at),
                ManagedState::Ready if load.is_none() => (Phase::Silent, silent_since()),
                ManagedState::Ready if load.is_some_and(|load| load.draining) => (Phase::Cordoned, member.since),
                ManagedState::Ready => (Phase::Ready, member.since),
                ManagedState::Draining => (Phase::Draining { replaced_by: member.replaced_by.clone() }, member.since),
                ManagedState::Leaving => (Phase::Leaving, member.since),
            };
            let (provider, node_type) = (member.provider.clone(), member.node_type.clone());
            let load = if phase == Phase::Silent { last.and_then(|last| last.load) } else { load };
            PlanNode { name: name.clone(), provider, node_type, managed: true, phase, since, load }
        };
        self.members.iter().map(node).collect()
    }

    /// What waits, with what runs of it on our machines, of what runs on all agents.
    pub fn waits(&self, waits: &[Wait], running: &BTreeMap<String, BTreeMap<FunctionName, u64>>) -> Vec<Wait> {
        let ours = |function: &FunctionName| {
            let ours = running.iter().filter(|(agent, _)| self.members.contains_key(*agent));
            ours.filter_map(|(_, running)| running.get(function)).sum()
        };
        waits.iter().map(|wait| Wait { running: ours(&wait.function), ..wait.clone() }).collect()
    }

    pub fn shown(&self, policy: &Policy) -> Vec<ManagedNode> {
        let price = |member: &Member| {
            let provider = policy.providers.iter().find(|provider| provider.name == member.provider);
            let of = provider.and_then(|provider| provider.node_types.iter().find(|of| of.name == member.node_type));
            of.map_or(0.0, |of| of.price_per_hour)
        };
        let node = |(name, member): (&String, &Member)| ManagedNode {
            id: name.clone(),
            provider: member.provider.clone(),
            provider_id: member.provider_id.as_ref().map(ToString::to_string),
            instance_type: member.node_type.clone(),
            state: member.state,
            since: member.since,
            wanted_at: member.wanted_at,
            price_per_hour: price(member),
        };
        self.members.iter().map(node).collect()
    }
}

/// Whether it is told to work again, if it does not say that it does.
pub(crate) fn taken_back(member: &Member) -> bool {
    member.state == ManagedState::Ready && member.drained
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_list_that_lags_forgets_no_launch_that_took_long() {
        let (wanted_at, since) = (Timestamp::from_micros(0), Timestamp::from_micros(0).plus(Duration::from_secs(70)));
        let member = Member {
            provider: "p".to_owned(),
            node_type: "small".to_owned(),
            state: ManagedState::Booting,
            since,
            wanted_at,
            provider_id: None,
            replaced_by: None,
            drained: false,
        };
        let mut fleet = Fleet { members: BTreeMap::from([("n".to_owned(), member)]), ..Fleet::default() };
        fleet.reconcile("p", &[], &Ended::new(), since.plus(Duration::from_secs(5)));
        assert_eq!(fleet.members.len(), 1);
        fleet.reconcile("p", &[], &Ended::new(), since.plus(LIST_LAGS_AT_MOST + Duration::from_secs(5)));
        assert_eq!(fleet.members.len(), 0);
    }
}
