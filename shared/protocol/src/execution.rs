//! An execution: the record of one invocation, with exactly one terminal outcome.

use serde::{Deserialize, Serialize};

use crate::{
    id::{AgentId, Digest, ExecutionId, FunctionName, PoolName},
    invocation::{Invocation, Lane},
    output::OutputLog,
    time::Timestamp,
};

/// Where an execution is. The order is the rank: a record never goes back within an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Queued,
    Running,
    /// This attempt ended. Terminal for the execution unless the outcome says that it is retried.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    Success,
    Failed,
    Cancelled,
}

impl OutcomeStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why an execution did not succeed; never a bare "internal error".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The process exited with a code other than 0.
    Exit,
    /// The process was ended by a signal that Flux did not send.
    Signal,
    Timeout,
    OutOfMemory,
    Cancelled,
    /// Every attempt was lost with its agent.
    AgentLost,
    /// It was not started before its deadline or greatest age.
    Expired,
    /// No room, and the function's behaviour is not to wait.
    Throttled,
    /// The function is unknown, has no code, or its handler cannot be run.
    InvalidFunction,
    /// The sandbox could not be built.
    Sandbox,
}

impl ErrorKind {
    /// Whether another attempt of an asynchronous execution may help.
    pub const fn is_function_failure(self) -> bool {
        matches!(self, Self::Exit | Self::Signal | Self::Timeout | Self::OutOfMemory | Self::Sandbox)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionError {
    pub kind: ErrorKind,
    /// What happened and what to do about it.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The limit that was passed: MB for memory, seconds for timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// A handler's exception: its type, and its stack.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub error_type: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<Box<str>>,
}

impl ExecutionError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            exit_code: None,
            signal: None,
            limit: None,
            error_type: None,
            stack: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of the whole process tree, in milliseconds.
    pub cpu_ms: f64_ms::Millis,
    /// Greatest memory of the whole tree, in MB.
    pub memory_peak_mb: u64,
}

/// Milliseconds with three decimals, held as microseconds so that they compare.
pub mod f64_ms {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
    pub struct Millis {
        pub micros: u64,
    }

    impl Millis {
        #[allow(clippy::cast_precision_loss)] // 2^52 µs are 142 years
        pub fn as_f64(self) -> f64 {
            self.micros as f64 / 1_000.0
        }
    }

    impl From<std::time::Duration> for Millis {
        fn from(duration: std::time::Duration) -> Self {
            Self { micros: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX) }
        }
    }

    impl Serialize for Millis {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_f64(self.as_f64())
        }
    }

    impl<'de> Deserialize<'de> for Millis {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped just before
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let millis = f64::deserialize(deserializer)?;
            Ok(Self { micros: (millis * 1_000.0).round().clamp(0.0, 9e15) as u64 })
        }
    }
}

/// Whether a process was made for an attempt, or a worker that was there served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    Cold,
    Warm,
}

impl StartKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

/// How an attempt began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub kind: StartKind,
    /// From the start of a worker's process until its handler was loaded; zero for a native function, and where it was warm.
    #[serde(default)]
    pub init_ms: f64_ms::Millis,
}

impl Start {
    /// A process of its own, with nothing to load that Flux would know of.
    pub const COLD: Self = Self { kind: StartKind::Cold, init_ms: f64_ms::Millis { micros: 0 } };
    pub const WARM: Self = Self { kind: StartKind::Warm, init_ms: f64_ms::Millis { micros: 0 } };
}

/// How an attempt ended. A function's failure is data, not an `Err`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub status: OutcomeStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ExecutionError>,
    /// The output, up to [`crate::limits::INLINE_OUTPUT`]; empty when it lies at `output_ref`.
    #[serde(default)]
    pub output: OutputLog,
    /// Where output above the inline limit lies, as [`OutputLog::encode`] wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_ref: Option<BlobRef>,
    /// From start to end of the process, or of the handler's call.
    pub duration_ms: f64_ms::Millis,
    /// Absent where nothing was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    #[serde(default)]
    pub usage: Usage,
    /// The gateway that records this publishes the next attempt: the function failed and has attempts left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub will_retry: bool,
}

impl Outcome {
    /// An outcome with no process behind it.
    pub fn without_process(status: OutcomeStatus, error: ExecutionError) -> Self {
        Self {
            status,
            error: Some(error),
            output: OutputLog::default(),
            output_ref: None,
            duration_ms: f64_ms::Millis::default(),
            start: None,
            usage: Usage::default(),
            will_retry: false,
        }
    }

    /// All but what was printed; how much that is stays.
    #[must_use]
    pub fn without_output(&self) -> Self {
        let dropped_bytes = self.output.dropped_bytes + self.output.len() as u64;
        Self {
            output: OutputLog { chunks: Vec::new(), dropped_bytes },
            error: self.error.clone(),
            output_ref: self.output_ref.clone(),
            ..*self
        }
    }

    pub fn is_terminal(&self) -> bool {
        !self.will_retry
    }
}

/// Content in the blob seam.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// The object's key: `payload-<execution>` or `output-<execution>-<attempt>`.
    pub key: String,
    pub digest: Digest,
    pub size: u64,
}

/// Where the queue holds a message. `epoch` is the stream's creation: another means that its contents were lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QueuePosition {
    pub stream: String,
    pub sequence: u64,
    pub epoch: Timestamp,
}

/// What the store knows of an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionRecord {
    pub execution_id: ExecutionId,
    pub function: FunctionName,
    /// 0 while no agent has chosen it (a direct publish names none).
    pub version: u32,
    pub attempt: u32,
    pub lane: Lane,
    pub pool: PoolName,
    pub phase: Phase,
    pub agent_id: Option<AgentId>,
    pub queued_at: Timestamp,
    pub started_at: Option<Timestamp>,
    /// When `phase` last changed.
    pub status_at: Timestamp,
    pub deadline: Option<Timestamp>,
    pub traceparent: Option<String>,
    /// The attempt's outcome, once `phase` is `ended`; kept while a retry is queued.
    pub outcome: Option<Outcome>,
    /// Place of the terminal status in the order of the status log: the smallest wins. `None` of a terminal record: its log gives
    /// no places, and what was recorded first stays.
    pub terminal_seq: Option<u64>,
    pub position: Option<QueuePosition>,
    /// Kept until the execution is terminal, so that a lost message can be published again.
    pub invocation: Option<Invocation>,
    pub redrive_of: Option<ExecutionId>,
    /// What was ignored or noteworthy, such as a reply subject that agents may not publish to.
    pub notes: Vec<String>,
}

impl ExecutionRecord {
    pub fn is_terminal(&self) -> bool {
        self.phase == Phase::Ended && self.outcome.as_ref().is_some_and(Outcome::is_terminal)
    }

    /// The API's `status`: `running` until terminal.
    pub fn status_text(&self) -> &'static str {
        match (&self.outcome, self.is_terminal()) {
            (Some(outcome), true) => outcome.status.as_str(),
            _ => "running",
        }
    }
}
