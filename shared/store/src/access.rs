//! What is kept of who may do what: API keys, secrets (sealed before they come here), and the log of changes.

use flux_protocol::{Digest, KeyId, Scopes, SecretName, Timestamp};
use serde::{Deserialize, Serialize};

/// An API key as it is kept: never the key itself, only its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKeyRecord {
    pub id: KeyId,
    /// What its owner calls it.
    pub name: String,
    pub scopes: Scopes,
    /// SHA-256 of the whole key.
    pub digest: Digest,
    /// The key before the last rotation, while it still works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousKey>,
    pub created_at: Timestamp,
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Kept beside the record, since every gateway writes it.
    #[serde(skip)]
    pub last_used_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousKey {
    pub digest: Digest,
    pub until: Timestamp,
}

/// One change, or the attempt at one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub at: Timestamp,
    /// Such as `key 3f9a1c (ci)` or `token alice@https://issuer`.
    pub who: String,
    /// The peer's address.
    pub from: String,
    pub method: String,
    pub path: String,
    pub status: u16,
    pub request_id: String,
    /// What it came to, such as `version 3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
}

/// A secret's value, encrypted: the store cannot read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    pub name: SecretName,
    /// Which key it is encrypted with.
    pub key: String,
    pub sealed: Vec<u8>,
    /// 1, 2, 3 … with each new value. Set by the store.
    pub version: u32,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
