//! Secrets: values go in, and never come out.

use axum::{
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use flux_protocol::limits;
use serde::Deserialize;

use super::{
    super::{
        Api, json,
        path::Secret,
        query::RawQuery,
        request_body,
        wire::{
            function::RemovedBody,
            secret::{RotatedBody, SecretBody, SecretRequest, SecretSetBody, SecretsBody},
        },
    },
    answer::ok,
    invocation::is_json,
    keys::changed,
};
use crate::refusal::Refusal;

/// List secrets, without their values
#[utoipa::path(get, path = "/secrets", tag = "secrets",
    responses((status = 200, description = "Every secret, by name", body = SecretsBody), (status = 503, description = "store_unavailable")))]
pub(super) async fn list(State(api): State<Api>, query: RawQuery) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    Ok(ok(SecretsBody { secrets: api.gateway.secrets().await?.into_iter().map(SecretBody::from).collect() }))
}

/// Whether a secret is set, and since when
#[utoipa::path(get, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "The secret")),
    responses(
        (status = 200, description = "All about it but its value", body = SecretBody),
        (status = 404, description = "secret_not_found"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Secret(name): Secret,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    Ok(ok(SecretBody::from(api.gateway.secret(&name?).await?)))
}

/// Set a secret
///
/// The value as JSON, or any other body byte for byte. Functions that name it find it in their environment from their next
/// start on.
#[utoipa::path(put, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "The secret, which is also the variable's name")),
    request_body(content(
        (SecretRequest = "application/json", example = json!({"value": "correct horse battery staple"})),
        (String = "text/plain", example = "correct horse battery staple"),
    )),
    responses(
        (status = 200, description = "It is set", body = SecretSetBody),
        (status = 404, description = "secret_not_found"),
        (status = 409, description = "limit_reached"),
        (status = 413, description = "payload_too_large"),
        (status = 503, description = "store_unavailable, secrets_unavailable, shutting_down"),
    ))]
pub(super) async fn set(
    State(api): State<Api>,
    Secret(name): Secret,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    query.of(&[])?;
    let name = name?;
    let body = request_body::read(&api, &headers, body, limits::SECRET * 2, "a secret").await?;
    let version = if is_json(&headers) {
        let SecretRequest { value } = json::parse(&body.bytes, &["value"])?;
        api.gateway.put_secret(&name, value.as_bytes()).await?
    } else {
        api.gateway.put_secret(&name, &body.bytes).await?
    };
    Ok(changed(ok(SecretSetBody { status: "set", name: name.to_string(), version }), format!("version {version}")))
}

/// Remove a secret
///
/// Functions that name it fail at their next start, and say so.
#[utoipa::path(delete, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "The secret")),
    responses(
        (status = 200, description = "It is gone", body = RemovedBody),
        (status = 404, description = "secret_not_found"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn remove(
    State(api): State<Api>,
    Secret(name): Secret,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let name = name?;
    api.gateway.delete_secret(&name).await?;
    Ok(ok(RemovedBody { status: "removed", name: name.to_string() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Encrypt every secret with a new key
///
/// The key that they are encrypted with at rest, not their values. Gateways that do not share the key's file need a copy of
/// the new one.
#[utoipa::path(post, path = "/secrets-key/rotate", tag = "secrets",
    request_body(content = Object, example = json!({})),
    responses(
        (status = 200, description = "They are, and the keys before but the last are forgotten", body = RotatedBody),
        (status = 503, description = "store_unavailable, secrets_unavailable, shutting_down"),
    ))]
pub(super) async fn rotate(
    State(api): State<Api>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    query.of(&[])?;
    let body = request_body::read(&api, &headers, body, limits::REQUEST_OVERHEAD, "this request").await?;
    if !body.bytes.is_empty() {
        let Nothing {} = json::parse(&body.bytes, &[])?;
    }
    let secrets = api.gateway.rotate_secrets_key().await?;
    Ok(changed(ok(RotatedBody { status: "rotated", secrets }), format!("{secrets} secrets encrypted anew")))
}
