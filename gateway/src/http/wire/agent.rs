//! Agents and nodes.

use flux_protocol::agent::{AgentStatus, Budget, Capabilities, NodeStatus};
use serde::Serialize;
use utoipa::ToSchema;

use super::time;
use crate::core::{AgentView, Known};

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AgentBody {
    id: String,
    /// Where its probe port listens, if it has one; else its node's name.
    address: String,
    /// Executions that it runs now.
    active_count: u32,
    #[schema(value_type = AgentStatusName)]
    status: AgentStatus,
    #[schema(format = DateTime)]
    last_heartbeat: String,
    /// Shown to who has a key, as are the two below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    /// All that the agent may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<BudgetBody>,
    /// What of it is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    free: Option<BudgetBody>,
    node_status: NodeBody,
    capabilities: CapabilitiesBody,
    /// The name in its certificate; none where the queue is talked to without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "spiffe://flux/agent/agent-7/1")]
    identity: Option<String>,
    /// When its certificate ends; it is renewed before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    identity_expires: Option<String>,
    /// Who it was bought from; `manual`: somebody registered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// What the provider calls its machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_type: Option<String>,
}

#[derive(ToSchema)]
#[schema(as = AgentStatus, rename_all = "snake_case")]
#[allow(dead_code)]
pub(in crate::http) enum AgentStatusName {
    Online,
    Busy,
    Draining,
    Offline,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BudgetBody {
    tasks: u32,
    cpu_millicores: u32,
    memory_mb: u32,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NodeBody {
    cpu_percent: f64,
    memory_percent: f64,
    memory_total_mb: u64,
    memory_used_mb: u64,
    active_tasks: u32,
    uptime_seconds: u64,
    #[schema(format = DateTime)]
    collected_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CapabilitiesBody {
    /// Sandboxes that it can give.
    tiers: Vec<String>,
    /// Layers of isolation, such as `pid_namespace` or `cgroup_memory`.
    layers: Vec<String>,
    missing: Vec<MissingLayerBody>,
    /// Values of `network` whose functions it does not run: a layer that they need is missing.
    refuses: Vec<String>,
    /// The same, of functions in containers.
    container_refuses: Vec<String>,
    /// Interpreters for functions that are not native.
    runtimes: Vec<RuntimeBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RuntimeBody {
    #[schema(example = "python")]
    name: String,
    #[schema(example = "3.11.2")]
    version: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MissingLayerBody {
    layer: String,
    /// Why, and what would give it.
    reason: String,
}

/// What Flux and its agents use of their machines.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResourcesBody {
    pub(in crate::http) flux: FluxNodeBody,
    pub(in crate::http) agents: Vec<AgentResourcesBody>,
}

/// The gateway that answered.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct FluxNodeBody {
    pub(in crate::http) node: NodeBody,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AgentResourcesBody {
    id: String,
    #[schema(value_type = AgentStatusName)]
    status: AgentStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_type: Option<String>,
    node: NodeBody,
}

impl AgentBody {
    pub(in crate::http) fn new(AgentView { heartbeat, status, last_heartbeat }: AgentView, known: Known) -> Self {
        Self {
            id: heartbeat.agent_id.to_string(),
            provider: known
                .registered
                .as_ref()
                .map(|_| "manual".to_owned())
                .or_else(|| known.managed.as_ref().map(|node| node.provider.clone())),
            provider_id: known.managed.as_ref().and_then(|node| node.provider_id.clone()),
            instance_type: known.managed.map(|node| node.instance_type),
            address: known.registered.map_or(heartbeat.address, |registered| registered.address),
            identity: known.identity,
            identity_expires: known.not_after.map(time),
            active_count: heartbeat.running.iter().map(|running| running.calls + running.invokes).sum(),
            status,
            last_heartbeat: time(last_heartbeat),
            pool: Some(heartbeat.pool.to_string()),
            total: Some(heartbeat.total.into()),
            free: Some(heartbeat.free.into()),
            node_status: heartbeat.node.into(),
            capabilities: heartbeat.capabilities.into(),
        }
    }
}

impl AgentBody {
    /// What everybody may see.
    pub(in crate::http) fn public(self) -> Self {
        Self { pool: None, total: None, free: None, ..self }
    }
}

impl AgentResourcesBody {
    pub(in crate::http) fn new(agent: AgentView, known: Known) -> Self {
        Self {
            id: agent.heartbeat.agent_id.to_string(),
            status: agent.status,
            instance_type: known.managed.map(|node| node.instance_type),
            node: agent.heartbeat.node.into(),
        }
    }
}

impl From<Budget> for BudgetBody {
    fn from(Budget { tasks, cpu_millicores, memory_mb }: Budget) -> Self {
        Self { tasks, cpu_millicores, memory_mb }
    }
}

impl From<NodeStatus> for NodeBody {
    fn from(node: NodeStatus) -> Self {
        Self {
            cpu_percent: node.cpu_percent,
            memory_percent: node.memory_percent,
            memory_total_mb: node.memory_total_mb,
            memory_used_mb: node.memory_used_mb,
            active_tasks: node.active_tasks,
            uptime_seconds: node.uptime_seconds,
            collected_at: time(node.collected_at),
        }
    }
}

impl From<Capabilities> for CapabilitiesBody {
    fn from(Capabilities { tiers, layers, missing, refuses, container_refuses, runtimes }: Capabilities) -> Self {
        let missing = missing.into_iter().map(|layer| MissingLayerBody { layer: layer.layer, reason: layer.reason });
        let runtimes = runtimes.into_iter().map(|given| RuntimeBody { name: given.name, version: given.version });
        Self {
            tiers,
            layers,
            missing: missing.collect(),
            refuses: networks(&refuses),
            container_refuses: networks(&container_refuses),
            runtimes: runtimes.collect(),
        }
    }
}

fn networks(of: &[flux_protocol::function::Network]) -> Vec<String> {
    of.iter().map(|network| network.as_str().to_owned()).collect()
}
