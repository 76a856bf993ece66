//! Run a function: wait for its outcome, or be told that it will run.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::LOCATION},
    response::{IntoResponse as _, Response},
};
use flux_protocol::{ErrorCode, ErrorKind, FunctionName, Outcome, OutcomeStatus};
use serde_json::json;

use super::{
    super::{
        Api, Http,
        path::Known,
        query::RawQuery,
        wire::execution::{AcceptedBody, CalledBody, ExecuteRequest},
    },
    answer::{EXECUTION_ID, Json, REPLAYED, TRACEPARENT, by_size, set},
    invocation::{self, Invocation},
};
use crate::{core::Called, refusal::Refusal};

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Run a function and wait for its outcome
///
/// A JSON body is `{"args": […], "payload": any}`, and the function reads the payload on stdin exactly as it was
/// written. A body of another content type is the payload itself, byte for byte, with arguments in `?arg=`. A caller
/// that disconnects cancels the execution. The function's own failure (its exit code, a signal, its `timeout`, its
/// memory) is 500 with `status: failed`; 504 is the caller's own deadline.
#[utoipa::path(post, path = "/execute/{name}", tag = "executions",
    params(
        ("name" = String, Path, description = "The function"),
        ("timeout" = Option<String>, Query, description = "The caller's deadline from now: `30`, `1.5s`, `250ms`, `5m`"),
        ("arg" = Option<Vec<String>>, Query, description = "An argument; may be given more than once"),
        ("Prefer" = Option<String>, Header, description = "`respond-async` answers as `/execute/{name}/async` does"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key within 24 h is the same execution"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context, which the function gets too"),
    ),
    request_body(content(
        (ExecuteRequest = "application/json", example = json!({"payload": {"n": 1}})),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "It succeeded", body = CalledBody),
        (status = 202, description = "Accepted, where `Prefer: respond-async` was sent", body = AcceptedBody),
        (status = 404, description = "function_not_found"),
        (status = 409, description = "function_not_deployed; or `status: cancelled`, where someone cancelled it"),
        (status = 413, description = "payload_too_large"),
        (status = 422, description = "idempotency_mismatch"),
        (status = 429, description = "no_resources, queue_full, too_many_requests"),
        (status = 500, description = "The function failed: `status` is `failed` and `error` says why", body = CalledBody),
        (status = 503, description = "at_concurrency, no_agents, queue_unavailable, store_unavailable, shutting_down"),
        (status = 504, description = "deadline_exceeded"),
    ))]
pub(super) async fn execute(
    State(api): State<Api>,
    Known(name): Known,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Invocation { request, trace, body } = invocation::read(&api, &query, &headers, body).await?;
    if invocation::prefers_async(&headers) {
        let mut response = accept(&api, &name, request).await?;
        response.headers_mut().insert(PREFERENCE_APPLIED, HeaderValue::from_static("respond-async"));
        set(&mut response, TRACEPARENT, &trace.to_string());
        return Ok(response);
    }
    let called = check_deadline(api.gateway.call(&name, request).await?)?;
    drop(body);
    let (id, replayed, status) = (called.execution_id, called.replayed, http_status(&called.outcome));
    let size = called.outcome.output.len();
    let written = move || Json(status, CalledBody::from(called)).into_response();
    let mut response = by_size(size, written).await?;
    set(&mut response, EXECUTION_ID, &id.to_string());
    set(&mut response, TRACEPARENT, &trace.to_string());
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Accept an invocation, which will run whatever happens to this gateway
#[utoipa::path(post, path = "/execute/{name}/async", tag = "executions",
    params(
        ("name" = String, Path, description = "The function"),
        ("timeout" = Option<String>, Query, description = "Not started by then, it is recorded as `expired`: `30`, `5m`, `6h`"),
        ("arg" = Option<Vec<String>>, Query, description = "An argument; may be given more than once"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key within 24 h is the same execution"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context, which the function gets too"),
    ),
    request_body(content(
        (ExecuteRequest = "application/json", example = json!({"payload": {"n": 1}})),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 202, description = "Accepted: `Location` is where its record will be", body = AcceptedBody),
        (status = 404, description = "function_not_found"),
        (status = 409, description = "function_not_deployed"),
        (status = 413, description = "payload_too_large"),
        (status = 422, description = "idempotency_mismatch"),
        (status = 429, description = "queue_full, too_many_requests"),
        (status = 503, description = "queue_unavailable, store_unavailable, shutting_down"),
    ))]
pub(super) async fn execute_async(
    State(api): State<Api>,
    Known(name): Known,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Invocation { request, trace, body: _body } = invocation::read(&api, &query, &headers, body).await?;
    let mut response = accept(&api, &name, request).await?;
    set(&mut response, TRACEPARENT, &trace.to_string());
    Ok(response)
}

async fn accept(http: &Http, name: &FunctionName, request: crate::core::InvokeRequest) -> Result<Response, Refusal> {
    let accepted = http.gateway.invoke(name, request).await?;
    let id = accepted.execution_id.to_string();
    let body = AcceptedBody { status: "accepted", execution_id: id.clone() };
    let mut response = Json(StatusCode::ACCEPTED, body).into_response();
    set(&mut response, LOCATION, &format!("/executions/{id}"));
    set(&mut response, EXECUTION_ID, &id);
    if accepted.replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// An execution that was never started because its caller's deadline passed is that deadline's error, not the function's.
pub(super) fn check_deadline(called: Called) -> Result<Called, Refusal> {
    match &called.outcome.error {
        Some(error) if error.kind == ErrorKind::Expired => {
            Err(Refusal::new(ErrorCode::DeadlineExceeded, error.message.clone())
                .with_details(json!({ "execution_id": called.execution_id })))
        }
        _ => Ok(called),
    }
}

/// 500 is the function's own failure, 409 that someone else cancelled it.
fn http_status(outcome: &Outcome) -> StatusCode {
    match outcome.status {
        OutcomeStatus::Success => StatusCode::OK,
        OutcomeStatus::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        OutcomeStatus::Cancelled => StatusCode::CONFLICT,
    }
}
