//! What commands read out of the API's answers. Fields that a table can do without are optional, so that a client
//! works with gateways a little older or newer than itself.

use flux_protocol::Timestamp;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub(crate) struct Execution {
    pub(crate) execution_id: String,
    pub(crate) function_name: String,
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) phase: Option<String>,
    #[serde(default)]
    pub(crate) version: Option<u32>,
    #[serde(default)]
    pub(crate) attempt: Option<u32>,
    #[serde(default)]
    pub(crate) agent_id: Option<String>,
    #[serde(default)]
    pub(crate) output: Option<String>,
    /// Where it is not all UTF-8.
    #[serde(default)]
    pub(crate) output_base64: Option<String>,
    /// Of the middle of the output, over its limit.
    #[serde(default)]
    pub(crate) output_dropped_bytes: u64,
    #[serde(default)]
    pub(crate) error: Option<Failure>,
    #[serde(default)]
    pub(crate) duration_ms: Option<f64>,
    /// `cold` or `warm`.
    #[serde(default)]
    pub(crate) start: Option<String>,
    #[serde(default)]
    pub(crate) init_ms: Option<f64>,
    #[serde(default)]
    pub(crate) queued_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
}

impl Execution {
    /// `queued` and `running` apart, where the gateway says which.
    pub(crate) fn shown_status(&self) -> &str {
        match (self.status.as_str(), self.phase.as_deref()) {
            ("running", Some("queued")) => "queued",
            (status, _) => status,
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.status != "running"
    }
}

/// Why an execution did not succeed: an object, or (older gateways) only the sentence.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Failure {
    Full {
        kind: String,
        message: String,
        /// Of a handler's exception.
        #[serde(default, rename = "type")]
        exception: Option<String>,
        #[serde(default)]
        stack: Option<String>,
    },
    Text(String),
}

impl Failure {
    pub(crate) fn kind(&self) -> &str {
        match self {
            Self::Full { kind, .. } => kind,
            Self::Text(_) => "failed",
        }
    }

    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Full { message, .. } | Self::Text(message) => message,
        }
    }

    /// The message, with an exception's type in front of it.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Full { message, exception: Some(exception), .. } => format!("{exception}: {message}"),
            _ => self.message().to_owned(),
        }
    }

    /// [`Self::told`], or the exception's stack, which says that too.
    pub(crate) fn told_whole(&self) -> String {
        match self {
            Self::Full { stack: Some(stack), .. } => format!("{}\n{}", self.told(), stack.trim_end()),
            _ => self.told(),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Agent {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) address: String,
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) active_count: u32,
    #[serde(default)]
    pub(crate) last_heartbeat: Option<Timestamp>,
    #[serde(default)]
    pub(crate) node_status: Option<Node>,
    #[serde(default)]
    pub(crate) capabilities: Option<Capabilities>,
    #[serde(default)]
    pub(crate) pool: Option<String>,
    #[serde(default)]
    pub(crate) free: Option<Budget>,
    #[serde(default)]
    pub(crate) total: Option<Budget>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Node {
    pub(crate) cpu_percent: f64,
    pub(crate) memory_percent: f64,
    pub(crate) memory_total_mb: u64,
    pub(crate) memory_used_mb: u64,
    pub(crate) uptime_seconds: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Budget {
    pub(crate) tasks: u32,
    pub(crate) cpu_millicores: u32,
    pub(crate) memory_mb: u32,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Capabilities {
    #[serde(default)]
    pub(crate) missing: Vec<MissingLayer>,
    #[serde(default)]
    pub(crate) refuses: Vec<String>,
    #[serde(default)]
    pub(crate) runtimes: Vec<RuntimeGiven>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RuntimeGiven {
    pub(crate) name: String,
    pub(crate) version: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MissingLayer {
    pub(crate) layer: String,
}

/// The answer to a registration, deployment or rollback.
#[derive(Debug, Deserialize)]
pub(crate) struct Published {
    #[serde(default)]
    pub(crate) version: Option<u32>,
    #[serde(default)]
    pub(crate) digest: Option<String>,
    #[serde(default)]
    pub(crate) changed: Option<bool>,
    #[serde(default)]
    pub(crate) total_agents: usize,
    #[serde(default)]
    pub(crate) warning: Option<String>,
    #[serde(default)]
    pub(crate) missing_secrets: Vec<String>,
}

/// The rows of a list, which the API gives as `{"<name>": […], "next_cursor": …}`, or bare for `/agents`.
pub(crate) fn rows<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    let list = answer.as_array().or_else(|| answer.get(name).and_then(Value::as_array));
    list.map_or(&[], Vec::as_slice)
}
