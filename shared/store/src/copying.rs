//! A store's content in a form that no engine owns: what a backup is made of, and what any engine can be filled with.
//!
//! Not in it is what belongs to those who live now and not to what they know: leases, and which agent was given the
//! secrets of an attempt.

use flux_protocol::{Digest, ExecutionId, ExecutionRecord, FunctionName, FunctionVersion, SecretName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{ApiKeyRecord, AuditEntry, SealedSecret};

/// One row. Rows come in no order that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    Function(FunctionHead),
    Version(Box<FunctionVersion>),
    /// Whole: with output and invocation.
    Execution(Box<ExecutionRecord>),
    Idempotency(HeldKey),
    ApiKey(Box<UsedKey>),
    Audit(NumberedEntry),
    SharedKey(SharedKey),
    #[serde(with = "sealed")]
    Secret(SealedSecret),
}

/// Which of a function's versions is current, and how far it has counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionHead {
    pub name: FunctionName,
    /// `None`: it was deleted, and goes on counting if it is registered anew.
    pub current: Option<u32>,
    pub last: u32,
}

/// An idempotency key and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldKey {
    pub function: FunctionName,
    pub key: String,
    pub execution: ExecutionId,
    pub body: Digest,
    pub at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedKey {
    /// Its own `last_used_at` is not written: see the field here.
    pub record: ApiKeyRecord,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

impl UsedKey {
    pub(crate) fn of(record: ApiKeyRecord) -> Box<Self> {
        Box::new(Self { last_used_at: record.last_used_at, record: ApiKeyRecord { last_used_at: None, ..record } })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedEntry {
    pub seq: u64,
    pub entry: AuditEntry,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedKey {
    pub name: String,
    #[serde(with = "base64_bytes")]
    pub value: Vec<u8>,
}

/// A step of filling a store.
#[derive(Debug)]
pub enum Part {
    Entry(Entry),
    /// That was all: what came before takes effect. Where this does not come, nothing does.
    End,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    pub functions: u64,
    /// Counted up to [`Census::COUNTED`].
    pub executions: u64,
    pub keys: u64,
    pub secrets: u64,
}

impl Census {
    pub const COUNTED: u64 = 100_000;

    /// Nothing that anybody would miss. (A gateway that was started leaves a key for its tickets, and a lease.)
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// As it is at rest.
mod sealed {
    use serde::{Deserializer, Serializer};

    use super::{Deserialize, SealedSecret, SecretName, Serialize, Timestamp, base64_bytes};

    #[derive(Serialize, Deserialize)]
    struct Written {
        name: SecretName,
        key: String,
        #[serde(with = "base64_bytes")]
        sealed: Vec<u8>,
        version: u32,
        created_at: Timestamp,
        updated_at: Timestamp,
    }

    pub(super) fn serialize<S: Serializer>(secret: &SealedSecret, serializer: S) -> Result<S::Ok, S::Error> {
        let SealedSecret { name, key, sealed, version, created_at, updated_at } = secret.clone();
        Written { name, key, sealed, version, created_at, updated_at }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SealedSecret, D::Error> {
        let Written { name, key, sealed, version, created_at, updated_at } = Written::deserialize(deserializer)?;
        Ok(SealedSecret { name, key, sealed, version, created_at, updated_at })
    }
}
