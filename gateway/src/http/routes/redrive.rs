//! Dead letters: run them again, each as a new execution that names the old one.

use axum::{body::Body, extract::State, http::HeaderMap, response::IntoResponse};
use flux_protocol::{ErrorCode, FunctionName, limits};

use super::{
    super::{
        Api, Http, json,
        path::{Known, Letter},
        query::RawQuery,
        request_body,
        wire::dead_letter::{RedriveRequest, RedrivenBody, RedrivenLetterBody},
    },
    answer::{Json, ok},
};
use crate::refusal::Refusal;

const FIELDS: &[&str] = &["sequence", "version", "dry_run"];

/// Run a function's dead letters again
///
/// Each letter that was accepted again is removed. The body may be left out; `?version=` and `?dry_run=` say the same.
#[utoipa::path(post, path = "/dlq/{function}/redrive", tag = "dead letters",
    params(
        ("function" = String, Path, description = "The function"),
        ("version" = Option<u32>, Query, description = "A version other than the current one"),
        ("dry_run" = Option<bool>, Query, description = "Say what would be done, and do nothing"),
    ),
    request_body(content = Option<RedriveRequest>, example = json!({"dry_run": true})),
    responses(
        (status = 200, description = "What was done, or would be", body = RedrivenBody),
        (status = 404, description = "function_not_found, version_not_found, message_not_found"),
        (status = 409, description = "function_not_deployed"),
        (status = 429, description = "queue_full"),
        (status = 503, description = "queue_unavailable, store_unavailable"),
    ))]
pub(super) async fn redrive(
    State(api): State<Api>,
    Known(function): Known,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    let request = read(&api, &query, &headers, body).await?;
    run(&api, &function, request).await
}

/// Run one dead letter again
#[utoipa::path(post, path = "/dlq/{function}/{seq}/redrive", tag = "dead letters",
    params(
        ("function" = String, Path, description = "The function"),
        ("seq" = u64, Path, description = "The letter's sequence"),
        ("version" = Option<u32>, Query, description = "A version other than the current one"),
        ("dry_run" = Option<bool>, Query, description = "Say what would be done, and do nothing"),
    ),
    request_body(content = Option<RedriveRequest>, example = json!({"version": 2})),
    responses(
        (status = 200, description = "What was done, or would be", body = RedrivenBody),
        (status = 404, description = "function_not_found, version_not_found, message_not_found"),
        (status = 409, description = "function_not_deployed"),
        (status = 429, description = "queue_full"),
        (status = 503, description = "queue_unavailable, store_unavailable"),
    ))]
pub(super) async fn redrive_one(
    State(api): State<Api>,
    Letter(function, sequence): Letter,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    let request = read(&api, &query, &headers, body).await?;
    if request.sequence.is_some_and(|named| named != sequence) {
        let message = format!("the path names letter {sequence} and the body another one");
        return Err(Refusal::new(ErrorCode::InvalidRequest, message).with_field("sequence"));
    }
    run(&api, &function, RedriveRequest { sequence: Some(sequence), ..request }).await
}

async fn read(http: &Http, query: &RawQuery, headers: &HeaderMap, body: Body) -> Result<RedriveRequest, Refusal> {
    let query = query.of(&["version", "dry_run"])?;
    let body = request_body::read(http, headers, body, limits::REQUEST_OVERHEAD, "this request").await?;
    let mut request = match &body.bytes[..] {
        [] => RedriveRequest::default(),
        bytes => json::parse::<Option<RedriveRequest>>(bytes, FIELDS)?.unwrap_or_default(),
    };
    if let Some(version) = query.number("version", 1, u64::from(u32::MAX))? {
        request.version = u32::try_from(version).ok();
    }
    request.dry_run |= query.flag("dry_run")?;
    Ok(request)
}

async fn run(http: &Http, function: &FunctionName, request: RedriveRequest) -> Result<Json<RedrivenBody>, Refusal> {
    let RedriveRequest { sequence, version, dry_run } = request;
    let redriven = http.gateway.redrive(function, sequence, version, dry_run).await?;
    Ok(ok(RedrivenBody { dry_run, redriven: redriven.into_iter().map(RedrivenLetterBody::from).collect() }))
}
