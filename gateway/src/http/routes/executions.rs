//! Records: list, one, why, cancel.

use axum::{Extension, extract::State, response::IntoResponse};
use flux_protocol::{ErrorCode, ExecutionId, FunctionName, OutcomeStatus, Timestamp, limits};
use flux_store::{ExecutionFilter, StatusFilter};

use super::{
    super::{
        Api,
        caller::Caller,
        path::Id,
        query::RawQuery,
        wire::execution::{CancelledBody, ExecutionBody, ExecutionsBody, WhyBody},
    },
    answer::{by_size, ok},
};
use crate::refusal::Refusal;

/// List executions, newest first, without their output
#[utoipa::path(get, path = "/executions", tag = "executions",
    params(
        ("function" = Option<String>, Query, description = "Only of this function"),
        ("status" = Option<String>, Query, description = "`running` (queued ones too), `success`, `failed` or `cancelled`"),
        ("since" = Option<String>, Query, description = "Queued at or after this time (RFC 3339)"),
        ("limit" = Option<u64>, Query, description = "Executions of a page, 1 to 1000; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page", body = ExecutionsBody), (status = 503, description = "store_unavailable")))]
pub(super) async fn list(State(api): State<Api>, query: RawQuery) -> Result<impl IntoResponse, Refusal> {
    let query = query.of(&["function", "status", "since", "limit", "cursor"])?;
    let limit = query.limit()?;
    let filter = ExecutionFilter {
        function: query.parsed::<FunctionName>("function")?,
        status: query.one("status")?.map(status).transpose()?,
        since: query.parsed::<Timestamp>("since")?,
        cursor: query.parsed::<ExecutionId>("cursor")?,
        limit,
    };
    let page = api.gateway.executions(filter).await?;
    let next_cursor = page.last().filter(|_| page.len() >= limit).map(|last| last.execution_id.to_string());
    Ok(ok(ExecutionsBody { executions: page.into_iter().map(ExecutionBody::outline).collect(), next_cursor }))
}

/// Who may not see everything may see the executions of functions that it runs.
pub(super) async fn require_to_see(api: &Api, caller: &Caller, id: ExecutionId) -> Result<(), Refusal> {
    if caller.sees_all() {
        return Ok(());
    }
    caller.require_to_see(&api.gateway.execution(id).await?.function)
}

fn status(text: &str) -> Result<StatusFilter, Refusal> {
    match text {
        "running" => Ok(StatusFilter::Running),
        "success" => Ok(StatusFilter::Ended(OutcomeStatus::Success)),
        "failed" => Ok(StatusFilter::Ended(OutcomeStatus::Failed)),
        "cancelled" => Ok(StatusFilter::Ended(OutcomeStatus::Cancelled)),
        _ => Err(Refusal::new(ErrorCode::InvalidRequest, "`?status=` is one of running, success, failed, cancelled")
            .with_field("status")),
    }
}

/// One execution, with its output
///
/// With `?wait=` it answers when the execution has its outcome, or the time is up, or the gateway is going away.
#[utoipa::path(get, path = "/executions/{id}", tag = "executions",
    params(
        ("id" = String, Path, description = "The execution"),
        ("wait" = Option<String>, Query, description = "Hold until it has its outcome, at most 60 s: `30s`"),
    ),
    responses(
        (status = 200, description = "The record", body = ExecutionBody),
        (status = 404, description = "execution_not_found"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    let wait = query.of(&["wait"])?.duration("wait", limits::POLL_WAIT)?;
    require_to_see(&api, &caller, id).await?;
    let record = match wait {
        None => api.gateway.execution(id).await?,
        Some(wait) => tokio::select! {
            record = api.gateway.wait(id, wait) => record?,
            // A poll says nothing that another gateway could not say.
            () = api.shutdown.draining() => api.gateway.execution(id).await?,
        },
    };
    let output = api.gateway.output(&record).await?;
    by_size(output.len(), move || ok(ExecutionBody::whole(record, &output)).into_response()).await
}

/// Cancel an execution, queued or running
///
/// Its processes are killed at once, unless the function sets `stop_grace` (then SIGTERM comes first).
#[utoipa::path(delete, path = "/executions/{id}", tag = "executions",
    params(("id" = String, Path, description = "The execution")),
    responses(
        (status = 200, description = "It is cancelled", body = CancelledBody),
        (status = 404, description = "execution_not_found"),
        (status = 409, description = "already_terminal"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn cancel(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    if !caller.is_admin() {
        caller.require_to_stop(&api.gateway.execution(id).await?.function)?;
    }
    api.gateway.cancel(id).await?;
    Ok(ok(CancelledBody { status: "cancelled", execution_id: id.to_string() }))
}

/// Why an execution is still queued
#[utoipa::path(get, path = "/executions/{id}/why", tag = "executions",
    params(("id" = String, Path, description = "The execution")),
    responses(
        (status = 200, description = "The reason, with numbers and the remedy", body = WhyBody),
        (status = 404, description = "execution_not_found"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn why(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    require_to_see(&api, &caller, id).await?;
    Ok(ok(WhyBody::from(api.gateway.why(id).await?)))
}
