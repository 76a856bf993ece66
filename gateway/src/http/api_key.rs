//! The key that a caller must show. Only its digest is kept, and digests are compared in constant time: how long a
//! comparison takes says nothing of how much of a guess was right.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

#[derive(Clone)]
pub struct ApiKey {
    digest: [u8; 32],
}

/// No key is configured.
#[derive(Debug, thiserror::Error)]
#[error(
    "no API key is configured, and a gateway does not serve without one: set `gateway.api_key` in the configuration \
     file, FLUX_GATEWAY__API_KEY in the environment, or --api-key"
)]
pub struct MissingApiKey;

/// Where a request carries the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyHeader {
    XApiKey,
    Authorization,
}

impl ApiKey {
    /// # Errors
    /// The key is empty.
    pub fn parse(key: &str) -> Result<Self, MissingApiKey> {
        if key.trim().is_empty() {
            return Err(MissingApiKey);
        }
        Ok(Self { digest: Sha256::digest(key.as_bytes()).into() })
    }

    fn is(&self, given: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        self.digest.ct_eq(&given).into()
    }

    /// Whether any key is shown, be it this one or not.
    pub(super) fn any_in(headers: &HeaderMap) -> bool {
        headers.contains_key(&X_API_KEY)
            || headers.get(AUTHORIZATION).is_some_and(|value| bearer_token(value.as_bytes()).is_some())
    }

    /// Which header shows this key, if one does.
    pub(super) fn shown_in(&self, headers: &HeaderMap) -> Option<KeyHeader> {
        if headers.get(&X_API_KEY).is_some_and(|key| self.is(key.as_bytes())) {
            return Some(KeyHeader::XApiKey);
        }
        let bearer = headers.get(AUTHORIZATION).and_then(|value| bearer_token(value.as_bytes()))?;
        self.is(bearer).then_some(KeyHeader::Authorization)
    }
}

fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_either_header_and_only_there() {
        let key = ApiKey::parse("s3cret").expect("a key");
        let shown = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a header"));
            key.shown_in(&headers)
        };
        assert_eq!(shown("x-api-key", "s3cret"), Some(KeyHeader::XApiKey));
        assert_eq!(shown("authorization", "Bearer s3cret"), Some(KeyHeader::Authorization));
        assert_eq!(shown("authorization", "bearer  s3cret"), Some(KeyHeader::Authorization));
        assert_eq!(shown("authorization", "Basic s3cret"), None);
        assert_eq!(shown("authorization", "s3cret"), None);
        assert_eq!(shown("x-api-key", "s3cre"), None);
        assert_eq!(shown("x-api-key", ""), None);
    }

    #[test]
    fn an_empty_key_is_no_key() {
        assert!(ApiKey::parse("").is_err());
        assert!(ApiKey::parse("  ").is_err());
    }
}
