//! Doing what is written: every call follows from a member's state, and may be repeated.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_plan::Load;
use flux_protocol::{AgentId, PoolName, Timestamp, autoscaler::ManagedState};
use flux_provider::{Advice, ClientToken, ErrorKind, LaunchRequest, NodeId, NodeType, ProviderError, SharedProvider};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};

use crate::fleet::{Ended, Fleet, Member, taken_back};

/// Calls of one kind at once.
const AT_ONCE: usize = 8;
/// A type that was not to be had is not asked for again for so long; the same of a provider that needs somebody's hand.
const TYPE_REFUSED_FOR: Duration = Duration::from_secs(120);
const PROVIDER_REFUSED_FOR: Duration = Duration::from_secs(300);

/// What is asked of agents, and of those who know them.
#[async_trait]
pub trait Agents: Send + Sync {
    /// It takes no more work, or takes work again.
    async fn cordon(&self, agent: &AgentId, cordoned: bool);
    /// Its machine is gone: it is not let in any more. Whether that is so, for who has to ask again where it is not.
    async fn forget(&self, agent: &AgentId) -> bool;
}

/// Types that are not asked for, until when. An empty type is all of a provider's.
pub(crate) type Refused = BTreeMap<(String, String), Timestamp>;

pub(crate) struct Hands {
    pub(crate) providers: BTreeMap<String, SharedProvider>,
    pub(crate) agents: Arc<dyn Agents>,
    pub(crate) pool: PoolName,
}

/// How launches went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Launches {
    pub launched: u32,
    pub failed: u32,
}

impl Hands {
    /// Launches what is wanted, and notes what came of it.
    pub(crate) async fn launch(&self, fleet: &mut Fleet, refused: &mut Refused, at: Timestamp) -> Launches {
        // Of a provider that is out of reach it is not known whether the machine is there already.
        let in_reach = |(_, member): &(String, Member)| self.providers.contains_key(&member.provider);
        let wanted: Vec<_> = of_state(fleet, ManagedState::Wanted).into_iter().filter(in_reach).collect();
        let calls: Vec<BoxFuture<'_, _>> = wanted
            .iter()
            .map(|(name, member)| async move { (name, member, self.launch_one(name, member).await) }.boxed())
            .collect();
        let began = tokio::time::Instant::now();
        let outcomes: Vec<_> = futures::stream::iter(calls).buffered(AT_ONCE).collect().await;
        let launched_at = at.plus(began.elapsed());
        let mut launches = Launches::default();
        for (name, member, outcome) in outcomes {
            let error = match outcome {
                Ok(id) => {
                    launches.launched += 1;
                    tracing::info!(node = %name, provider_id = %id, node_type = %member.node_type, "a node was launched");
                    if let Some(member) = fleet.members.get_mut(name) {
                        member.provider_id = Some(id);
                        member.enter(ManagedState::Booting, launched_at);
                    }
                    continue;
                }
                Err(error) => error,
            };
            launches.failed += 1;
            tracing::warn!(node = %name, error = &error as &dyn std::error::Error, "a node was not launched");
            let (node_type, patience) = match error.advice() {
                // It may be there: asked for again, under the same token.
                Advice::Again => continue,
                Advice::NextTypeOrZone => (member.node_type.clone(), TYPE_REFUSED_FOR),
                Advice::Change => (String::new(), PROVIDER_REFUSED_FOR),
            };
            refused.insert((member.provider.clone(), node_type), at.plus(patience));
            fleet.members.remove(name);
        }
        launches
    }

