//! A key that signatures are checked with, and the one algorithm that it is for.

use std::{fmt, path::PathBuf};

use flux_runtime::settings::IssuerKey;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};

/// Shorter secrets than the hash can be guessed.
const HMAC_LEAST_BYTES: usize = 32;

/// A configured issuer or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("`gateway.jwt`: the issuer `{issuer}`: {problem}")]
    Settings { issuer: String, problem: String },
    #[error("`gateway.jwt`: the issuer `{issuer}`: the key file {path} cannot be read")]
    Read {
        issuer: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

#[derive(Clone)]
pub(super) struct VerifyingKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({:?}, {:?})", self.id, self.algorithm)
    }
}

impl VerifyingKey {
    pub(super) fn read(issuer: &str, settings: &IssuerKey) -> Result<Self, KeyError> {
        let issuer = || issuer.to_owned();
        let path = &settings.file;
        let wrong = |problem: String| KeyError::Settings { issuer: issuer(), problem };
        let content =
            std::fs::read(path).map_err(|source| KeyError::Read { issuer: issuer(), path: path.clone(), source })?;
        let unreadable = |_| wrong(format!("{} is no public key for {} in PEM", path.display(), settings.algorithm));
        let (algorithm, key) = match settings.algorithm.as_str() {
            "HS256" => {
                let secret = content.trim_ascii();
                if secret.len() < HMAC_LEAST_BYTES || secret.starts_with(b"-----BEGIN") {
                    let problem = "a secret for HS256 has 32 random bytes at least, and is no PEM file";
                    return Err(wrong(format!("{}: {problem}", path.display())));
                }
                (Algorithm::HS256, DecodingKey::from_secret(secret))
            }
            "RS256" => (Algorithm::RS256, DecodingKey::from_rsa_pem(&content).map_err(unreadable)?),
            "ES256" => (Algorithm::ES256, DecodingKey::from_ec_pem(&content).map_err(unreadable)?),
            other => return Err(wrong(format!("`algorithm` is HS256, RS256 or ES256, and not `{other}`"))),
        };
        Ok(Self { id: settings.id.clone(), algorithm, key })
    }

    /// A key of a published set, if it is one that signs with an algorithm we take. Its kind decides which: a set that says
    /// nothing, or the same. Symmetric keys are nothing to publish.
    pub(super) fn of_jwk(jwk: &Jwk) -> Option<Self> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
            _ => return None,
        };
        let says_so = match jwk.common.key_algorithm {
            None => true,
            Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
            Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
            Some(_) => false,
        };
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|what| *what == PublicKeyUse::Signature);
        if !says_so || !signs {
            return None;
        }
        Some(Self { id: jwk.common.key_id.clone(), algorithm, key: DecodingKey::from_jwk(jwk).ok()? })
    }
}
