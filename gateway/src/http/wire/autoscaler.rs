//! The autoscaler.

use std::collections::BTreeMap;

use flux_protocol::autoscaler::{
    ActionRecord, AutoscalerStatus, DecisionRecord, ManagedNode, ManagedState, SaidReason,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::time;

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AutoscalerBody {
    /// Who acts, of several.
    holder: String,
    /// When it said this; older than half a minute, it is not there.
    #[schema(format = DateTime)]
    at: String,
    /// All nodes were removed, and none is launched until `POST /initialize`.
    paused: bool,
    nodes: Vec<ManagedNodeBody>,
    /// Slots that are wanted and there, what waits and runs.
    seen: BTreeMap<String, f64>,
    /// Those that did something, the last first.
    decisions: Vec<DecisionBody>,
    /// What was to be done and is not, and why.
    notes: Vec<ReasonBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ManagedNodeBody {
    /// Of its agent.
    id: String,
    provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_id: Option<String>,
    instance_type: String,
    #[schema(value_type = ManagedStateName)]
    state: ManagedState,
    #[schema(format = DateTime)]
    since: String,
    /// When it was decided on; of one that was found, when it was.
    #[schema(format = DateTime)]
    wanted_at: String,
    price_per_hour: f64,
}

#[derive(ToSchema)]
#[schema(as = ManagedState, rename_all = "snake_case")]
#[allow(dead_code)]
pub(in crate::http) enum ManagedStateName {
    Wanted,
    Booting,
    Ready,
    Draining,
    Leaving,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DecisionBody {
    #[schema(format = DateTime)]
    at: String,
    actions: Vec<ActionBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ActionBody {
    #[schema(example = "launch")]
    action: String,
    what: String,
    reason: ReasonBody,
    /// The end of what the machine printed where setting it up failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ReasonBody {
    #[schema(example = "queue")]
    rule: String,
    said: String,
    /// The numbers that it came from.
    inputs: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct InitializedBody {
    pub(in crate::http) nodes: SpawnedBody,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SpawnedBody {
    pub(in crate::http) spawned: u32,
    pub(in crate::http) failed: u32,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NodesRemovedBody {
    #[schema(example = "removed")]
    pub(in crate::http) status: &'static str,
    pub(in crate::http) removed: u32,
}

impl From<AutoscalerStatus> for AutoscalerBody {
    fn from(status: AutoscalerStatus) -> Self {
        let AutoscalerStatus { holder, at, paused, nodes, seen, decisions, notes } = status;
        Self {
            holder,
            at: time(at),
            paused,
            nodes: nodes.into_iter().map(Into::into).collect(),
            seen,
            decisions: decisions.into_iter().map(Into::into).collect(),
            notes: notes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<ManagedNode> for ManagedNodeBody {
    fn from(node: ManagedNode) -> Self {
        let ManagedNode { id, provider, provider_id, instance_type, state, since, wanted_at, price_per_hour } = node;
        let (since, wanted_at) = (time(since), time(wanted_at));
        Self { id, provider, provider_id, instance_type, state, since, wanted_at, price_per_hour }
    }
}

impl From<DecisionRecord> for DecisionBody {
    fn from(DecisionRecord { at, actions }: DecisionRecord) -> Self {
        Self { at: time(at), actions: actions.into_iter().map(Into::into).collect() }
    }
}

impl From<ActionRecord> for ActionBody {
    fn from(ActionRecord { action, what, reason, output }: ActionRecord) -> Self {
        Self { action, what, reason: reason.into(), output }
    }
}

impl From<SaidReason> for ReasonBody {
    fn from(SaidReason { rule, said, inputs }: SaidReason) -> Self {
        Self { rule, said, inputs }
    }
}
