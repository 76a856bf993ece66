//! A function's configuration as its author writes it (DESIGN §6), and a deployed version of it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    id::{Digest, FunctionName, PoolName, SecretName},
    time::Timestamp,
};

mod handler;
mod image;
mod packages;
mod parse;
mod text;

pub use handler::Entry;
pub use parse::{SpecError, parse_json, parse_yaml};
pub use text::{format_duration, parse_duration};

/// What a function is and what it may use. Made by [`parse_yaml`] or [`parse_json`], which check it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    pub name: FunctionName,
    /// `native`: path of the executable inside the archive. `bash`: path of the script. `python`, `node`: `file.function`, or a
    /// file; see [`FunctionSpec::entry`]. `lambda`: what `_HANDLER` says. Empty where a `command` takes its place.
    pub handler: String,
    #[serde(default)]
    pub runtime: Runtime,
    #[serde(default)]
    pub isolation: Isolation,
    /// Of `isolation: container`, as Docker names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A program of the image, and its arguments: the image is the function, and needs no code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(default)]
    pub resources: Resources,
    /// Seconds that one attempt may run; `None` is without limit.
    #[serde(default, with = "text::seconds", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Executions at once on one agent; `None` is as many as the budget takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    #[serde(default)]
    pub max_concurrency_behavior: PressureBehavior,
    #[serde(default)]
    pub resource_pressure_behavior: PressureBehavior,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Names of secrets that it finds in its environment. Their values are never in here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// Whether secrets that it prints are hidden.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub redact: bool,
    /// Time between SIGTERM and SIGKILL at a cancel or timeout; zero kills at once.
    #[serde(default, with = "text::duration", skip_serializing_if = "Duration::is_zero")]
    pub stop_grace: Duration,
    #[serde(default, skip_serializing_if = "PoolName::is_default")]
    pub pool: PoolName,
    /// How long a worker stays after its last use; zero is a fresh process each time.
    #[serde(default, with = "text::duration", skip_serializing_if = "Duration::is_zero")]
    pub keep_warm: Duration,
    /// Of `python`: each invocation is served by a fork of its worker, which nobody used before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

const fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks so
const fn is_yes(redact: &bool) -> bool {
    *redact
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// Any executable, a fresh process each time.
    #[default]
    Native,
    /// A function of a Python module, in a worker.
    Python,
    /// A function of a Node module, in a worker.
    Node,
    /// A script that bash reads, a fresh process each time.
    Bash,
    /// The `bootstrap` of a package made for AWS Lambda, as a worker.
    Lambda,
}

impl Runtime {
    pub const ALL: [Self; 5] = [Self::Native, Self::Python, Self::Node, Self::Bash, Self::Lambda];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Python => "python",
            Self::Node => "node",
            Self::Bash => "bash",
            Self::Lambda => "lambda",
        }
    }

    /// Whether a worker serves it, invocation after invocation, and not a process of its own for each.
    pub const fn has_workers(self) -> bool {
        matches!(self, Self::Python | Self::Node | Self::Lambda)
    }

    /// Whether the archive's file is what the kernel executes, so that it must be executable.
    pub const fn executes_file(self) -> bool {
        matches!(self, Self::Native | Self::Lambda)
    }
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    #[default]
    Process,
    /// A Docker container of the function's `image`.
    Container,
    /// A virtual machine with a kernel of its own, under Firecracker.
    Microvm,
}

impl Isolation {
    /// As in `flux.yaml`, and as agents name what they can give.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Microvm => "microvm",
        }
    }
}

/// What an execution takes of a node's budget, and the most that it can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub cpu: u32,
    /// Memory in MB (1024 × 1024 bytes).
    pub memory: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu: 100, memory: 128 }
    }
}

impl Resources {
    pub const fn memory_bytes(self) -> u64 {
        self.memory as u64 * 1024 * 1024
    }
}

/// What a call meets when there is no room at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PressureBehavior {
    /// It is refused: 503 at the function's concurrency, 429 for want of resources.
    #[default]
    Exit,
    /// It waits in the queue until its deadline.
    Wait,
}

/// How often an asynchronous execution is tried when the function itself fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    pub max_attempts: u32,
    /// Wait before the second attempt; it doubles with each further one, ± 25 %.
    #[serde(with = "text::duration")]
    pub backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 1, backoff: Duration::from_secs(1) }
    }
}

impl Retry {
    /// The wait before attempt `next` (2 or more): at most [`limits::RETRY_BACKOFF`](crate::limits::RETRY_BACKOFF),
    /// before the jitter. `jitter` is between 0 and 1.
    pub fn delay_before(self, next: u32, jitter: f64) -> Duration {
        let doublings = next.saturating_sub(2).min(16);
        let base = self.backoff.saturating_mul(1 << doublings).min(crate::limits::RETRY_BACKOFF);
        let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.5 };
        base.mul_f64(0.75 + 0.5 * jitter)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    #[default]
    Host,
    None,
}

impl Network {
    /// As in `flux.yaml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Network::Host => "host",
            Network::None => "none",
        }
    }
}

/// An immutable deployment: code by digest, and configuration. What agents sync from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionVersion {
    /// 1, 2, 3 … per function.
    pub version: u32,
    /// Absent while a function is registered and nothing was deployed to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    pub spec: FunctionSpec,
    pub created_at: Timestamp,
}

impl FunctionVersion {
    pub fn name(&self) -> &FunctionName {
        &self.spec.name
    }

    /// Whether there is something to run: code, or an image that needs none.
    pub fn is_runnable(&self) -> bool {
        self.digest.is_some() || !self.spec.command.is_empty()
    }
}
