//! A function's own URL: the request goes in whole, and what the function says comes out as the response.
//!
//! A result that is an object with `statusCode` is a response with a status and headers of its own; anything else on
//! stdout is the body of a 200. A function never decides about the connection: hop-by-hop headers, lengths and 1xx
//! are the server's.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
};
use bytes::Bytes;
use flux_protocol::{ErrorCode, OutcomeStatus, OutputLog, Stream, event::HttpResponse, limits};
use serde_json::{Value, json};

use super::{
    super::{Api, caller::Caller, path::Known, query::RawQuery, request_body},
    answer::{EXECUTION_ID, REPLAYED, by_size, set, typed},
    event::{self, HOP_BY_HOP},
    execute::check_deadline,
    invocation,
};
use crate::{
    core::{Called, InvokeRequest},
    refusal::Refusal,
};

/// A function's own URL
#[utoipa::path(method(get, post, put, delete, patch, head, options, trace), path = "/fn/{name}", tag = "function URLs",
    params(("name" = String, Path, description = "The function")),
    responses((status = 200, description = "What the function answered, with the status and headers that it chose")))]
pub(super) async fn root(state: State<Api>, known: Known, request: Asked, body: Body) -> Result<Response, Refusal> {
    serve(state, known, request, body).await
}

/// A function's own URL, with a slash
#[utoipa::path(method(get, post, put, delete, patch, head, options, trace), path = "/fn/{name}/", tag = "function URLs",
    params(("name" = String, Path, description = "The function")),
    responses((status = 200, description = "What the function answered, with the status and headers that it chose")))]
pub(super) async fn slash(state: State<Api>, known: Known, request: Asked, body: Body) -> Result<Response, Refusal> {
    serve(state, known, request, body).await
}

/// A path below a function's own URL
///
/// The function reads `{method, path, query, rawQuery, headers, body, isBase64Encoded}` on stdin. What it prints is
/// the body of a 200, unless that is JSON with `statusCode`: `{statusCode, headers, body, isBase64Encoded}`.
#[utoipa::path(method(get, post, put, delete, patch, head, options, trace), path = "/fn/{name}/{*path}", tag = "function URLs",
    params(
        ("name" = String, Path, description = "The function"),
        ("path" = String, Path, description = "Whatever the function makes of it, slashes included"),
    ),
    responses((status = 200, description = "What the function answered, with the status and headers that it chose")))]
pub(super) async fn path(state: State<Api>, known: Known, request: Asked, body: Body) -> Result<Response, Refusal> {
    serve(state, known, request, body).await
}

/// All of a request but its body.
#[derive(axum::extract::FromRequestParts)]
pub(super) struct Asked {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    query: RawQuery,
    caller: Extension<Caller>,
}

