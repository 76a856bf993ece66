//! The API's own description, and a page to read it by.
//!
//! The page is one file with nothing fetched from elsewhere, and its policy lets nothing else run: its script and
//! style are allowed by their digests.

use std::sync::LazyLock;

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{super::Api, answer::typed};

const PAGE: &str = include_str!("../docs.html");

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let digest = |tag: &str| {
        let inside = PAGE.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        BASE64.encode(Sha256::digest(inside.map_or("", |(inside, _)| inside)))
    };
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest("script"),
        digest("style"),
    );
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "operations", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json")))]
pub(super) async fn openapi(State(api): State<Api>) -> Response {
    typed(StatusCode::OK, HeaderValue::from_static("application/json"), api.openapi.clone())
}

/// A page to read this document by, and to try its calls
#[utoipa::path(get, path = "/docs", tag = "operations", security(()),
    responses((status = 200, description = "The page", body = String, content_type = "text/html")))]
pub(super) async fn page() -> Response {
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    let mut response = typed(StatusCode::OK, html, Bytes::from_static(PAGE.as_bytes())).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
