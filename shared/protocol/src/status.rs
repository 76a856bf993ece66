//! One transition of an execution, as agents and gateways publish it. Each message is self-sufficient.

use serde::{Deserialize, Serialize};

use crate::{
    execution::{Outcome, Phase},
    id::{AgentId, ExecutionId, FunctionName, PoolName},
    invocation::{Invocation, Lane},
    time::Timestamp,
};

/// What `flux.statuses.<pool>.<sender>` stores, a line each; said on `flux.status.<sender>.<execution>`, and the reply to a waiting gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusMessage {
    pub execution_id: ExecutionId,
    pub function: FunctionName,
    pub version: u32,
    /// The invocation's attempt plus the redeliveries since.
    pub attempt: u32,
    pub lane: Lane,
    #[serde(default, skip_serializing_if = "PoolName::is_default")]
    pub pool: PoolName,
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    pub queued_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the transition happened.
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// On a failed asynchronous attempt: what the next attempt, or the dead letter, is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation: Option<Box<Invocation>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl StatusMessage {
    pub fn is_terminal(&self) -> bool {
        self.phase == Phase::Ended && self.outcome.as_ref().is_some_and(Outcome::is_terminal)
    }

    /// Id for the broker's duplicate window: one per execution, attempt and phase.
    pub fn message_id(&self) -> String {
        let phase = match self.phase {
            Phase::Queued => "queued",
            Phase::Running => "running",
            Phase::Ended => "ended",
        };
        format!("{}.{}.{phase}", self.execution_id, self.attempt)
    }
}
