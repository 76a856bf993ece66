//! Is it there, and is it of use?

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use flux_protocol::ErrorCode;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{super::Api, answer::ok};
use crate::{core::Readiness, refusal::Refusal};

#[derive(Serialize, ToSchema)]
pub(super) struct HealthBody {
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether the gateway answers at all
#[utoipa::path(get, path = "/health", tag = "operations", security(()), responses((status = 200, description = "It does", body = HealthBody)))]
pub(super) async fn health() -> Response {
    ok(HealthBody { status: "ok" }).into_response()
}

#[derive(Serialize, ToSchema)]
pub(super) struct ReadyBody {
    #[schema(example = "ready")]
    status: &'static str,
    #[schema(example = "ok")]
    queue: &'static str,
    #[schema(example = "ok")]
    store: &'static str,
    /// What accepted work survives: `process`, the death of every process; `fsync`, a power cut too
    #[schema(example = "process")]
    durability: &'static str,
}

/// Whether it can take work now
///
/// 503 while the queue or the store is out of reach, the queue stores nothing (its disk is or was full), or the gateway is going away: `details` says which.
#[utoipa::path(get, path = "/ready", tag = "operations", security(()), responses(
    (status = 200, description = "It can", body = ReadyBody),
    (status = 503, description = "queue_unavailable, store_unavailable, shutting_down"),
))]
pub(super) async fn ready(State(api): State<Api>) -> Response {
    let Readiness { queue, stores, store, draining, durability } = api.gateway.readiness().await;
    let draining = draining || api.shutdown.is_draining();
    let (code, message) = match (draining, queue, store) {
        (false, true, _) if !stores => (
            ErrorCode::QueueUnavailable,
            "the queue is reached and stores nothing, as a nats-server does whose disk is full, or was since its start: make room, and start it again",
        ),
        (true, ..) => (ErrorCode::ShuttingDown, "this gateway is going away; ask another"),
        (_, false, false) => (ErrorCode::QueueUnavailable, "neither the queue nor the store can be reached now"),
        (_, false, true) => (ErrorCode::QueueUnavailable, "the queue is out of reach now"),
        (_, true, false) => (ErrorCode::StoreUnavailable, "the store is out of reach now"),
        (false, true, true) => {
            let durability = durability.as_str();
            return ok(ReadyBody { status: "ready", queue: "ok", store: "ok", durability }).into_response();
        }
    };
    let word = |reached| if reached { "ok" } else { "unreachable" };
    let queue = if queue && !stores { "stores nothing" } else { word(queue) };
    Refusal::new(code, message)
        .with_details(json!({ "queue": queue, "store": word(store), "draining": draining }))
        .into_response()
}
