//! Machines that run agents: let in by token, registered, cordoned, removed.

use std::time::Duration;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use flux_protocol::{ErrorCode, PoolName, limits};

use super::{
    super::{
        Api,
        entry::ChangedBy,
        json,
        path::Agent,
        request_body,
        wire::machine::{
            JoinRequest, JoinedBody, MachineBody, RegisterRequest, RegisteredBody, TokenBody, TokenRequest,
        },
    },
    answer::{Json, ok},
    keys::changed,
};
use crate::refusal::Refusal;

/// Make a token with which one machine can join
#[utoipa::path(post, path = "/agents/tokens", tag = "agents",
    request_body(content = TokenRequest, example = json!({"url": "http://10.0.0.1:7227", "pools": ["default"]})),
    responses(
        (status = 201, description = "The token, which is not shown again", body = TokenBody),
        (status = 403, description = "join_refused"),
        (status = 501, description = "no_authority"),
    ))]
pub(super) async fn token(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    let body = request_body::read(&api, &headers, body, limits::PKI_FILE, "this request").await?;
    let asked: TokenRequest = json::parse(&body.bytes, &["url", "pools", "seconds"])?;
    let pools = if asked.pools.is_empty() { vec![PoolName::default()] } else { asked.pools };
    let life = asked.seconds.map_or(limits::JOIN_TOKEN_LIFE, Duration::from_secs);
    let token = api.gateway.create_join_token(asked.url, pools, life).await?;
    Ok(Json(StatusCode::CREATED, TokenBody { token: token.to_string() }))
}

/// Join: a certificate for who has a token
///
/// Needs no key: the proof is made with the token's secret, which does not travel.
#[utoipa::path(post, path = "/agents/join", tag = "agents", security(()),
    request_body(content = JoinRequest, example = json!({
        "token": "kq3…", "agent_id": "agent-7", "request": "-----BEGIN CERTIFICATE REQUEST-----…", "proof": "…"
    })),
    responses(
        (status = 201, description = "It is let in", body = JoinedBody),
        (status = 403, description = "join_refused"),
        (status = 409, description = "agent_exists"),
        (status = 501, description = "no_authority"),
    ))]
pub(super) async fn join(State(api): State<Api>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let body = request_body::read(&api, &headers, body, limits::PKI_FILE, "this request").await?;
    let asked: JoinRequest = json::parse(&body.bytes, &["token", "agent_id", "request", "proof"])?;
    let what = format!("agent {} joined by the token {}", asked.agent_id, asked.token);
    let who = format!("join token {}", asked.token);
    let joined = api.gateway.join(asked.token, asked.agent_id, asked.request, asked.proof).await?;
    let mut response = changed(Json(StatusCode::CREATED, JoinedBody::from(joined)), what);
    response.extensions_mut().insert(ChangedBy(who));
    Ok(response)
}

/// Register a machine whose agent listens on its probe port
///
/// The autoscaler never touches it.
#[utoipa::path(post, path = "/agents/register", tag = "agents",
    request_body(content = RegisterRequest, example = json!({"address": "10.0.0.5:50052"})),
    responses(
        (status = 201, description = "It is who its certificate says", body = RegisteredBody),
        (status = 409, description = "agent_exists"),
        (status = 501, description = "no_authority"),
        (status = 502, description = "agent_unreachable"),
    ))]
pub(super) async fn register(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    let body = request_body::read(&api, &headers, body, limits::PKI_FILE, "this request").await?;
    let RegisterRequest { address } = json::parse(&body.bytes, &["address"])?;
    let is_address =
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !is_address {
        let message = "`address` is HOST:PORT of an agent's probe port, such as 10.0.0.5:50052";
        return Err(Refusal::new(ErrorCode::InvalidRequest, message).with_field("address"));
    }
    let answer = api.gateway.register_agent(&address).await?;
    Ok(Json(StatusCode::CREATED, RegisteredBody::new(address, answer)))
}

/// Have an agent take no more work; what it runs goes on
#[utoipa::path(post, path = "/agents/{id}/cordon", tag = "agents",
    params(("id" = String, Path, description = "The agent")),
    responses((status = 200, description = "It takes no more", body = MachineBody), (status = 404, description = "agent_not_found")))]
pub(super) async fn cordon(State(api): State<Api>, Agent(id): Agent) -> Result<impl IntoResponse, Refusal> {
    api.gateway.cordon_agent(&id, true).await?;
    Ok(ok(MachineBody::new(&id, "cordoned")))
}

/// Have an agent take work again
#[utoipa::path(post, path = "/agents/{id}/uncordon", tag = "agents",
    params(("id" = String, Path, description = "The agent")),
    responses((status = 200, description = "It takes work", body = MachineBody), (status = 404, description = "agent_not_found")))]
pub(super) async fn uncordon(State(api): State<Api>, Agent(id): Agent) -> Result<impl IntoResponse, Refusal> {
    api.gateway.cordon_agent(&id, false).await?;
    Ok(ok(MachineBody::new(&id, "uncordoned")))
}

/// Shut an agent out, and forget that it was registered
#[utoipa::path(delete, path = "/agents/{id}", tag = "agents",
    params(("id" = String, Path, description = "The agent")),
    responses((status = 200, description = "It is shut out within seconds", body = MachineBody), (status = 404, description = "agent_not_found")))]
pub(super) async fn remove(State(api): State<Api>, Agent(id): Agent) -> Result<impl IntoResponse, Refusal> {
    api.gateway.remove_agent(&id).await?;
    Ok(ok(MachineBody::new(&id, "removed")))
}
