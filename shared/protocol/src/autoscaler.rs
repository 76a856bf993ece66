//! What the autoscaler says of itself, in its table, and what gateways ask it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Keys of the autoscaler's table.
pub const LEASE_KEY: &str = "lease";
pub const FLEET_KEY: &str = "fleet";
pub const STATUS_KEY: &str = "status";

/// The value under [`STATUS_KEY`], which `GET /autoscaler` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutoscalerStatus {
    /// Who acts.
    pub holder: String,
    pub at: Timestamp,
    /// All nodes were removed; none is launched until somebody asks for them.
    pub paused: bool,
    pub nodes: Vec<ManagedNode>,
    /// Numbers of the last look: slots that are wanted and there, what waits and runs.
    pub seen: BTreeMap<String, f64>,
    /// Those that did something, the last first.
    pub decisions: Vec<DecisionRecord>,
    /// Why nothing was done when something was to be, at the last look.
    pub notes: Vec<SaidReason>,
}

/// A machine that the autoscaler has, or is about to have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManagedNode {
    /// The id of its agent.
    pub id: String,
    pub provider: String,
    /// What the provider calls it, once it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    pub instance_type: String,
    pub state: ManagedState,
    pub since: Timestamp,
    /// When it was decided on; of one that was found, when it was. An autoscaler of a release before does not say.
    #[serde(default)]
    pub wanted_at: Timestamp,
    pub price_per_hour: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManagedState {
    /// To be launched: the provider may have it already.
    Wanted,
    Booting,
    Ready,
    Draining,
    /// To be terminated.
    Leaving,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    pub at: Timestamp,
    pub actions: Vec<ActionRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionRecord {
    /// `launch`, `undrain`, `drain`, `terminate`.
    pub action: String,
    /// Of which node, or what kind of one.
    pub what: String,
    pub reason: SaidReason,
    /// The end of what the machine printed where setting it up failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaidReason {
    pub rule: String,
    pub said: String,
    pub inputs: BTreeMap<String, f64>,
}

/// A question on [`crate::subject::AUTOSCALER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum AutoscalerRequest {
    /// Start `min_nodes` of every provider.
    Initialize,
    /// Terminate every managed node, and launch none until [`AutoscalerRequest::Initialize`].
    RemoveNodes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum AutoscalerReply {
    Initialized { spawned: u32, failed: u32 },
    Removed { removed: u32 },
    Failed { message: String },
}
