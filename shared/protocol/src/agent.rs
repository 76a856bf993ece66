//! What an agent says of itself, and what it is asked.

use serde::{Deserialize, Serialize};

use crate::{
    execution::QueuePosition,
    function::{FunctionSpec, Isolation, Network, Runtime},
    id::{AgentId, ExecutionId, FunctionName, PoolName},
    output::OutputLog,
    secret::Base64,
    time::Timestamp,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    Online,
    /// No free slot.
    Busy,
    /// Takes nothing new and ends when the running executions have.
    Draining,
    /// No heartbeat for a while; said by gateways, never by agents.
    Offline,
}

/// A node's measurements, with the field names of the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub cpu_percent: f64,
    pub memory_percent: f64,
    pub memory_total_mb: u64,
    pub memory_used_mb: u64,
    pub active_tasks: u32,
    pub uptime_seconds: u64,
    pub collected_at: Timestamp,
}

/// An amount of what executions take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Budget {
    pub tasks: u32,
    pub cpu_millicores: u32,
    pub memory_mb: u32,
}

/// Layers of isolation that the agent found it can give, and those that it cannot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// `process`, `container`, later `microvm`.
    pub tiers: Vec<String>,
    /// Such as `unprivileged_user`, `pid_namespace`, `cgroup_memory`.
    pub layers: Vec<String>,
    pub missing: Vec<MissingLayer>,
    /// Values of `network` whose functions it does not run: it lacks what they need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refuses: Vec<Network>,
    /// The same, of functions in containers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_refuses: Vec<Network>,
    /// Interpreters that were tried and answered. Native functions need none.
    #[serde(default)]
    pub runtimes: Vec<RuntimeGiven>,
}

/// A runtime that an agent found it can give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeGiven {
    /// As `runtime` names it: `python`, `node`, `bash`.
    pub name: String,
    /// What the interpreter says of itself, such as `3.11.2`.
    pub version: String,
}

impl Capabilities {
    /// Whether it has what the function needs to run in: native ones nothing, those in an image what is in the image.
    pub fn gives_runtime(&self, spec: &FunctionSpec) -> bool {
        spec.isolation != Isolation::Process
            || spec.runtime == Runtime::Native
            || self.runtimes.iter().any(|given| given.name == spec.runtime.as_str())
    }