async fn serve(State(api): State<Api>, Known(name): Known, asked: Asked, body: Body) -> Result<Response, Refusal> {
    let Asked { method, uri, headers, query, caller } = asked;
    let keys = caller.headers;
    let body = request_body::read(&api, &headers, body, limits::PAYLOAD, "a request's body").await?;
    let bytes = body.bytes.clone();
    let trace = invocation::trace(&headers);
    let idempotency_key = invocation::idempotency_key(&headers)?;
    let written = move || serde_json::to_vec(&event::event(&method, &uri, &query, &headers, keys, &bytes));
    let payload = by_size(body.bytes.len(), written)
        .await?
        .map_err(|error| Refusal::new(ErrorCode::Internal, "the request could not be written down").caused_by(error))?;
    if payload.len() > limits::PAYLOAD {
        let message = format!(
            "the request has {} bytes as the event that a function reads; at most {} are taken",
            payload.len(),
            limits::PAYLOAD
        );
        return Err(
            Refusal::new(ErrorCode::PayloadTooLarge, message).with_details(json!({ "limit_bytes": limits::PAYLOAD }))
        );
    }
    let request =
        InvokeRequest { payload: payload.into(), idempotency_key, trace: Some(trace), ..InvokeRequest::default() };
    let called = check_deadline(api.gateway.call(&name, request).await?)?;
    drop(body);
    let (id, replayed) = (called.execution_id.to_string(), called.replayed);
    let size = called.outcome.output.len();
    let written = move || answer(called).unwrap_or_else(axum::response::IntoResponse::into_response);
    let mut response = by_size(size, written).await?;
    set(&mut response, EXECUTION_ID, &id);
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn answer(called: Called) -> Result<Response, Refusal> {
    let Called { execution_id, outcome, .. } = called;
    if outcome.status != OutcomeStatus::Success {
        let what = outcome.error.as_ref().map_or("it was cancelled", |error| error.message.as_str());
        let message = format!("the function did not succeed: {what}");
        let details = json!({ "execution_id": execution_id, "status": outcome.status, "error": outcome.error });
        return Err(Refusal::new(ErrorCode::FunctionFailed, message).with_details(details));
    }
    let dropped = outcome.output.dropped_bytes;
    if dropped > 0 {
        let message = format!(
            "the function wrote more than is kept, and {dropped} bytes of it are gone; an answer and what goes to \
             standard error are at most {} MiB together",
            limits::OUTPUT / limits::MIB
        );
        return Err(Refusal::new(ErrorCode::FunctionFailed, message)
            .with_details(json!({ "execution_id": execution_id, "output_dropped_bytes": dropped })));
    }
    said(&outcome.output).map_err(|problem| {
        Refusal::new(ErrorCode::FunctionFailed, format!("the function's answer is no HTTP response: {problem}"))
            .with_details(json!({ "execution_id": execution_id }))
    })
}

/// What a function that succeeded returned or printed, as a response.
fn said(output: &OutputLog) -> Result<Response, String> {
    let said = output.returned().cloned().unwrap_or_else(|| output.bytes_of(Stream::Stdout));
    let result = output.result();
    if let Some(result @ Value::Object(fields)) = &result
        && fields.contains_key("statusCode")
    {
        let response = HttpResponse::from_result(result).ok_or(
            "`statusCode` is a number from 200 to 599, `headers` an object of text, `isBase64Encoded` true or false",
        )?;
        return respond(&response);
    }
    let content_type = match (&result, std::str::from_utf8(&said)) {
        (Some(_), _) => "application/json",
        (None, Ok(_)) => "text/plain; charset=utf-8",
        (None, Err(_)) => "application/octet-stream",
    };
    Ok(typed(StatusCode::OK, HeaderValue::from_static(content_type), said))
}

fn respond(said: &HttpResponse) -> Result<Response, String> {
    let status = StatusCode::from_u16(said.status_code).ok().filter(|status| status.as_u16() >= 200);
    let status = status.ok_or_else(|| format!("{} is no status of a response; it is 200 to 599", said.status_code))?;
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    let body = said.body_bytes().ok_or("`isBase64Encoded` is true and `body` is not base64")?;
    let body = if bodiless { Bytes::new() } else { body };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    for (name, value) in &said.headers {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{}` is no name of a header", shown(name)))?;
        if HOP_BY_HOP.contains(&name.as_str()) || name == header::CONTENT_LENGTH {
            continue;
        }
        let value =
            HeaderValue::from_str(value).map_err(|_| format!("the value of `{name}` is not fit for a header"))?;
        response.headers_mut().append(name, value);
    }
    if !response.headers().contains_key(header::CONTENT_TYPE) && !bodiless {
        let content_type = match &said.body {
            Value::String(_) if said.is_base64_encoded => "application/octet-stream",
            Value::String(_) | Value::Null => "text/plain; charset=utf-8",
            _ => "application/json",
        };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    Ok(response)
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use flux_protocol::Chunk;

    use super::*;

    fn printed(text: &str) -> Result<Response, String> {
        let chunk = Chunk { seq: 1, stream: Stream::Stdout, data: Bytes::from(text.to_owned()) };
        said(&OutputLog { chunks: vec![chunk], dropped_bytes: 0 })
    }

    #[test]
    fn what_is_printed_is_the_body_of_a_200() {
        let of = |text| printed(text).expect("a response").headers()[header::CONTENT_TYPE].clone();
        assert_eq!(of("hello\n"), "text/plain; charset=utf-8");
        assert_eq!(of("{\"a\": 1}\n"), "application/json");
        assert_eq!(of(""), "text/plain; charset=utf-8");
    }

    #[test]
    fn a_function_chooses_status_and_headers_but_not_the_connection() {
        let response = printed(
            r#"{"statusCode": 418, "headers": {"X-Tea": "pot", "Connection": "close", "Transfer-Encoding": "chunked",
                "Content-Length": "7", "Content-Type": "text/x-tea"}, "body": "short"}"#,
        )
        .expect("a response");
        assert_eq!(response.status(), 418);
        let headers = response.headers();
        assert_eq!(
            (&headers["x-tea"], &headers["content-type"]),
            (&HeaderValue::from_static("pot"), &HeaderValue::from_static("text/x-tea"))
        );
        assert_eq!(headers.len(), 2, "{headers:?}");
    }

    #[test]
    fn what_is_no_response_is_said() {
        for wrong in [
            r#"{"statusCode": 101}"#,
            r#"{"statusCode": 700}"#,
            r#"{"statusCode": "200"}"#,
            r#"{"statusCode": 200, "headers": {"a b": "c"}}"#,
            r#"{"statusCode": 200, "headers": {"x": "a\r\nSet-Cookie: b"}}"#,
            r#"{"statusCode": 200, "headers": {"x": 1}}"#,
        ] {
            assert!(printed(wrong).is_err(), "{wrong}");
        }
    }
}
