//! An execution's output as it is written: Server-Sent Events `output`, then one `end` with the record.
//!
//! Each `output` has the id `<attempt>.<chunk>`. A client that reconnects sends the last one that it saw, and gets
//! what came after. A gateway that is going away ends the stream without `end`: the client's reconnection finds
//! another one.

use std::convert::Infallible;

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header::CACHE_CONTROL},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use flux_protocol::{Chunk, ErrorCode, Stream, limits};
use futures::{StreamExt as _, stream::BoxStream};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{Api, caller::Caller, path::Id, query::RawQuery, wire::execution::ExecutionBody},
    executions::require_to_see,
};
use crate::{
    core::{WatchEvent, WatchFrom},
    refusal::Refusal,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies that buffer would make of live output a surprise at the end.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What `data:` of an `output` event holds.
#[derive(Serialize, ToSchema)]
#[allow(dead_code)]
pub(super) struct OutputEventBody {
    /// From 1 within an attempt, over both streams.
    seq: u64,
    #[schema(example = "stdout")]
    stream: String,
    /// As text; what is not UTF-8 becomes U+FFFD.
    data: String,
    /// The bytes, only where they are not UTF-8.
    data_base64: Option<String>,
}

/// An execution's output as it is written
///
/// Server-Sent Events: `output`, whose `data` is `{seq, stream, data}` and whose id is `<attempt>.<chunk>`, and at the
/// end `end`, whose `data` is the record without its output. Comments keep the connection alive.
#[utoipa::path(get, path = "/executions/{id}/stream", tag = "executions",
    params(
        ("id" = String, Path, description = "The execution"),
        ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event: `<attempt>.<chunk>`"),
        ("last_event_id" = Option<String>, Query, description = "The same, for clients that cannot set the header"),
        ("ticket" = Option<String>, Query, description = "Instead of a key, for browsers: from `POST /tickets`"),
    ),
    responses(
        (status = 200, description = "The events", body = OutputEventBody, content_type = "text/event-stream"),
        (status = 404, description = "execution_not_found"),
        (status = 503, description = "store_unavailable, queue_unavailable"),
    ))]
pub(super) async fn stream(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    query: RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let query = query.of(&["last_event_id", "ticket"])?;
    let header = headers.get(&LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let from = header.or(query.one("last_event_id")?).map(parse_event_id).transpose()?.unwrap_or_default();
    if caller.ticket_for() != Some(id) {
        require_to_see(&api, &caller, id).await?;
    }
    let events = api.gateway.watch(id, from).await?;
    let drained = api.shutdown.drain_token().cancelled_owned();
    let events: BoxStream<'static, Result<Event, Infallible>> =
        events.take_until(drained).filter_map(async |event| sse(event).map(Ok)).boxed();
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(limits::EVENT_STREAM_KEEP_ALIVE).text("keep-alive"))
        .into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// `<attempt>.<chunk>`; empty, as browsers send it at first, is the beginning.
fn parse_event_id(text: &str) -> Result<WatchFrom, Refusal> {
    let parsed = match text.trim().split_once('.') {
        _ if text.trim().is_empty() => Some(WatchFrom::default()),
        Some((attempt, chunk)) => {
            attempt.parse().ok().zip(chunk.parse().ok()).map(|(attempt, chunk)| WatchFrom { attempt, chunk })
        }
        None => None,
    };
    parsed.ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        let message = format!("`{shown}` is no event id: it is `<attempt>.<chunk>`, as an `output` event has it");
        Refusal::new(ErrorCode::InvalidRequest, message).with_field("Last-Event-ID")
    })
}

/// What a handler returned is in the record, and no output.
fn sse(event: WatchEvent) -> Option<Event> {
    Some(match event {
        WatchEvent::Output { chunk, .. } if chunk.stream == Stream::Result => return None,
        WatchEvent::Output { attempt, chunk } => {
            Event::default().id(format!("{attempt}.{}", chunk.seq)).event("output").data(output(&chunk))
        }
        WatchEvent::End(record) => {
            let record = serde_json::to_string(&ExecutionBody::outline(*record)).unwrap_or_default();
            Event::default().event("end").data(record)
        }
    })
}

fn output(chunk: &Chunk) -> String {
    let mut fields = serde_json::to_value(chunk).unwrap_or_default();
    if let Some(fields) = fields.as_object_mut()
        && !fields.contains_key("data")
    {
        fields.insert("data".to_owned(), String::from_utf8_lossy(&chunk.data).into());
    }
    fields.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn event_ids_are_attempt_and_chunk() {
        assert_eq!(parse_event_id("2.17").expect("valid"), WatchFrom { attempt: 2, chunk: 17 });
        assert_eq!(parse_event_id("").expect("valid"), WatchFrom::default());
        for wrong in ["7", "a.b", "1.", "-1.2", "1.2.3"] {
            assert!(parse_event_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_come_both_ways() {
        let chunk = |data: &'static [u8]| Chunk { seq: 3, stream: Stream::Stderr, data: Bytes::from_static(data) };
        let json = |data| serde_json::from_str::<serde_json::Value>(&output(&chunk(data))).expect("JSON");
        assert_eq!(json(b"a\nb"), serde_json::json!({"seq": 3, "stream": "stderr", "data": "a\nb"}));
        assert_eq!(
            json(b"\xff"),
            serde_json::json!({"seq": 3, "stream": "stderr", "data": "\u{fffd}", "data_base64": "/w=="})
        );
    }
}
