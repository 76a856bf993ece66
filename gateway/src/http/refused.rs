//! A [`Refusal`] on its way out. A handler's refusal travels as an extension of an empty response until [`entry`],
//! which knows the request id, writes the body and logs the chain: once, in one place.
//!
//! [`entry`]: super::entry

use std::{error::Error as _, fmt::Write as _, sync::Arc};

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flux_protocol::{ErrorCode, limits};

use super::{request_id::RequestId, wire::error::ErrorBody};
use crate::refusal::Refusal;

#[derive(Clone)]
pub(super) struct Refused(Arc<Refusal>);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up, and at least 1: `Retry-After: 0` invites a hot loop.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.code == ErrorCode::Unauthorized {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"flux\""));
        }
        response.extensions_mut().insert(Refused(Arc::new(self)));
        response
    }
}

/// The code of the refusal that the response carries.
pub(super) fn code(response: &Response) -> Option<ErrorCode> {
    response.extensions().get::<Refused>().map(|Refused(refusal)| refusal.code)
}

/// Writes the body of a refusal into the response that carries it; leaves any other as it is.
pub(super) fn write(response: &mut Response, request_id: &RequestId) {
    let Some(Refused(refusal)) = response.extensions_mut().remove::<Refused>() else { return };
    log(&refusal, request_id);
    let body = ErrorBody::new(&refusal, request_id.as_str());
    *response.body_mut() = Body::from(serde_json::to_vec(&body).unwrap_or_default());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
}

/// A whole answer of HTTP/1.1, for a connection that no request has come on. The connection ends with it.
pub(super) fn by_hand(refusal: &Refusal) -> Bytes {
    let status = StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let request_id = RequestId::of(&HeaderMap::new());
    log(refusal, &request_id);
    let body = serde_json::to_string(&ErrorBody::new(refusal, request_id.as_str())).unwrap_or_default();
    let retry = if refusal.retry_after.is_some() { "retry-after: 1\r\n" } else { "" };
    let id = request_id.as_str();
    Bytes::from(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{retry}x-request-id: {id}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// The same, of a head that hyper could not take and answered with this status.
pub(super) fn of_a_head(status: u16) -> Option<Bytes> {
    let refusal = match status {
        414 | 431 => {
            let (kib, headers) = (limits::HTTP_HEAD_BYTES / 1024, limits::HTTP_HEADERS);
            let message = format!("the head of the request has more than {kib} KiB, or more than {headers} headers");
            Refusal::new(ErrorCode::HeadTooLarge, message)
        }
        400 => Refusal::new(ErrorCode::InvalidRequest, "what came is not the head of an HTTP request"),
        _ => return None,
    };
    Some(by_hand(&refusal))
}

fn log(refusal: &Refusal, request_id: &RequestId) {
    let (code, request_id) = (refusal.code, request_id.as_str());
    match (refusal.code, refusal.source.is_some()) {
        (ErrorCode::Internal, _) => {
            tracing::error!(request_id, %code, message = refusal.message, chain = chain(refusal), "a request failed");
        }
        (code, true) if code.http_status() >= 500 => {
            tracing::warn!(request_id, %code, message = refusal.message, chain = chain(refusal), "a request failed");
        }
        // The caller's slip, or the expected answer under load: it would drown the rest.
        _ => tracing::debug!(request_id, %code, message = refusal.message, "a request was refused"),
    }
}

fn chain(refusal: &Refusal) -> String {
    let mut text = String::new();
    let mut cause = refusal.source();
    while let Some(error) = cause {
        let _ = write!(text, "{}{error}", if text.is_empty() { "" } else { ": " });
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retry_after_is_in_whole_seconds_and_never_zero() {
        let header = |after: Duration| {
            let mut refusal = Refusal::new(ErrorCode::QueueFull, "full");
            refusal.retry_after = Some(after);
            refusal.into_response().headers()[RETRY_AFTER].clone()
        };
        assert_eq!(header(Duration::from_millis(20)), "1");
        assert_eq!(header(Duration::from_millis(1500)), "2");
    }

    #[test]
    fn the_log_gets_the_whole_chain() {
        let inner = std::io::Error::other("disk full");
        let refusal = Refusal::new(ErrorCode::Internal, "no").caused_by(std::io::Error::other(inner));
        assert!(chain(&refusal).contains("disk full"));
    }
}
