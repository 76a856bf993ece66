//! Functions: register, list, show, remove.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use flux_protocol::{
    ErrorCode, FunctionName, FunctionSpec,
    function::{parse_json, parse_yaml},
    limits,
};

use super::{
    super::{
        Api, json,
        path::Known,
        query::RawQuery,
        request_body,
        wire::function::{FunctionBody, FunctionConfig, FunctionsBody, RegisteredBody, RemovedBody},
    },
    answer::{Json, ok},
    invocation::is_json,
};
use crate::refusal::Refusal;

/// Register a function's configuration
///
/// The body is the function's `flux.yaml`, or the same as JSON. Another configuration of a known function is a new
/// version with the current code. Unknown fields are refused, and the nearest known one named.
#[utoipa::path(put, path = "/functions", tag = "functions",
    request_body(content(
        (FunctionConfig = "application/yaml", example = "name: hello\nhandler: hello\nresources: { cpu: 100, memory: 64 }\ntimeout: 10\n"),
        (FunctionConfig = "application/json", example = json!({"name": "hello", "handler": "hello", "timeout": 10})),
    )),
    responses(
        (status = 201, description = "Registered, or registered so already (`changed` is false)", body = RegisteredBody),
        (status = 413, description = "payload_too_large"),
        (status = 422, description = "invalid_function, unsupported"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn register(
    State(api): State<Api>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let body = request_body::read(&api, &headers, body, limits::FUNCTION_YAML, "a function's configuration").await?;
    let spec = read_spec(&headers, &body.bytes)?;
    Ok(Json(StatusCode::CREATED, RegisteredBody::from(api.gateway.register(spec).await?)))
}

fn read_spec(headers: &HeaderMap, body: &[u8]) -> Result<FunctionSpec, Refusal> {
    if is_json(headers) {
        return Ok(parse_json(&json::parse(body, &[])?)?);
    }
    let text = std::str::from_utf8(body)
        .map_err(|_| Refusal::new(ErrorCode::InvalidRequest, "a function's configuration is YAML or JSON, in UTF-8"))?;
    Ok(parse_yaml(text)?)
}

/// List functions, in the order of their names
#[utoipa::path(get, path = "/functions", tag = "functions",
    params(
        ("prefix" = Option<String>, Query, description = "Only names that begin with this"),
        ("limit" = Option<u64>, Query, description = "Functions of a page, 1 to 1000; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page", body = FunctionsBody), (status = 503, description = "store_unavailable")))]
pub(super) async fn list(State(api): State<Api>, query: RawQuery) -> Result<impl IntoResponse, Refusal> {
    let query = query.of(&["prefix", "limit", "cursor"])?;
    let (limit, cursor) = (query.limit()?, query.parsed::<FunctionName>("cursor")?);
    let page = api.gateway.functions(query.one("prefix")?.unwrap_or_default(), cursor.as_ref(), limit).await?;
    let next_cursor = page.last().filter(|_| page.len() >= limit).map(|last| last.name().to_string());
    Ok(ok(FunctionsBody { functions: page.into_iter().map(FunctionBody::from).collect(), next_cursor }))
}

/// One function, with its versions
#[utoipa::path(get, path = "/functions/{name}", tag = "functions",
    params(("name" = String, Path, description = "The function")),
    responses(
        (status = 200, description = "The function", body = FunctionBody),
        (status = 404, description = "function_not_found"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Known(name): Known,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let function = api.gateway.function(&name).await?;
    let heartbeats = api.gateway.agents();
    let counts =
        heartbeats.iter().flat_map(|agent| &agent.heartbeat.running).filter(|running| running.function == name);
    let (running, warm) =
        counts.fold((0, 0), |(running, warm), count| (running + count.calls + count.invokes, warm + count.warm));
    Ok(ok(FunctionBody::whole(function, running, warm)))
}

/// Remove a function and its versions
///
/// Its executions stay. Registered anew, it goes on counting versions where it ended.
#[utoipa::path(delete, path = "/functions/{name}", tag = "functions",
    params(("name" = String, Path, description = "The function")),
    responses(
        (status = 200, description = "It is gone", body = RemovedBody),
        (status = 404, description = "function_not_found"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn remove(
    State(api): State<Api>,
    Known(name): Known,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    api.gateway.delete_function(&name).await?;
    Ok(ok(RemovedBody { status: "removed", name: name.to_string() }))
}
