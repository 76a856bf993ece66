//! Executions: what was asked, what came of it, and the record.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use flux_protocol::{
    ErrorKind, ExecutionError, ExecutionRecord, Outcome, OutputLog, Phase, Usage, execution::Start, time::now,
};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::time;
use crate::core::{Called, Why};

/// What to run a function with. For the document alone: the route reads it without copying the payload.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(in crate::http) struct ExecuteRequest {
    /// Arguments of the process.
    #[schema(example = json!([]))]
    args: Option<Vec<String>>,
    /// Any JSON. The function reads it on stdin exactly as it stands here; absent or null is an empty stdin.
    #[schema(value_type = Option<Object>, example = json!({"n": 1}))]
    payload: Option<serde_json::Value>,
}

/// How a call ended.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CalledBody {
    /// `success`, `failed` or `cancelled`.
    #[schema(example = "success")]
    status: &'static str,
    /// stdout and stderr as they were written, interleaved; what is not UTF-8 becomes U+FFFD.
    output: String,
    /// The same byte for byte, where it is not all UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ExecutionErrorBody>,
    /// From start to end of the process, or of the handler's call.
    duration_ms: f64,
    #[serde(flatten)]
    start: StartBody,
    agent_id: Option<String>,
    execution_id: String,
    /// What the handler returned; of a native function stdout, where it is one JSON document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    result: Option<Box<RawValue>>,
    version: u32,
    attempt: u32,
    /// Bytes of the middle of the output that were over the limit and are gone.
    #[serde(skip_serializing_if = "is_zero")]
    output_dropped_bytes: u64,
}

/// `output` and `output_base64`.
fn text_and_base64(output: &OutputLog) -> (String, Option<String>) {
    let (text, bytes) = output.to_text_and_bytes();
    (text, bytes.map(|bytes| BASE64.encode(bytes)))
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl From<Called> for CalledBody {
    fn from(called: Called) -> Self {
        let Outcome { status, error, output, duration_ms, start, .. } = called.outcome;
        let (text, output_base64) = text_and_base64(&output);
        Self {
            status: status.as_str(),
            result: result(&output),
            output: text,
            output_base64,
            output_dropped_bytes: output.dropped_bytes,
            error: error.map(Into::into),
            duration_ms: duration_ms.as_f64(),
            start: start.into(),
            agent_id: called.agent_id.map(|id| id.to_string()),
            execution_id: called.execution_id.to_string(),
            version: called.version,
            attempt: called.attempt,
        }
    }
}

/// As the function wrote or returned it, so that neither numbers nor the order of keys change on the way.
fn result(output: &OutputLog) -> Option<Box<RawValue>> {
    serde_json::from_slice(&output.result_text()?).ok()
}

/// Why an execution did not succeed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExecutionError)]
pub(in crate::http) struct ExecutionErrorBody {
    #[schema(value_type = ErrorKindName)]
    kind: ErrorKind,
    /// What happened and what to do about it.
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// The limit that was passed: MB for memory, seconds for timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// Of a handler's exception, as its language names it.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "ValueError")]
    error_type: Option<Box<str>>,
    /// Of a handler's exception.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    stack: Option<Box<str>>,
}

/// Whether a process was made for it, or a warm worker served it; both absent where nothing was started.
#[derive(Debug, Default, Serialize, ToSchema)]
struct StartBody {
    /// `cold` or `warm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "warm")]
    start: Option<&'static str>,
    /// From the start of a worker's process until its handler was loaded; 0 where it was warm, and of native functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    init_ms: Option<f64>,
}

impl From<Option<Start>> for StartBody {
    fn from(start: Option<Start>) -> Self {
        Self { start: start.map(|start| start.kind.as_str()), init_ms: start.map(|start| start.init_ms.as_f64()) }
    }
}

#[derive(ToSchema)]
#[schema(as = ErrorKind, rename_all = "snake_case")]
#[allow(dead_code)]
pub(in crate::http) enum ErrorKindName {
    Exit,
    Signal,
    Timeout,
    OutOfMemory,
    Cancelled,
    AgentLost,
    Expired,
    Throttled,
    InvalidFunction,
    Sandbox,
}

impl ExecutionErrorBody {
    /// As one line: `<kind>: <message>`, with an exception's type before its message.
    pub(in crate::http) fn line(&self) -> String {
        let kind = serde_json::to_value(self.kind).unwrap_or_default();
        let exception = self.error_type.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        format!("{}: {exception}{}", kind.as_str().unwrap_or_default(), self.message)
    }
}

impl From<ExecutionError> for ExecutionErrorBody {
    fn from(error: ExecutionError) -> Self {
        let ExecutionError { kind, message, exit_code, signal, limit, error_type, stack } = error;
        Self { kind, message, exit_code, signal, limit, error_type, stack }
    }
}

/// It will run, whatever happens to the gateway that says so.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AcceptedBody {
    #[schema(example = "accepted")]
    pub(in crate::http) status: &'static str,
    pub(in crate::http) execution_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CancelledBody {
    #[schema(example = "cancelled")]
    pub(in crate::http) status: &'static str,
    pub(in crate::http) execution_id: String,
}

/// The record of an execution.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ExecutionBody {
    execution_id: String,
    /// Who ran it last; null while it waits for its first agent.
    agent_id: Option<String>,
    function_name: String,
    /// Null while no agent has chosen it, which happens only to invocations published to the queue directly.
    version: Option<u32>,
    attempt: u32,
    /// `running` until it has its outcome: `success`, `failed` or `cancelled`.
    #[schema(example = "success")]
    status: &'static str,
    /// `queued` (also between two attempts), `running` or `ended`.
    #[schema(example = "ended")]
    phase: &'static str,
    /// Grows while it runs. Lists, and the end of a stream, leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// The same byte for byte, where it is not all UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_base64: Option<String>,
    /// What the handler returned; of a native function stdout, where it is one JSON document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ExecutionErrorBody>,
    /// Of the last attempt's process or handler's call, until now where it runs.
    duration_ms: f64,
    #[serde(flatten)]
    start: StartBody,
    #[schema(format = DateTime)]
    queued_at: String,
    #[schema(format = DateTime)]
    started_at: Option<String>,
    /// When it last changed.
    #[schema(format = DateTime)]
    status_at: String,
    usage: UsageBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    deadline: Option<String>,
    /// The execution whose dead letter this one is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    redrive_of: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    output_dropped_bytes: u64,
    /// What was ignored or noteworthy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// What the last attempt used; zero until it ended.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UsageBody {
    /// CPU time of the whole process tree.
    cpu_ms: f64,
    memory_peak_mb: u64,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self { cpu_ms: usage.cpu_ms.as_f64(), memory_peak_mb: usage.memory_peak_mb }
    }
}

