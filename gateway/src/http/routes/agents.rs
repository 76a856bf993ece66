//! Agents, and what they and this gateway use of their machines.

use axum::{Extension, extract::State, response::IntoResponse};

use super::{
    super::{
        Api,
        caller::Caller,
        wire::agent::{AgentBody, AgentResourcesBody, FluxNodeBody, ResourcesBody},
    },
    answer::ok,
};
use crate::core::AgentView;

/// Agents as this gateway last heard of them
///
/// An agent that has said nothing for 3 s is `offline`, and forgotten some seconds later. Without a key, `pool`, `total`
/// and `free` are left out.
#[utoipa::path(get, path = "/agents", tag = "agents", security(()), responses((status = 200, description = "The agents", body = Vec<AgentBody>)))]
pub(super) async fn agents(State(api): State<Api>, caller: Option<Extension<Caller>>) -> impl IntoResponse {
    let known = api.gateway.identities().await;
    let body = |agent: AgentView| {
        let of = known.get(&agent.heartbeat.agent_id).cloned().unwrap_or_default();
        AgentBody::new(agent, of)
    };
    let agents = api.gateway.agents().into_iter().map(body);
    ok(match caller {
        Some(_) => agents.collect::<Vec<_>>(),
        None => agents.map(AgentBody::public).collect(),
    })
}

/// What Flux and its agents use of their machines
#[utoipa::path(get, path = "/resources", tag = "agents", responses((status = 200, description = "The nodes", body = ResourcesBody)))]
pub(super) async fn resources(State(api): State<Api>) -> impl IntoResponse {
    let known = api.gateway.identities().await;
    let of = |agent: &AgentView| known.get(&agent.heartbeat.agent_id).cloned().unwrap_or_default();
    let agents =
        api.gateway.agents().into_iter().map(|agent| AgentResourcesBody::new(agent.clone(), of(&agent))).collect();
    ok(ResourcesBody { flux: FluxNodeBody { node: api.gateway.node().into() }, agents })
}
