//! How the agent that holds an attempt asks a gateway for its secrets. The answer is sealed: whoever else reads it on the
//! queue learns nothing.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    id::{AgentId, ExecutionId, FunctionName, SecretName},
    time::Timestamp,
};

/// Bytes in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

/// Published on `flux.ask.<agent>.secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretsRequest {
    pub execution_id: ExecutionId,
    /// As the function sees it: redeliveries count.
    pub attempt: u32,
    pub function: FunctionName,
    pub version: u32,
    /// Of this question: asked again with the same one, it is answered again, should the answer have been lost.
    pub nonce: Base64,
    /// The key that the answer is to be sealed to. A gateway seals to it only if the agent's heartbeat says the same.
    pub public_key: Base64,
    /// That the key is the agent's. Absent where agents have no certificates; a gateway that knows them by theirs gives
    /// nothing without, and says so as something that may change: agents of the release before send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<KeyProof>,
}

/// An agent's certificate, and [`key_statement`] signed by its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyProof {
    /// PEM.
    pub certificate: String,
    pub signature: Base64,
}

/// What an agent signs of the key that secrets are to be sealed to: nothing that it signs for another purpose begins so.
pub fn key_statement(agent: &AgentId, public_key: &[u8]) -> Vec<u8> {
    format!("flux secrets key 1\n{agent}\n{}", STANDARD.encode(public_key)).into_bytes()
}

impl SecretsRequest {
    /// What the answer is sealed for: nothing else opens it.
    pub fn purpose(&self, agent: &AgentId) -> Vec<u8> {
        let Self { execution_id, attempt, function, version, nonce, .. } = self;
        format!("{agent} {execution_id} {attempt} {function} {version} {}", STANDARD.encode(&nonce.0)).into_bytes()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum SecretsReply {
    /// HPKE; within it JSON, from names to values. `stamps` says which values they are.
    Sealed {
        encapsulated: Base64,
        ciphertext: Base64,
        #[serde(default, skip_serializing_if = "SecretStamps::is_empty")]
        stamps: SecretStamps,
    },
    /// These are not set.
    Missing { names: Vec<SecretName> },
    /// Not to this agent.
    Refused { reason: String },
    /// The attempt of that number has an owner. Who holds the execution counts on: the queue may have forgotten a delivery.
    Claimed { reason: String },
    /// Ask again in a moment.
    NotNow { reason: String },
}

/// Which value of a secret it is: another one after every change, also where a name was removed and set again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretStamp {
    pub created_at: Timestamp,
    pub version: u32,
}

pub type SecretStamps = BTreeMap<SecretName, SecretStamp>;

/// What an agent asks of the functions that it has warm workers of ([`crate::subject::SECRET_STAMPS`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampsRequest {
    /// At most [`crate::limits::STAMPS_ASKED`].
    pub functions: Vec<VersionedFunction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionedFunction {
    pub function: FunctionName,
    pub version: u32,
}

/// Those of the functions that are the agent's to know of; a secret that is not set is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampsReply {
    pub functions: Vec<FunctionStamps>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionStamps {
    #[serde(flatten)]
    pub of: VersionedFunction,
    pub stamps: SecretStamps,
}
