//! What a gateway does, apart from HTTP: each row of the API is one method here.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_broker::{Broker, DeadLetter};
use flux_protocol::{
    AgentId, Chunk, ExecutionId, ExecutionRecord, FunctionName, FunctionSpec, FunctionVersion, GatewayId, Outcome, Timestamp,
    agent::{AgentStatus, Heartbeat, NodeStatus},
    trace::TraceParent,
};
use flux_store::{ExecutionFilter, Function, Store};
use futures::stream::BoxStream;

use crate::refusal::Refusal;

/// A gateway's handle. Clones share one.
#[derive(Clone)]
pub struct Gateway {
    _inner: Arc<()>,
}

/// An invocation as it was asked for.
#[derive(Debug, Clone, Default)]
pub struct InvokeRequest {
    pub payload: Bytes,
    pub args: Vec<String>,
    /// `?timeout=`: the caller's own deadline, from now.
    pub timeout: Option<Duration>,
    pub idempotency_key: Option<String>,
    /// A version other than the current one (redrive).
    pub version: Option<u32>,
    pub trace: Option<TraceParent>,
}

/// A call's end.
#[derive(Debug, Clone)]
pub struct Called {
    pub execution_id: ExecutionId,
    pub agent_id: Option<AgentId>,
    pub attempt: u32,
    pub version: u32,
    /// With the whole output: fetched from the blob seam where it lay there.
    pub outcome: Outcome,
    /// It was answered from an earlier call with the same `Idempotency-Key`.
    pub replayed: bool,
}

#[derive(Debug, Clone)]
pub struct Accepted {
    pub execution_id: ExecutionId,
    pub replayed: bool,
}

/// Answer to a registration or deployment.
#[derive(Debug, Clone)]
pub struct Published {
    pub version: FunctionVersion,
    pub changed: bool,
    /// Agents online now, all of which sync it.
    pub agents: Vec<AgentId>,
}

/// An agent as this gateway last heard of it.
#[derive(Debug, Clone)]
pub struct AgentView {
    pub heartbeat: Heartbeat,
    /// As the agent said, or `offline` when it stopped saying anything.
    pub status: AgentStatus,
    pub last_heartbeat: Timestamp,
}

/// What a watcher of an execution gets.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    Output { attempt: u32, chunk: Chunk },
    /// The execution is terminal; nothing follows.
    End(Box<ExecutionRecord>),
}

/// Where a watcher had got to: `Last-Event-ID: <attempt>.<chunk>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchFrom {
    pub attempt: u32,
    pub chunk: u64,
}

#[derive(Debug, Clone)]
pub struct Why {
    pub record: ExecutionRecord,
    /// Such as `at_concurrency`, `no_resources`, `no_agents`, `no_capability`, `waiting_for_retry`, `queued_behind_others`, `running`, `ended`.
    pub reason: &'static str,
    /// A sentence with numbers and the remedy.
    pub explanation: String,
    /// Messages of its function that are queued, itself included.
    pub queued: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Redriven {
    pub letter: u64,
    /// `None` in a dry run.
    pub execution_id: Option<ExecutionId>,
    pub of: ExecutionId,
}

/// Which of the parts a gateway needs answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    pub queue: bool,
    pub store: bool,
    pub draining: bool,
}

#[allow(unused_variables, clippy::unused_async, clippy::unimplemented)] // signatures first; bodies follow
impl Gateway {
    pub fn id(&self) -> &GatewayId { unimplemented!() }
    pub async fn readiness(&self) -> Readiness { unimplemented!() }
    pub fn agents(&self) -> Vec<AgentView> { unimplemented!() }
    /// This gateway's own node.
    pub fn node(&self) -> NodeStatus { unimplemented!() }

    pub async fn register(&self, spec: FunctionSpec) -> Result<Published, Refusal> { unimplemented!() }
    /// `archive` is a zip. A function that is not registered yet takes the `flux.yaml` in it.
    pub async fn deploy(&self, name: &FunctionName, archive: Bytes) -> Result<Published, Refusal> { unimplemented!() }
    pub async fn rollback(&self, name: &FunctionName, version: u32) -> Result<Published, Refusal> { unimplemented!() }
    pub async fn function(&self, name: &FunctionName) -> Result<Function, Refusal> { unimplemented!() }
    pub async fn functions(&self, prefix: &str, cursor: Option<&FunctionName>, limit: usize) -> Result<Vec<FunctionVersion>, Refusal> { unimplemented!() }
    pub async fn delete_function(&self, name: &FunctionName) -> Result<(), Refusal> { unimplemented!() }

    /// Runs a function and waits for its outcome. Dropping the future cancels the execution.
    pub async fn call(&self, name: &FunctionName, request: InvokeRequest) -> Result<Called, Refusal> { unimplemented!() }
    pub async fn invoke(&self, name: &FunctionName, request: InvokeRequest) -> Result<Accepted, Refusal> { unimplemented!() }

    /// The record; `output_so_far` of a running execution comes from its agent.
    pub async fn execution(&self, id: ExecutionId) -> Result<ExecutionRecord, Refusal> { unimplemented!() }
    /// As [`Self::execution`], held until it is terminal or `wait` passed.
    pub async fn wait(&self, id: ExecutionId, wait: Duration) -> Result<ExecutionRecord, Refusal> { unimplemented!() }
    pub async fn executions(&self, filter: ExecutionFilter) -> Result<Vec<ExecutionRecord>, Refusal> { unimplemented!() }
    pub async fn watch(&self, id: ExecutionId, from: WatchFrom) -> Result<BoxStream<'static, WatchEvent>, Refusal> { unimplemented!() }
    pub async fn cancel(&self, id: ExecutionId) -> Result<(), Refusal> { unimplemented!() }
    pub async fn why(&self, id: ExecutionId) -> Result<Why, Refusal> { unimplemented!() }
    /// The whole output of a record, fetched where it lies in the blob seam.
    pub async fn output(&self, record: &ExecutionRecord) -> Result<flux_protocol::OutputLog, Refusal> { unimplemented!() }

    pub async fn dead_letter_counts(&self) -> Result<Vec<(FunctionName, u64)>, Refusal> { unimplemented!() }
    pub async fn dead_letters(&self, name: &FunctionName, after: u64, limit: usize) -> Result<Vec<DeadLetter>, Refusal> { unimplemented!() }
    pub async fn dead_letter(&self, name: &FunctionName, sequence: u64) -> Result<DeadLetter, Refusal> { unimplemented!() }
    /// `sequence`: one letter, or all. Each becomes a new execution that names the old one.
    pub async fn redrive(&self, name: &FunctionName, sequence: Option<u64>, version: Option<u32>, dry_run: bool) -> Result<Vec<Redriven>, Refusal> { unimplemented!() }
    /// One letter, or all; how many.
    pub async fn purge(&self, name: &FunctionName, sequence: Option<u64>) -> Result<u64, Refusal> { unimplemented!() }
}
