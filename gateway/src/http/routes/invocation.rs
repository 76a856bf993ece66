//! Reading a request to run a function.
//!
//! JSON is `{"args": […], "payload": any}`, and the payload is cut out of the body as it stands: numbers, spaces and
//! the order of keys reach the function as its caller wrote them. Any other content type is the payload itself, byte
//! for byte, with arguments in `?arg=`.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, header::CONTENT_TYPE},
};
use bytes::Bytes;
use flux_protocol::{ErrorCode, limits, trace::TraceParent};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    super::{Http, json, query::RawQuery, request_body},
    answer::{TRACEPARENT, by_size},
};
use crate::{core::InvokeRequest, refusal::Refusal};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// A request, and its share of the memory for bodies.
pub(super) struct Invocation {
    pub(super) request: InvokeRequest,
    pub(super) trace: TraceParent,
    pub(super) body: request_body::RequestBody,
}

pub(super) async fn read(
    http: &Http,
    query: &RawQuery,
    headers: &HeaderMap,
    body: Body,
) -> Result<Invocation, Refusal> {
    let query = query.of(&["timeout", "arg"])?;
    let timeout = query.duration("timeout", limits::TIMEOUT)?;
    let mut args: Vec<String> = query.all("arg").map(str::to_owned).collect();
    let written = Written::of(headers);
    let limit = limits::PAYLOAD + if written == Written::Raw { 0 } else { limits::REQUEST_OVERHEAD };
    let body = request_body::read(http, headers, body, limit, "a payload").await?;
    let payload = if written.is_json(&body.bytes) {
        let text = body.bytes.clone();
        let Envelope { args: given, payload } = by_size(text.len(), move || open(&text)).await??;
        args.extend(given);
        payload
    } else {
        body.bytes.clone()
    };
    if payload.len() > limits::PAYLOAD {
        let message = format!("a payload is at most {} bytes; this one has {}", limits::PAYLOAD, payload.len());
        return Err(Refusal::new(ErrorCode::PayloadTooLarge, message)
            .with_details(serde_json::json!({ "limit_bytes": limits::PAYLOAD })));
    }
    check_args(&args)?;
    let trace = trace(headers);
    let idempotency_key = idempotency_key(headers)?;
    let request = InvokeRequest { payload, args, timeout, idempotency_key, version: None, trace: Some(trace) };
    Ok(Invocation { request, trace, body })
}

/// The caller's trace with a span of ours, or a new one.
pub(super) fn trace(headers: &HeaderMap) -> TraceParent {
    let given = headers.get(&TRACEPARENT).and_then(|value| TraceParent::parse(value.to_str().ok()?));
    given.map_or_else(TraceParent::new, TraceParent::child)
}

/// `Prefer: respond-async`.
pub(super) fn prefers_async(headers: &HeaderMap) -> bool {
    let mut preferences =
        headers.get_all(&PREFER).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    preferences.any(|preference| preference.trim().eq_ignore_ascii_case("respond-async"))
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=limits::IDEMPOTENCY_KEY_LENGTH).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => {
            let most = limits::IDEMPOTENCY_KEY_LENGTH;
            let message = format!("`Idempotency-Key` must be 1 to {most} visible ASCII characters");
            Err(Refusal::new(ErrorCode::InvalidRequest, message).with_field("Idempotency-Key"))
        }
    }
}

fn check_args(args: &[String]) -> Result<(), Refusal> {
    let bytes: usize = args.iter().map(String::len).sum();
    let problem = if args.len() > limits::ARGS {
        format!("there are {} arguments; at most {} are taken", args.len(), limits::ARGS)
    } else if bytes > limits::ARGS_BYTES {
        format!("the arguments have {bytes} bytes in all; at most {} are taken", limits::ARGS_BYTES)
    } else if args.iter().any(|arg| arg.contains('\0')) {
        "an argument cannot hold a NUL byte".to_owned()
    } else {
        return Ok(());
    };
    Err(Refusal::new(ErrorCode::InvalidRequest, problem).with_field("args"))
}

/// How the body is written, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Json,
    /// `curl -d` says that it sends a form, whatever it sends. What begins like an object is no form.
    PerhapsJson,
    Raw,
}

