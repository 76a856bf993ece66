//! What is asked of a gateway and what it answers: the words between [`Gateway`](super::Gateway) and HTTP.

use std::time::Duration;

use bytes::Bytes;
use flux_protocol::{
    AgentId, Chunk, Digest, ErrorCode, ExecutionId, ExecutionRecord, FunctionVersion, Outcome, SecretName, Timestamp,
    agent::{AgentStatus, Heartbeat},
    limits,
    trace::TraceParent,
};
use flux_runtime::settings::Durability;

use crate::refusal::Refusal;

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
    /// Why none of them can run it.
    pub warning: Option<String>,
    /// Secrets that it names and nobody has set.
    pub missing_secrets: Vec<SecretName>,
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
    Output {
        attempt: u32,
        chunk: Chunk,
    },
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
    /// The queue stores what it is sent.
    pub stores: bool,
    pub store: bool,
    pub draining: bool,
    pub durability: Durability,
}

impl InvokeRequest {
    /// What every invocation must keep to, sync or not.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.payload.len() > limits::PAYLOAD {
            return Err(Refusal::new(
                ErrorCode::PayloadTooLarge,
                format!("the payload has {} bytes; at most {} are taken", self.payload.len(), limits::PAYLOAD),
            ));
        }
        let bytes: usize = self.args.iter().map(String::len).sum();
        if self.args.len() > limits::ARGS || bytes > limits::ARGS_BYTES {
            return Err(Refusal::new(
                ErrorCode::InvalidRequest,
                format!(
                    "`args` has {} entries and {bytes} bytes; at most {} entries and {} bytes are taken",
                    self.args.len(),
                    limits::ARGS,
                    limits::ARGS_BYTES
                ),
            )
            .with_field("args"));
        }
        if self.args.iter().any(|arg| arg.contains('\0')) {
            return Err(
                Refusal::new(ErrorCode::InvalidRequest, "`args` must not contain a NUL byte").with_field("args")
            );
        }
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(
                Refusal::new(ErrorCode::InvalidRequest, "`timeout` must be more than 0 seconds").with_field("timeout")
            );
        }
        let key_fits = |key: &String| (1..=limits::IDEMPOTENCY_KEY_LENGTH).contains(&key.len());
        if !self.idempotency_key.as_ref().is_none_or(key_fits) {
            return Err(Refusal::new(
                ErrorCode::InvalidRequest,
                format!("`Idempotency-Key` must have 1 to {} characters", limits::IDEMPOTENCY_KEY_LENGTH),
            )
            .with_field("Idempotency-Key"));
        }
        Ok(())
    }

    /// What an idempotency key stands for: the same payload, arguments and version.
    pub(super) fn digest(&self) -> Digest {
        let args = serde_json::Value::from(self.args.clone()).to_string();
        let mut content = Vec::with_capacity(self.payload.len() + args.len() + 16);
        content.extend_from_slice(&(args.len() as u64).to_be_bytes());
        content.extend_from_slice(args.as_bytes());
        content.extend_from_slice(&self.version.unwrap_or(0).to_be_bytes());
        content.extend_from_slice(&self.payload);
        Digest::of(&content)
    }

    pub(super) fn traceparent(&self) -> String {
        self.trace.map_or_else(TraceParent::new, TraceParent::child).to_string()
    }
}
