//! API keys, and the audit log.

use std::time::Duration;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use flux_protocol::{ErrorCode, Scope, Scopes, function::parse_duration, limits, time::now};

use super::{
    super::{
        Api,
        caller::Caller,
        entry::Changed,
        json,
        path::Key,
        query::RawQuery,
        request_body,
        wire::key::{
            AuditBody, AuditEntryBody, CreateKeyRequest, KeyBody, KeysBody, NewKeyBody, RevokedBody, RotateKeyRequest,
        },
    },
    answer::{Json, ok},
};
use crate::{core::NewKey, refusal::Refusal};

/// List API keys
#[utoipa::path(get, path = "/keys", tag = "keys",
    responses((status = 200, description = "Every key, oldest first", body = KeysBody), (status = 503, description = "store_unavailable")))]
pub(super) async fn list(State(api): State<Api>, query: RawQuery) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    Ok(ok(KeysBody { keys: api.gateway.api_keys().await?.into_iter().map(KeyBody::from).collect() }))
}

/// Make an API key
///
/// The answer has the key itself, which is kept nowhere. It is in force on every gateway within a second.
#[utoipa::path(post, path = "/keys", tag = "keys",
    request_body(content = CreateKeyRequest, example = json!({"name": "ci", "scopes": ["deploy"], "expires_in": "90d"})),
    responses(
        (status = 201, description = "The key", body = NewKeyBody),
        (status = 409, description = "limit_reached"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn create(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    query.of(&[])?;
    let body = request_body::read(&api, &headers, body, limits::REQUEST_OVERHEAD, "this request").await?;
    let fields = &["name", "scopes", "expires_in", "requests_per_second"];
    let new = wanted(json::parse(&body.bytes, fields)?)?;
    let (record, key) = api.gateway.create_key(new, caller.name()).await?;
    let what = format!("key {} ({}) with {}", record.id, record.name, record.scopes);
    Ok(changed(Json(StatusCode::CREATED, NewKeyBody::new(record, key)), what))
}

/// Give an API key a new text
///
/// The old one works for `overlap` more: time to hand out the new one.
#[utoipa::path(post, path = "/keys/{id}/rotate", tag = "keys",
    params(("id" = String, Path, description = "The key's id")),
    request_body(content = RotateKeyRequest, example = json!({"overlap": "1h"})),
    responses(
        (status = 200, description = "The new key", body = NewKeyBody),
        (status = 404, description = "key_not_found"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn rotate(
    State(api): State<Api>,
    Key(id): Key,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    query.of(&[])?;
    let body = request_body::read(&api, &headers, body, limits::REQUEST_OVERHEAD, "this request").await?;
    let request =
        if body.bytes.is_empty() { RotateKeyRequest::default() } else { json::parse(&body.bytes, &["overlap"])? };
    let overlap = request.overlap.as_deref().map(|text| duration("overlap", text, limits::KEY_OVERLAP_MOST));
    let (record, key) = api.gateway.rotate_key(&id, overlap.transpose()?.unwrap_or(limits::KEY_OVERLAP)).await?;
    let what = format!("key {} ({})", record.id, record.name);
    Ok(changed(ok(NewKeyBody::new(record, key)), what))
}

/// Revoke an API key
///
/// Every gateway refuses it within a second.
#[utoipa::path(delete, path = "/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, description = "It opens nothing any more", body = RevokedBody),
        (status = 404, description = "key_not_found"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn revoke(
    State(api): State<Api>,
    Key(id): Key,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    api.gateway.revoke_key(&id).await?;
    Ok(ok(RevokedBody { status: "revoked", id: id.to_string() }))
}

/// The log of changes, newest first
///
/// Who made which change, from where, and what came of it; attempts that were refused too, where it is known whose.
#[utoipa::path(get, path = "/audit", tag = "keys",
    params(
        ("limit" = Option<u64>, Query, description = "Entries of a page, 1 to 1000; 50 unless given"),
        ("cursor" = Option<u64>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page", body = AuditBody), (status = 503, description = "store_unavailable")))]
pub(super) async fn audit(State(api): State<Api>, query: RawQuery) -> Result<impl IntoResponse, Refusal> {
    let query = query.of(&["limit", "cursor"])?;
    let (limit, before) = (query.limit()?, query.number("cursor", 0, u64::MAX)?);
    let page = api.gateway.audit_log(before, limit).await?;
    let next_cursor = page.last().filter(|_| page.len() >= limit).map(|(number, _)| number.to_string());
    Ok(ok(AuditBody { entries: page.into_iter().map(|(_, entry)| AuditEntryBody::from(entry)).collect(), next_cursor }))
}

fn wanted(request: CreateKeyRequest) -> Result<NewKey, Refusal> {
    let wrong = |field: &str, problem: String| {
        Refusal::new(ErrorCode::InvalidRequest, format!("`{field}` {problem}")).with_field(field)
    };
    let name = request.name.trim();
    if name.is_empty() || name.len() > limits::KEY_NAME_LENGTH || name.chars().any(char::is_control) {
        return Err(wrong("name", format!("must have 1 to {} characters on one line", limits::KEY_NAME_LENGTH)));
    }
    let scopes: Result<Vec<Scope>, _> = request.scopes.iter().map(|scope| scope.parse()).collect();
    let scopes = scopes.and_then(Scopes::try_new).map_err(|error| wrong("scopes", format!("has {error}")))?;
    if scopes.is_empty() {
        return Err(wrong("scopes", "must name one at least: a key without opens nothing".to_owned()));
    }
    let expires_in = request.expires_in.as_deref().map(|text| duration("expires_in", text, Duration::MAX));
    let expires_in = expires_in.transpose()?;
    if expires_in.is_some_and(|after| after.is_zero()) {
        return Err(wrong("expires_in", "must be more than nothing".to_owned()));
    }
    let rate = request.requests_per_second;
    if rate.is_some_and(|rate| !(1..=limits::REQUESTS_PER_SECOND).contains(&rate)) {
        return Err(wrong("requests_per_second", format!("is from 1 to {}", limits::REQUESTS_PER_SECOND)));
    }
    let expires_at = expires_in.map(|after| now().plus(after));
    Ok(NewKey { name: name.to_owned(), scopes, expires_at, requests_per_second: rate })
}

fn duration(field: &str, text: &str, most: Duration) -> Result<Duration, Refusal> {
    let wrong =
        |problem: &str| Refusal::new(ErrorCode::InvalidRequest, format!("`{field}`: {problem}")).with_field(field);
    let duration = parse_duration(text).map_err(|problem| wrong(&problem))?;
    if duration > most {
        return Err(wrong(&format!("is at most {} days", most.as_secs() / 86_400)));
    }
    Ok(duration)
}

/// An answer with what the audit log is to say.
pub(super) fn changed(answer: impl IntoResponse, what: String) -> Response {
    let mut response = answer.into_response();
    response.extensions_mut().insert(Changed(what));
    response
}
