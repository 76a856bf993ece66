//! Dead letters: count, list, show, remove.

use axum::{extract::State, response::IntoResponse};
use flux_protocol::ErrorCode;

use super::{
    super::{
        Api,
        path::{Known, Letter},
        query::RawQuery,
        wire::dead_letter::{LetterBody, LetterCountBody, LetterCountsBody, LettersBody, PurgedBody},
    },
    answer::ok,
};
use crate::refusal::Refusal;

/// Functions that have dead letters, and how many
#[utoipa::path(get, path = "/dlq", tag = "dead letters",
    responses((status = 200, description = "The counts", body = LetterCountsBody), (status = 503, description = "queue_unavailable")))]
pub(super) async fn counts(State(api): State<Api>, query: RawQuery) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let counts = api.gateway.dead_letter_counts().await?;
    let functions =
        counts.into_iter().map(|(function, count)| LetterCountBody { function: function.to_string(), count });
    Ok(ok(LetterCountsBody { functions: functions.collect() }))
}

/// A function's dead letters, oldest first, without their payloads
#[utoipa::path(get, path = "/dlq/{function}", tag = "dead letters",
    params(
        ("function" = String, Path, description = "The function"),
        ("limit" = Option<u64>, Query, description = "Letters of a page, 1 to 1000; 50 unless given"),
        ("cursor" = Option<u64>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page", body = LettersBody), (status = 404, description = "function_not_found"), (status = 503, description = "queue_unavailable")))]
pub(super) async fn list(
    State(api): State<Api>,
    Known(function): Known,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    let query = query.of(&["limit", "cursor"])?;
    let (limit, after) = (query.limit()?, query.number("cursor", 0, u64::MAX)?.unwrap_or(0));
    let page = api.gateway.dead_letters(&function, after, limit).await?;
    let next_cursor = page.last().filter(|_| page.len() >= limit).map(|last| last.sequence.to_string());
    Ok(ok(LettersBody { letters: page.into_iter().map(LetterBody::outline).collect(), next_cursor }))
}

/// One dead letter, with its payload and last output
#[utoipa::path(get, path = "/dlq/{function}/{seq}", tag = "dead letters",
    params(
        ("function" = String, Path, description = "The function"),
        ("seq" = u64, Path, description = "The letter's sequence"),
    ),
    responses(
        (status = 200, description = "The letter", body = LetterBody),
        (status = 404, description = "message_not_found"),
        (status = 503, description = "queue_unavailable"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Letter(function, sequence): Letter,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    Ok(ok(LetterBody::whole(api.gateway.dead_letter(&function, sequence).await?)))
}

/// Remove all dead letters of a function
#[utoipa::path(delete, path = "/dlq/{function}", tag = "dead letters",
    params(("function" = String, Path, description = "The function")),
    responses((status = 200, description = "They are gone", body = PurgedBody), (status = 404, description = "function_not_found"), (status = 503, description = "queue_unavailable")))]
pub(super) async fn purge(
    State(api): State<Api>,
    Known(function): Known,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    let purged = api.gateway.purge(&function, None).await?;
    Ok(ok(PurgedBody { status: "purged", purged }))
}

/// Remove one dead letter
#[utoipa::path(delete, path = "/dlq/{function}/{seq}", tag = "dead letters",
    params(
        ("function" = String, Path, description = "The function"),
        ("seq" = u64, Path, description = "The letter's sequence"),
    ),
    responses(
        (status = 200, description = "It is gone", body = PurgedBody),
        (status = 404, description = "message_not_found"),
        (status = 503, description = "queue_unavailable"),
    ))]
pub(super) async fn remove(
    State(api): State<Api>,
    Letter(function, sequence): Letter,
    query: RawQuery,
) -> Result<impl IntoResponse, Refusal> {
    query.of(&[])?;
    match api.gateway.purge(&function, Some(sequence)).await? {
        0 => Err(Refusal::new(ErrorCode::MessageNotFound, format!("`{function}` has no dead letter {sequence}"))),
        purged => Ok(ok(PurgedBody { status: "purged", purged })),
    }
}