impl Written {
    fn of(headers: &HeaderMap) -> Self {
        match media_type(headers).as_deref() {
            None => Self::Json,
            Some("application/x-www-form-urlencoded") => Self::PerhapsJson,
            Some(media) if media == "application/json" || media.ends_with("+json") => Self::Json,
            Some(_) => Self::Raw,
        }
    }

    fn is_json(self, body: &[u8]) -> bool {
        match self {
            // An empty body is an empty payload.
            Self::Json => !body.is_empty(),
            Self::PerhapsJson => body.trim_ascii_start().first() == Some(&b'{'),
            Self::Raw => false,
        }
    }
}

pub(super) fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media| media == "application/json" || media.ends_with("+json"))
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let media = value.split(';').next().unwrap_or_default().trim();
    (!media.is_empty()).then(|| media.to_ascii_lowercase())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEnvelope<'a> {
    args: Option<Vec<String>>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

#[derive(Debug)]
struct Envelope {
    args: Vec<String>,
    payload: Bytes,
}

fn open(body: &Bytes) -> Result<Envelope, Refusal> {
    let RawEnvelope { args, payload } = json::parse(body, &["args", "payload"])?;
    let payload = payload.map_or_else(Bytes::new, |raw| body.slice_ref(raw.get().as_bytes()));
    Ok(Envelope { args: args.unwrap_or_default(), payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(text: &'static str) -> Result<Envelope, Refusal> {
        open(&Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_payload_is_taken_as_it_stands() {
        let payload = |text| envelope(text).expect("valid").payload;
        assert_eq!(
            payload(r#"{"payload": {"z": 1.10, "a":  12345678901234567890123}}"#),
            r#"{"z": 1.10, "a":  12345678901234567890123}"#
        );
        assert_eq!(payload(r#"{"payload": "text"}"#), "\"text\"");
        assert_eq!(payload(r#"{"payload": null}"#), "");
        assert_eq!(payload("{}"), "");
        assert_eq!(envelope(r#"{"args": ["a", "b"], "payload": 1}"#).expect("valid").args, ["a", "b"]);
        assert_eq!(envelope(r#"{"args": null}"#).expect("valid").args, [""; 0]);
    }

    #[test]
    fn a_slip_in_the_envelope_is_named() {
        assert!(envelope(r#"{"pyload": 1}"#).expect_err("refused").message.contains("`payload`"));
        assert_eq!(envelope(r#"{"args": [1]}"#).expect_err("refused").details["field"], "args[0]");
        assert!(envelope("[1]").is_err());
    }

    #[test]
    fn the_content_type_decides_how_a_body_is_read() {
        let is_json = |media: Option<&str>, body: &str| {
            let mut headers = HeaderMap::new();
            if let Some(media) = media {
                headers.insert(CONTENT_TYPE, media.parse().expect("a header"));
            }
            Written::of(&headers).is_json(body.as_bytes())
        };
        assert!(is_json(None, "{}"));
        assert!(is_json(Some("application/json; charset=utf-8"), "{}"));
        assert!(is_json(Some("Application/CloudEvents+JSON"), "{}"));
        assert!(!is_json(Some("application/json"), ""));
        assert!(is_json(Some("application/x-www-form-urlencoded"), " {\"payload\": 1}"));
        assert!(!is_json(Some("application/x-www-form-urlencoded"), "a=1"));
        assert!(!is_json(Some("application/octet-stream"), "{}"));
        assert!(!is_json(Some("text/plain"), "{}"));
    }

    #[test]
    fn preferences_and_keys() {
        let mut headers = HeaderMap::new();
        assert!(!prefers_async(&headers));
        headers.insert(PREFER, "wait=10, Respond-Async".parse().expect("a header"));
        assert!(prefers_async(&headers));
        headers.insert(IDEMPOTENCY_KEY, "x".repeat(256).parse().expect("a header"));
        assert!(idempotency_key(&headers).is_err());
        headers.insert(IDEMPOTENCY_KEY, "order-7".parse().expect("a header"));
        assert_eq!(idempotency_key(&headers).expect("valid").as_deref(), Some("order-7"));
    }
}
