//! The key that a gateway was started with, the first admin's. Only its digest is kept, and digests are compared in constant time: how long a
//! comparison takes says nothing of how much of a guess was right.

use std::fmt;

use axum::http::{HeaderName, header::AUTHORIZATION};
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

impl KeyHeader {
    pub(super) fn name(self) -> HeaderName {
        match self {
            Self::XApiKey => X_API_KEY,
            Self::Authorization => AUTHORIZATION,
        }
    }
}

/// Some of them, or none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeyHeaders {
    x_api_key: bool,
    authorization: bool,
}

impl KeyHeaders {
    pub(super) fn add(&mut self, header: KeyHeader) {
        match header {
            KeyHeader::XApiKey => self.x_api_key = true,
            KeyHeader::Authorization => self.authorization = true,
        }
    }

    pub(super) fn has(self, header: KeyHeader) -> bool {
        match header {
            KeyHeader::XApiKey => self.x_api_key,
            KeyHeader::Authorization => self.authorization,
        }
    }

    pub(super) fn has_name(self, name: &HeaderName) -> bool {
        (self.x_api_key && *name == X_API_KEY) || (self.authorization && *name == AUTHORIZATION)
    }
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

    pub(super) fn is(&self, given: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        self.digest.ct_eq(&given).into()
    }
}

pub(super) fn bearer_token(value: &[u8]) -> Option<&[u8]> {
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
    fn a_bearers_token_is_what_follows_the_word() {
        assert_eq!(bearer_token(b"Bearer s3cret"), Some(&b"s3cret"[..]));
        assert_eq!(bearer_token(b"bearer  s3cret "), Some(&b"s3cret"[..]));
        for other in [&b"Basic s3cret"[..], b"s3cret", b"", b"Bearer"] {
            assert_eq!(bearer_token(other), None);
        }
        assert!(ApiKey::parse("s3cret").expect("a key").is(b"s3cret"));
        assert!(!ApiKey::parse("s3cret").expect("a key").is(b"s3cre"));
    }

    #[test]
    fn an_empty_key_is_no_key() {
        assert!(ApiKey::parse("").is_err());
        assert!(ApiKey::parse("  ").is_err());
    }
}