    /// Whether it has the function's tier, and gives it its network there.
    pub fn isolates(&self, spec: &FunctionSpec) -> bool {
        let refuses = match spec.isolation {
            Isolation::Process => &self.refuses[..],
            Isolation::Container => &self.container_refuses[..],
            // None has a network, and none asks for one.
            Isolation::Microvm => &[][..],
        };
        let tier = spec.isolation.as_str();
        let has_tier = self.tiers.iter().any(|has| has == tier);
        // Agents without a launcher for a moment name none, and run processes.
        let has_tier = has_tier || self.tiers.is_empty() && spec.isolation == Isolation::Process;
        has_tier && !refuses.contains(&spec.network)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingLayer {
    pub layer: String,
    /// Why, and what would give it.
    pub reason: String,
}

/// Executions of one function that an agent runs now, by lane, and its workers that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningCount {
    pub function: FunctionName,
    pub calls: u32,
    pub invokes: u32,
    /// Workers that wait for its next execution.
    #[serde(default)]
    pub warm: u32,
}

/// Published on `flux.agent.<pool>.<agent>` every second, and at once when the status changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub agent_id: AgentId,
    pub pool: PoolName,
    /// Where its probe port listens, if it has one; else its node's name.
    pub address: String,
    pub status: AgentStatus,
    /// Release of Flux.
    pub release: String,
    pub started_at: Timestamp,
    pub at: Timestamp,
    pub node: NodeStatus,
    pub total: Budget,
    pub free: Budget,
    pub running: Vec<RunningCount>,
    pub capabilities: Capabilities,
    /// Code archives unpacked and ready.
    pub cached_digests: u32,
    /// What secrets are sealed to for this process of the agent (X25519); absent where it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_key: Option<Base64>,
    /// Executions that ended here since it started; none, too, where a release says nothing of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub finished: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Whether an agent that runs `tasks` executions at once waits at each of so many hot queues: three quarters of its
/// slots may be lent to idle ones. Where they are more, it waits to be told ([`ControlRequest::Ring`]).
pub const fn waits_everywhere(tasks: u64, hot: u64) -> bool {
    hot.saturating_mul(4) <= tasks.saturating_mul(3)
}

/// A request on `flux.control.<agent>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum ControlRequest {
    Ping,
    Drain,
    Undrain,
    /// Work waits at this queue, a key of the hot table: pull there, if you can. Not answered.
    Ring {
        queue: String,
    },
    /// What has this execution printed so far?
    Tail {
        execution_id: ExecutionId,
    },
    /// Which of these do you hold?
    Holds {
        execution_ids: Vec<ExecutionId>,
    },
    /// Its message is taken back. The answer is [`ControlReply::Holds`]: an agent that does not hold it will not start it
    /// from then on (as after a cancel), should it be on its way there; one that does goes on.
    Withdrawn {
        execution_id: ExecutionId,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum ControlReply {
    Ok {
        agent_id: AgentId,
    },
    /// `attempt` and the output by now.
    Tail {
        attempt: u32,
        output: OutputLog,
    },
    Holds {
        agent_id: AgentId,
        execution_ids: Vec<ExecutionId>,
    },
    /// The agent does not hold the execution.
    NotHeld,
    Invalid {
        message: String,
    },
}

/// A question on `flux.holders.<pool>.<agent>`, to the agents of a pool: who holds these, which the queue delivered again?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldersRequest {
    pub deliveries: Vec<Redelivery>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redelivery {
    pub execution_id: ExecutionId,
    /// The message: an execution that was published again has another.
    pub position: QueuePosition,
    /// The one that the asker would start.
    pub attempt: u32,
}

/// Answered by agents that have something to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldersReply {
    /// They run, or are about to.
    pub held: Vec<ExecutionId>,
    /// Their outcome is recorded.
    pub recorded: Vec<ExecutionId>,
}

/// Live output on `flux.output.<agent>.<execution>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputMessage {
    pub attempt: u32,
    pub chunk: crate::output::Chunk,
}

/// A cancel on `flux.cancel.<execution>`, to all agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Said in the outcome, such as `cancelled by DELETE /executions`.
    pub reason: String,
}

/// Answered by the agent that held the execution, after its processes are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {
    pub agent_id: AgentId,
    /// False when it ended by itself before the cancel reached it.
    pub cancelled: bool,
}

/// The answer to an agent that asks for a new certificate ([`crate::subject::RENEWAL`]); the question is a signing request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum RenewalReply {
    Renewed { certificate: String },
    Refused { message: String },
}

/// What an agent says on its probe port, to a gateway alone: one line of JSON, and then the connection ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeAnswer {
    pub agent_id: AgentId,
    pub node: NodeStatus,
}

/// A machine that somebody registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Of its probe port.
    pub address: String,
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::parse_yaml;

    #[test]
    fn a_container_needs_its_tier_and_no_interpreter_of_the_machine() {
        let spec =
            |more: &str| parse_yaml(&format!("name: f\nhandler: h.h\nruntime: python\n{more}")).expect("a function");
        let (process, container) = (spec(""), spec("isolation: container\nimage: a"));
        let tiers = |tiers: &[&str]| Capabilities {
            tiers: tiers.iter().map(|tier| (*tier).to_owned()).collect(),
            ..Capabilities::default()
        };
        for (given, expected) in
            [(&["process"][..], [true, false]), (&["process", "container"], [true, true]), (&[], [true, false])]
        {
            let isolates = [&process, &container].map(|spec| tiers(given).isolates(spec));
            assert_eq!(isolates, expected, "{given:?}");
        }
        let all = tiers(&["process", "container"]);
        assert_eq!([&process, &container].map(|spec| all.gives_runtime(spec)), [false, true]);
        let refusing = Capabilities { container_refuses: vec![Network::Host], ..all };
        assert_eq!([&process, &container].map(|spec| refusing.isolates(spec)), [true, false]);
    }
}
