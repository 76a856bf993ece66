//! Tickets, for browsers.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use flux_protocol::{ExecutionId, limits, time::now};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    super::{Api, caller::Caller, json, query::RawQuery, request_body, ticket, wire::key::TicketBody},
    answer::Json,
};
use crate::refusal::Refusal;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketRequest {
    #[schema(value_type = String)]
    execution_id: ExecutionId,
}

/// Get a ticket to watch an execution
///
/// For `EventSource`, which sends no headers: `/executions/{id}/stream?ticket=…` within a minute. It opens nothing else.
#[utoipa::path(post, path = "/tickets", tag = "executions",
    request_body(content = TicketRequest, example = json!({"execution_id": "exc-01890000-0000-7000-8000-000000000000"})),
    responses(
        (status = 201, description = "The ticket", body = TicketBody),
        (status = 404, description = "execution_not_found"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn make(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let body = request_body::read(&api, &headers, body, limits::REQUEST_OVERHEAD, "this request").await?;
    let TicketRequest { execution_id } = json::parse(&body.bytes, &["execution_id"])?;
    // Even who sees everything gets none for what is not there.
    caller.require_to_see(&api.gateway.execution(execution_id).await?.function)?;
    let until = now().plus(limits::TICKET);
    let ticket = ticket::make(api.gateway.ticket_key(), execution_id, until);
    Ok(Json(StatusCode::CREATED, TicketBody::new(ticket, until)))
}
