//! Which pages may ask from a browser. None, unless the configuration names their origins.
//!
//! Cookies are never sent here, so a page can do no more than who gave it a key.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Uri, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use super::{request_id::X_REQUEST_ID, routes::EXECUTION_ID};

const ANY: &str = "*";
/// Browsers ask again after this.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What is configured is no origin.
#[derive(Debug, thiserror::Error)]
#[error("`gateway.cors`: `{given}` is no origin: write `https://app.example.org`, without a path, or \"*\"")]
pub struct CorsError {
    given: String,
}

pub(super) fn check(origins: &[String]) -> Result<(), CorsError> {
    match origins.iter().find(|origin| *origin != ANY && !is_origin(origin)) {
        Some(wrong) => Err(CorsError { given: wrong.clone() }),
        None => Ok(()),
    }
}

/// A scheme, a host, and perhaps a port, written as browsers do.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let alone = format!("{scheme}://{authority}");
    alone == text && text == text.to_ascii_lowercase() && !authority.as_str().contains('@')
}

pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    let origin = match origins {
        [] => return None,
        list if list.iter().any(|origin| origin == ANY) => AllowOrigin::any(),
        list => AllowOrigin::list(list.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let exposed: [HeaderName; 4] = [X_REQUEST_ID, EXECUTION_ID, header::LOCATION, header::RETRY_AFTER];
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(REMEMBERED);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let ok = |text: &str| check(&[text.to_owned()]).is_ok();
        assert!(ok("*") && ok("https://app.example.org") && ok("http://localhost:3000"));
        for wrong in [
            "app.example.org",
            "https://a/",
            "https://a/x",
            "https://A.example",
            "https://u@a",
            "",
            "null",
            "https://*.a b",
        ] {
            assert!(!ok(wrong), "{wrong}");
        }
    }
}
