//! The id under which a caller and the log speak of one request: the caller's own where it is fit to be logged,
//! else a new one.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use flux_protocol::limits;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(Debug, Clone)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match headers.get(&X_REQUEST_ID) {
            Some(given) if is_sane(given.as_bytes()) => Self(given.clone()),
            _ => Self::random(),
        }
    }

    fn random() -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = *b"req-0000000000000000";
        for (at, byte) in rand::random::<[u8; 8]>().into_iter().enumerate() {
            text[4 + at * 2] = HEX[usize::from(byte >> 4)];
            text[5 + at * 2] = HEX[usize::from(byte & 15)];
        }
        HeaderValue::from_bytes(&text).map_or_else(|_| Self(HeaderValue::from_static("req-0")), Self)
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// Short, and of characters that neither a log nor a header could misread.
fn is_sane(given: &[u8]) -> bool {
    (1..=limits::REQUEST_ID_LENGTH).contains(&given.len())
        && given.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_id_is_kept_if_it_is_sane() {
        let id = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, given.parse().expect("a header"));
            RequestId::of(&headers).as_str().to_owned()
        };
        assert_eq!(id("abc-1.2:3/x"), "abc-1.2:3/x");
        assert!(id("a b").starts_with("req-"));
        assert!(id("\"quoted\"").starts_with("req-"));
        assert!(id(&"x".repeat(129)).starts_with("req-"));
        assert_eq!(id("").len(), 20);
    }
}
