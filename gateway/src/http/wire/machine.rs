//! Machines that run agents.

use flux_protocol::{AgentId, PoolName, agent::ProbeAnswer};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::agent::NodeBody;
use crate::core::Joined;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TokenRequest {
    /// Where the machine reaches this gateway.
    pub(in crate::http) url: String,
    /// Pools whose functions it runs; `default` unless any is named.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub(in crate::http) pools: Vec<PoolName>,
    /// How long the token can be used: an hour unless it is given, a week at most.
    #[serde(default)]
    pub(in crate::http) seconds: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TokenBody {
    pub(in crate::http) token: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct JoinRequest {
    /// The token's id.
    pub(in crate::http) token: String,
    #[schema(value_type = String)]
    pub(in crate::http) agent_id: AgentId,
    /// A certificate signing request of a P-256 key, as PEM.
    pub(in crate::http) request: String,
    /// HMAC-SHA-256 with the token's secret over `flux agent join`, the agent's id and the request, a line each; base64url.
    pub(in crate::http) proof: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct JoinedBody {
    certificate: String,
    /// The CA's certificate, whose SHA-256 the token has.
    ca: String,
    /// Where the queue is, as this gateway reaches it.
    queue_url: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct RegisterRequest {
    /// Of the agent's probe port.
    pub(in crate::http) address: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RegisteredBody {
    #[schema(example = "registered")]
    status: &'static str,
    id: String,
    address: String,
    node: NodeBody,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MachineBody {
    #[schema(example = "removed")]
    status: &'static str,
    id: String,
}

impl MachineBody {
    pub(in crate::http) fn new(id: &AgentId, status: &'static str) -> Self {
        Self { status, id: id.to_string() }
    }
}

impl RegisteredBody {
    pub(in crate::http) fn new(address: String, answer: ProbeAnswer) -> Self {
        Self { status: "registered", id: answer.agent_id.to_string(), address, node: answer.node.into() }
    }
}

impl From<Joined> for JoinedBody {
    fn from(Joined { certificate, ca, queue_url }: Joined) -> Self {
        Self { certificate, ca, queue_url }
    }
}
