//! One-time tokens with which a machine that nobody provisions joins.
//!
//! A token says where to ask, whose answer to believe (the CA's fingerprint) and a secret that never travels: the request
//! is authenticated with it. So joining is safe over plain HTTP too: who listens learns a certificate, which is public, and
//! who changes the request or the answer is found out.

use std::{path::PathBuf, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use flux_protocol::{AgentId, PoolName, Timestamp, limits, time::now};
use serde::{Deserialize, Serialize};

use crate::{PkiError, files};

const PREFIX: &str = "fluxjoin_";

/// What is handed to the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The gateway's address, such as `http://10.0.0.1:7227`.
    pub url: String,
    /// SHA-256 of the CA's certificate, as hex.
    pub ca: String,
    pub id: String,
    secret: String,
}

impl JoinToken {
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        let wrong = || PkiError::Token { why: "it is not one that `flux agent token create` printed" };
        let encoded = text.trim().strip_prefix(PREFIX).ok_or_else(wrong)?;
        let json = BASE64.decode(encoded).map_err(|_| wrong())?;
        serde_json::from_slice(&json).map_err(|_| wrong())
    }

    /// Proof of knowing the secret, for exactly this request.
    ///
    /// # Errors
    /// The token was damaged.
    pub fn proof(&self, agent: &AgentId, request: &str) -> Result<String, PkiError> {
        let secret = BASE64.decode(&self.secret).map_err(|_| PkiError::Token { why: "it is damaged" })?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Ok(BASE64.encode(hmac::sign(&key, &proven(agent, request))))
    }
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| std::fmt::Error)?;
        write!(f, "{PREFIX}{}", BASE64.encode(json))
    }
}

/// What the proof is over. An id has no line break.
fn proven(agent: &AgentId, request: &str) -> Vec<u8> {
    format!("flux agent join\n{agent}\n{request}").into_bytes()
}

/// Tokens that were not used yet, in `tokens.json`.
pub struct OpenTokens {
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Open {
    id: String,
    secret: String,
    pools: Vec<PoolName>,
    expires: Timestamp,
}

impl OpenTokens {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    fn read(&self) -> Result<Vec<Open>, PkiError> {
        let Some(text) = files::read_secret(&self.path)? else { return Ok(Vec::new()) };
        let mut open: Vec<Open> = serde_json::from_str(&text)
            .map_err(|error| PkiError::Damaged { path: self.path.clone(), why: error.to_string() })?;
        open.retain(|token| token.expires > now());
        Ok(open)
    }

    fn write(&self, open: &[Open]) -> Result<(), PkiError> {
        let text = serde_json::to_string_pretty(open).map_err(|error| PkiError::crypto("writing tokens", error))?;
        files::write(&self.path, &text, files::SECRET)
    }

    /// A new one. The caller holds the directory's lock.
    pub(crate) fn create(
        &self,
        url: &str,
        fingerprint: &str,
        pools: Vec<PoolName>,
        life: Duration,
    ) -> Result<JoinToken, PkiError> {
        let mut open = self.read()?;
        if open.len() >= limits::JOIN_TOKENS {
            return Err(PkiError::Token { why: "as many as may be are open already; wait until some expire" });
        }
        let mut random = [0; 40];
        aws_lc_rs::rand::fill(&mut random).map_err(|error| PkiError::crypto("making a token", error))?;
        let (id, secret) = random.split_at(8);
        let (id, secret) = (BASE64.encode(id), BASE64.encode(secret));
        let expires = now().plus(life.min(limits::JOIN_TOKEN_LONGEST));
        open.push(Open { id: id.clone(), secret: secret.clone(), pools, expires });
        self.write(&open)?;
        Ok(JoinToken { url: url.to_owned(), ca: fingerprint.to_owned(), id, secret })
    }

    /// Checks a proof and uses the token up: the pools that it was made for. The caller holds the directory's lock.
    pub(crate) fn redeem(
        &self,
        id: &str,
        agent: &AgentId,
        request: &str,
        proof: &str,
    ) -> Result<Vec<PoolName>, PkiError> {
        let refused = || PkiError::Token { why: "it is unknown, was used already, or has expired" };
        let mut open = self.read()?;
        let at = open.iter().position(|token| token.id == id).ok_or_else(refused)?;
        let secret = BASE64.decode(&open[at].secret).map_err(|_| refused())?;
        let proof = BASE64.decode(proof).map_err(|_| refused())?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        // In constant time. A wrong proof does not use the token up: its id alone is no secret.
        hmac::verify(&key, &proven(agent, request), &proof).map_err(|_| refused())?;
        let used = open.remove(at);
        self.write(&open)?;
        Ok(used.pools)
    }
}
