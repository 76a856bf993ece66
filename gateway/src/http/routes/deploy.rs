//! Code: deploy, and go back.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use flux_protocol::limits;

use super::{
    super::{
        Api, json,
        path::{Known, New},
        query::RawQuery,
        request_body,
        wire::function::{DeployedBody, RollbackRequest},
    },
    answer::{Json, ok},
};
use crate::refusal::Refusal;

/// Deploy code
///
/// The body is a zip. The same archive again is the same version, and `changed` is false. A function that is not
/// registered yet takes the `flux.yaml` in the archive.
#[utoipa::path(put, path = "/deploy/{name}", tag = "functions",
    params(("name" = String, Path, description = "The function")),
    request_body(content = Vec<u8>, content_type = "application/zip"),
    responses(
        (status = 201, description = "Deployed", body = DeployedBody),
        (status = 404, description = "function_not_found"),
        (status = 413, description = "payload_too_large"),
        (status = 422, description = "invalid_archive, invalid_function, unsupported"),
        (status = 429, description = "too_many_requests"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn deploy(
    State(api): State<Api>,
    New(name): New,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let archive = request_body::read(&api, &headers, body, limits::ARCHIVE, "an archive").await?;
    let published = api.gateway.deploy(&name, archive.bytes.clone()).await?;
    Ok(Json(StatusCode::CREATED, DeployedBody::from(published)))
}

/// Make an old version current again, at once
#[utoipa::path(post, path = "/functions/{name}/rollback", tag = "functions",
    params(("name" = String, Path, description = "The function")),
    request_body(content = RollbackRequest, example = json!({"version": 1})),
    responses(
        (status = 200, description = "It is current", body = DeployedBody),
        (status = 404, description = "function_not_found, version_not_found"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn rollback(
    State(api): State<Api>,
    Known(name): Known,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let body = request_body::read(&api, &headers, body, limits::REQUEST_OVERHEAD, "this request").await?;
    let RollbackRequest { version } = json::parse(&body.bytes, &["version"])?;
    Ok(ok(DeployedBody::from(api.gateway.rollback(&name, version).await?)))
}
