//! Machines that are bought and returned.

use axum::{extract::State, response::IntoResponse};

use super::{
    super::{
        Api,
        wire::autoscaler::{AutoscalerBody, InitializedBody, NodesRemovedBody, SpawnedBody},
    },
    answer::ok,
};
use crate::refusal::Refusal;

/// What the autoscaler has, and what it decided last
#[utoipa::path(get, path = "/autoscaler", tag = "agents",
    responses((status = 200, description = "As it said last", body = AutoscalerBody), (status = 503, description = "no_autoscaler")))]
pub(super) async fn autoscaler(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    Ok(ok(AutoscalerBody::from(api.gateway.autoscaler().await?)))
}

/// Start `min_nodes` of every provider
///
/// Also after all nodes were removed: from then on the autoscaler launches nodes again.
#[utoipa::path(post, path = "/initialize", tag = "agents",
    responses((status = 200, description = "Launched, and not", body = InitializedBody), (status = 503, description = "no_autoscaler")))]
pub(super) async fn initialize(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    let (spawned, failed) = api.gateway.initialize_nodes().await?;
    Ok(ok(InitializedBody { nodes: SpawnedBody { spawned, failed } }))
}

/// Terminate and deregister every managed node
///
/// What they run goes back to the queue. None is launched until `POST /initialize`.
#[utoipa::path(delete, path = "/nodes", tag = "agents",
    responses((status = 200, description = "How many", body = NodesRemovedBody), (status = 503, description = "no_autoscaler")))]
pub(super) async fn remove(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    Ok(ok(NodesRemovedBody { status: "removed", removed: api.gateway.remove_nodes().await? }))
}