    async fn launch_one(&self, name: &str, member: &Member) -> Result<NodeId, ProviderError> {
        let attempted = || format!("launch {name} at {}", member.provider);
        let provider = self.providers.get(&member.provider);
        let provider =
            provider.ok_or_else(|| ProviderError::invalid("providers", attempted(), "it is not configured"))?;
        let invalid = |field| move |error| ProviderError::invalid(field, attempted(), error);
        let token = ClientToken::parse(name).map_err(invalid("token"))?;
        let node_type = NodeType::parse(&member.node_type).map_err(invalid("node_types"))?;
        let mut last = None;
        for zone in provider.zones() {
            let mut request = LaunchRequest::new(token.clone(), node_type.clone(), self.pool.clone());
            request.zone = Some(zone.clone());
            match provider.launch(&request).await {
                Ok(node) => return Ok(node.id),
                // Nothing is left behind by it, so that another zone is no second machine.
                Err(error) if error.kind() == ErrorKind::Capacity => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| ProviderError::invalid("zones", attempted(), "it has none")))
    }

    /// Terminates what leaves: what is gone now, and whose it was.
    pub(crate) async fn terminate(
        &self,
        fleet: &mut Fleet,
        lately: &mut Ended,
        at: Timestamp,
    ) -> Vec<(String, NodeId)> {
        let mut gone = Vec::new();
        let in_reach = |(_, member): &(String, Member)| self.providers.contains_key(&member.provider);
        let leaving = of_state(fleet, ManagedState::Leaving).into_iter().filter(in_reach);
        let leaving = leaving.filter_map(|(name, member)| Some((name, member.provider, member.provider_id?)));
        let call = |(name, provider, id): (String, String, NodeId)| {
            async move {
                let ended = match self.providers.get(&provider) {
                    Some(at) => at.terminate(&id).await,
                    None => Err(ProviderError::NotFound { what: format!("provider {provider}") }),
                };
                (name, provider, id, ended)
            }
            .boxed()
        };
        let calls: Vec<BoxFuture<'_, _>> = leaving.map(call).collect();
        let outcomes: Vec<_> = futures::stream::iter(calls).buffered(AT_ONCE).collect().await;
        for (name, provider, id, ended) in outcomes {
            match ended {
                Ok(()) => {
                    tracing::info!(node = %name, provider_id = %id, "a node was terminated");
                    fleet.members.remove(&name);
                    fleet.to_forget.insert(name);
                    lately.insert(id.clone(), at);
                    gone.push((provider, id));
                }
                Err(error) => {
                    tracing::warn!(provider_id = %id, error = &error as &dyn std::error::Error, "a node was not terminated; trying again");
                }
            }
        }
        gone
    }

    /// Revokes the identities of what is gone; what is not revoked now is at the next look. Few of them at one, which is to go on.
    pub(crate) async fn forget(&self, fleet: &mut Fleet) {
        let names: Vec<String> = fleet.to_forget.iter().take(AT_ONCE).cloned().collect();
        let calls = names.iter().map(|name| async move {
            match AgentId::parse(name) {
                Ok(agent) => self.agents.forget(&agent).await,
                Err(_) => true,
            }
        });
        let forgotten = futures::future::join_all(calls).await;
        for (name, _) in names.iter().zip(forgotten).filter(|(_, forgotten)| *forgotten) {
            fleet.to_forget.remove(name);
        }
    }

    /// Tells agents to take no more work, or work again where we had told them not to, if they say otherwise.
    pub(crate) async fn cordon(&self, fleet: &Fleet, loads: &BTreeMap<String, Load>) {
        for (name, member) in &fleet.members {
            let Some(load) = loads.get(name) else { continue };
            let wanted = match member.state {
                ManagedState::Draining | ManagedState::Leaving => true,
                ManagedState::Ready if taken_back(member) => false,
                // Somebody else drained it, or it goes by itself.
                ManagedState::Ready => continue,
                ManagedState::Wanted | ManagedState::Booting => continue,
            };
            if let Ok(agent) = AgentId::parse(name)
                && load.draining != wanted
            {
                self.agents.cordon(&agent, wanted).await;
            }
        }
    }
}

fn of_state(fleet: &Fleet, state: ManagedState) -> Vec<(String, Member)> {
    let members = fleet.members.iter().filter(|(_, member)| member.state == state);
    members.map(|(name, member)| (name.clone(), member.clone())).collect()
}