impl ExecutionBody {
    /// With its output.
    pub(in crate::http) fn whole(record: ExecutionRecord, output: &OutputLog) -> Self {
        let (text, output_base64) = text_and_base64(output);
        Self {
            output: Some(text),
            output_base64,
            result: record.is_terminal().then(|| result(output)).flatten(),
            output_dropped_bytes: output.dropped_bytes,
            ..Self::outline(record)
        }
    }

    /// Without output.
    pub(in crate::http) fn outline(record: ExecutionRecord) -> Self {
        let status = record.status_text();
        let phase = match record.phase {
            Phase::Running => "running",
            Phase::Ended if record.is_terminal() => "ended",
            Phase::Queued | Phase::Ended => "queued",
        };
        let running_for = record.started_at.filter(|_| record.phase == Phase::Running).map(|at| now().since(at));
        let start = record.outcome.as_ref().and_then(|outcome| outcome.start);
        // At the end of a stream: what was printed was told before, and this was not.
        let returned =
            record.outcome.as_ref().filter(|_| record.is_terminal()).and_then(|outcome| {
                outcome.output.returned().and_then(|returned| serde_json::from_slice(returned).ok())
            });
        let (error, duration, usage, output_dropped_bytes) = match record.outcome {
            Some(outcome) => (outcome.error, outcome.duration_ms, outcome.usage, outcome.output.dropped_bytes),
            None => (None, running_for.unwrap_or_default().into(), Usage::default(), 0),
        };
        Self {
            execution_id: record.execution_id.to_string(),
            agent_id: record.agent_id.map(|id| id.to_string()),
            function_name: record.function.to_string(),
            version: Some(record.version).filter(|version| *version > 0),
            attempt: record.attempt,
            status,
            phase,
            output: None,
            output_base64: None,
            result: returned,
            error: error.map(Into::into),
            duration_ms: duration.as_f64(),
            start: start.into(),
            queued_at: time(record.queued_at),
            started_at: record.started_at.map(time),
            status_at: time(record.status_at),
            usage: usage.into(),
            deadline: record.deadline.map(time),
            redrive_of: record.redrive_of.map(|id| id.to_string()),
            output_dropped_bytes,
            notes: record.notes,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ExecutionsBody {
    pub(in crate::http) executions: Vec<ExecutionBody>,
    /// For `?cursor=`; null on the last page.
    pub(in crate::http) next_cursor: Option<String>,
}

/// Why an execution is where it is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct WhyBody {
    execution_id: String,
    function_name: String,
    status: &'static str,
    phase: &'static str,
    /// Such as `at_concurrency`, `no_resources`, `no_agents`, `no_capability`, `waiting_for_retry`,
    /// `queued_behind_others`, `running`, `ended`.
    #[schema(example = "at_concurrency")]
    reason: &'static str,
    /// A sentence with numbers and the remedy.
    explanation: String,
    /// Messages of its function that are queued, itself included; null where the queue cannot tell.
    queued: Option<u64>,
}

impl From<Why> for WhyBody {
    fn from(Why { record, reason, explanation, queued }: Why) -> Self {
        let ExecutionBody { execution_id, function_name, status, phase, .. } = ExecutionBody::outline(record);
        Self { execution_id, function_name, status, phase, reason, explanation, queued }
    }
}
