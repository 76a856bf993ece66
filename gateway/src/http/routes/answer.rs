//! How an answer is put: JSON, and nothing that a handler could forget.
//!
//! What is large is read and written on a thread of its own: the ones that serve have other requests, and 64 MiB of
//! JSON are a tenth of a second.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flux_protocol::{ErrorCode, limits};
use serde::Serialize;

use crate::refusal::Refusal;

pub(in crate::http) const EXECUTION_ID: HeaderName = HeaderName::from_static("x-flux-execution-id");
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// More bytes than this are not worked on in place.
const IN_PLACE: usize = limits::MIB;

/// Does work whose length goes by `size`, in bytes.
pub(super) async fn by_size<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    if size <= IN_PLACE {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::new(ErrorCode::Internal, "a defect of Flux; the log has more").caused_by(error))
}

/// A JSON body with a status.
pub(super) struct Json<T>(pub(super) StatusCode, pub(super) T);

pub(super) fn ok<T>(body: T) -> Json<T> {
    Json(StatusCode::OK, body)
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.1) {
            Ok(bytes) => typed(self.0, HeaderValue::from_static("application/json"), Bytes::from(bytes)),
            Err(error) => {
                Refusal::new(ErrorCode::Internal, "the answer could not be written down; this is a defect of Flux")
                    .caused_by(error)
                    .into_response()
            }
        }
    }
}

pub(super) fn typed(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Response {
    (status, [(CONTENT_TYPE, content_type)], body).into_response()
}

/// A header from text that is known to be fit for one; left out if it is not.
pub(super) fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
