//! Prometheus.

use axum::{
    http::{HeaderValue, StatusCode},
    response::Response,
};

use super::{super::measures, answer::typed};

/// Measurements of this process, for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "The text exposition format", body = String, content_type = "text/plain")))]
pub(super) async fn metrics() -> Response {
    let text = measures::handle().render();
    typed(StatusCode::OK, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"), text.into())
}
