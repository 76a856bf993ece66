//! Newtyped identifiers. Each can be made only from text that is safe in a subject, a path and a URL.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{limits, time::Timestamp};

/// A name or id that cannot be used, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is not valid: {rule}")]
pub struct InvalidId {
    pub what: &'static str,
    pub given: String,
    pub rule: &'static str,
}

/// What speaks against a name; none where nothing does.
type Against = Option<&'static str>;

fn name(text: &str) -> Against {
    let fits = (1..=limits::NAME_LENGTH).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    (!fits).then_some("use 1 to 64 of A-Z a-z 0-9 _ -")
}

/// A variable's name, and none of Flux's own.
fn secret_name(text: &str) -> Against {
    let is_name = (1..=limits::NAME_LENGTH).contains(&text.len())
        && !text.as_bytes()[0].is_ascii_digit()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let is_own = text.starts_with("FLUX_") || matches!(text, "PAYLOAD" | "traceparent");
    match (is_name, is_own) {
        (true, false) => None,
        (true, true) => Some("names that start with FLUX_, PAYLOAD and traceparent are Flux's own"),
        (false, _) => Some("use 1 to 64 of A-Z a-z 0-9 _, and no digit first"),
    }
}

/// A newtype for text that was looked at: what it is in words, and a function from the text to the rule that speaks against it,
/// if one does.
#[macro_export]
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $against:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(::std::sync::Arc<str>);

        impl $name {
            /// # Errors
            /// A rule speaks against the text, and the error says which.
            pub fn parse(text: &str) -> Result<Self, $crate::id::InvalidId> {
                let against: Option<&'static str> = $against(text);
                match against {
                    None => Ok(Self(text.into())),
                    Some(rule) => {
                        Err($crate::id::InvalidId { what: $what, given: text.chars().take(80).collect(), rule })
                    }
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::id::InvalidId;
            fn from_str(text: &str) -> Result<Self, $crate::id::InvalidId> {
                Self::parse(text)
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <::std::borrow::Cow<'de, str> as ::serde::Deserialize>::deserialize(deserializer)?;
                Self::parse(&text).map_err(::serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// A function's name: `[A-Za-z0-9_-]{1,64}`.
    FunctionName,
    "function name",
    name
);
name_type!(
    /// A set of agents and the functions that run on them; `default` unless one is named.
    PoolName,
    "pool name",
    name
);
name_type!(
    /// An agent's id, stable over its restarts.
    AgentId,
    "agent id",
    name
);
name_type!(
    /// A gateway's id, new at each start.
    GatewayId,
    "gateway id",
    name
);

impl Default for PoolName {
    fn default() -> Self {
        Self("default".into())
    }
}

impl PoolName {
    pub fn is_default(&self) -> bool {
        &*self.0 == "default"
    }
}

impl GatewayId {
    /// A new id: `gw-` and 12 random hex digits.
    pub fn random() -> Self {
        Self(format!("gw-{:012x}", rand::random::<u64>() >> 16).into())
    }
}

impl AgentId {
    /// A new id: `agent-` and 12 random hex digits.
    pub fn random() -> Self {
        Self(format!("agent-{:012x}", rand::random::<u64>() >> 16).into())
    }
}

name_type!(
    /// An API key's id. It is not secret: lists and the audit log show it.
    KeyId,
    "key id",
    name
);

impl KeyId {
    /// 12 random hex digits: no `_`, which ends it in a key.
    pub fn random() -> Self {
        Self(format!("{:012x}", rand::random::<u64>() >> 16).into())
    }
}

name_type!(
    /// A secret's name, which is also the environment variable that a function finds it in.
    SecretName,
    "secret name",
    secret_name
);

/// The id of one execution: `exc-` and a UUIDv7.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionId(Uuid);

impl ExecutionId {
    /// A new id of this instant.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of an invocation that was published with no gateway in between.
    ///
    /// It is made from the message alone, so that a redelivery has the same: a UUIDv7 of the stream's
    /// timestamp whose random part is the start of SHA-256(stream, 0, sequence, timestamp), the numbers
    /// as 8 bytes big-endian, the timestamp in microseconds. Golden vectors: `tests/it/golden.rs`.
    pub fn derived(stream: &str, sequence: u64, stored_at: Timestamp) -> Self {
        let mut hash = Sha256::new();
        hash.update(stream.as_bytes());
        hash.update([0]);
        hash.update(sequence.to_be_bytes());
        hash.update(stored_at.as_micros().to_be_bytes());
        let digest = hash.finalize();
        let mut random = [0_u8; 10];
        random.copy_from_slice(&digest[..10]);
        let millis = u64::try_from(stored_at.as_millis()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The instant in the id, in whole milliseconds.
    pub fn created_at(&self) -> Timestamp {
        let bytes = self.0.as_bytes();
        let mut millis = [0_u8; 8];
        millis[2..].copy_from_slice(&bytes[..6]);
        Timestamp::from_millis(i64::from_be_bytes(millis))
    }
}

impl Default for ExecutionId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exc-{}", self.0.as_hyphenated())
    }
}

impl fmt::Debug for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ExecutionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.strip_prefix("exc-")
            .filter(|rest| rest.len() == 36)
            .and_then(|rest| Uuid::try_parse(rest).ok())
            .map(Self)
            .ok_or_else(|| InvalidId {
                what: "execution id",
                given: text.chars().take(80).collect(),
                rule: "it is `exc-` and a UUID, as POST /execute returned it",
            })
    }
}

impl Serialize for ExecutionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ExecutionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The SHA-256 of some content, written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits alone, as a file or object name.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parse = || -> Option<Self> {
            let hex = text.strip_prefix("sha256:")?.as_bytes();
            if hex.len() != 64 {
                return None;
            }
            let mut bytes = [0_u8; 32];
            for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
                let digit = |b: u8| char::from(b).to_digit(16);
                *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
            }
            Some(Self(bytes))
        };
        parse().ok_or_else(|| InvalidId {
            what: "digest",
            given: text.chars().take(80).collect(),
            rule: "it is `sha256:` and 64 hex digits",
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
