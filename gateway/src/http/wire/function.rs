//! Functions, their versions, and what was published.

use flux_protocol::{AgentId, FunctionSpec, FunctionVersion};
use flux_store::Function;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time;
use crate::core::Published;

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct FunctionBody {
    /// The fields of its `flux.yaml`.
    #[serde(flatten)]
    #[schema(value_type = FunctionConfig)]
    spec: FunctionSpec,
    /// The current version.
    version: u32,
    /// SHA-256 of its code; null while nothing was deployed.
    digest: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
    /// Executions of it that agents run now; only of one function.
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<u32>,
    /// Workers that wait for its next execution; only of one function.
    #[serde(skip_serializing_if = "Option::is_none")]
    warm_workers: Option<u32>,
    /// Oldest first; only of one function.
    #[serde(skip_serializing_if = "Option::is_none")]
    versions: Option<Vec<VersionBody>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VersionBody {
    version: u32,
    digest: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
    current: bool,
}

impl From<FunctionVersion> for FunctionBody {
    fn from(version: FunctionVersion) -> Self {
        Self {
            version: version.version,
            digest: version.digest.map(|digest| digest.to_string()),
            created_at: time(version.created_at),
            spec: version.spec,
            running: None,
            warm_workers: None,
            versions: None,
        }
    }
}

impl FunctionBody {
    pub(in crate::http) fn whole(function: Function, running: u32, warm: u32) -> Self {
        let current = function.current.version;
        let versions = function.versions.into_iter().map(|version| VersionBody {
            version: version.version,
            digest: version.digest.map(|digest| digest.to_string()),
            created_at: time(version.created_at),
            current: version.version == current,
        });
        Self {
            running: Some(running),
            warm_workers: Some(warm),
            versions: Some(versions.collect()),
            ..function.current.into()
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct FunctionsBody {
    pub(in crate::http) functions: Vec<FunctionBody>,
    /// For `?cursor=`; null on the last page.
    pub(in crate::http) next_cursor: Option<String>,
}

/// Answer to a registration.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RegisteredBody {
    #[schema(example = "success")]
    status: &'static str,
    name: String,
    version: u32,
    /// False where the same configuration was current already.
    changed: bool,
    /// Agents online now, all of which know it within moments.
    registered_count: usize,
    total_agents: usize,
    agents: Vec<String>,
    /// Why none of the agents online can run it, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
    /// Secrets that it names and nobody has set: it fails until they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_secrets: Vec<String>,
}

/// Answer to a deployment or rollback.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DeployedBody {
    #[schema(example = "success")]
    status: &'static str,
    name: String,
    version: u32,
    digest: Option<String>,
    /// False where the same archive and configuration were current already.
    changed: bool,
    /// Agents online now, all of which have it within moments.
    deployed_count: usize,
    total_agents: usize,
    agents: Vec<String>,
    /// Why none of the agents online can run it, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
    /// Secrets that it names and nobody has set: it fails until they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_secrets: Vec<String>,
}

fn ids(agents: &[AgentId]) -> Vec<String> {
    agents.iter().map(ToString::to_string).collect()
}

impl From<Published> for RegisteredBody {
    fn from(Published { version, changed, agents, warning, missing_secrets }: Published) -> Self {
        Self {
            status: "success",
            name: version.name().to_string(),
            version: version.version,
            changed,
            registered_count: agents.len(),
            total_agents: agents.len(),
            agents: ids(&agents),
            warning,
            missing_secrets: missing_secrets.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<Published> for DeployedBody {
    fn from(Published { version, changed, agents, warning, missing_secrets }: Published) -> Self {
        Self {
            status: "success",
            name: version.name().to_string(),
            version: version.version,
            digest: version.digest.map(|digest| digest.to_string()),
            changed,
            deployed_count: agents.len(),
            total_agents: agents.len(),
            agents: ids(&agents),
            warning,
            missing_secrets: missing_secrets.iter().map(ToString::to_string).collect(),
        }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct RollbackRequest {
    #[schema(minimum = 1)]
    pub(in crate::http) version: u32,
}

/// Something is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RemovedBody {
    #[schema(example = "removed")]
    pub(in crate::http) status: &'static str,
    pub(in crate::http) name: String,
}

/// A function's `flux.yaml`: for the document alone, since the protocol's own parser reads it.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(in crate::http) struct FunctionConfig {
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub(in crate::http) name: String,
    /// Path of the executable or script inside the archive; for python and node `file.function`, or a file.
    pub(in crate::http) handler: Option<String>,
    /// `native`, `python`, `node` or `bash`.
    #[schema(example = "native", default = "native")]
    pub(in crate::http) runtime: Option<String>,
    #[schema(example = "process", default = "process")]
    pub(in crate::http) isolation: Option<String>,
    /// With `isolation: container`: the image.
    #[schema(example = "python:3.12")]
    pub(in crate::http) image: Option<String>,
    /// With `isolation: container`, in place of a handler: a program of the image and its arguments. No code is needed.
    pub(in crate::http) command: Option<Vec<String>>,
    pub(in crate::http) resources: Option<ResourcesConfig>,
    /// Seconds that one attempt may run; 0 is without limit.
    #[schema(default = 30.0, maximum = 86_400)]
    pub(in crate::http) timeout: Option<f64>,
    /// Executions at once on one agent; 0 or absent is as many as its budget takes.
    pub(in crate::http) max_concurrency: Option<u32>,
    /// `exit` (503 at once) or `wait`.
    #[schema(example = "exit", default = "exit")]
    pub(in crate::http) max_concurrency_behavior: Option<String>,
    /// `exit` (429 at once) or `wait`.
    #[schema(example = "exit", default = "exit")]
    pub(in crate::http) resource_pressure_behavior: Option<String>,
    pub(in crate::http) retry: Option<RetryConfig>,
    /// `host` or `none`.
    #[schema(example = "host", default = "host")]
    pub(in crate::http) network: Option<String>,
    pub(in crate::http) env: Option<std::collections::BTreeMap<String, String>>,
    /// Names of secrets that it finds in its environment, set by `PUT /secrets/{name}`.
    #[schema(example = json!(["DB_PASSWORD"]))]
    pub(in crate::http) secrets: Option<Vec<String>>,
    /// Whether secrets that it prints are hidden.
    #[schema(default = true)]
    pub(in crate::http) redact: Option<bool>,
    /// Time between SIGTERM and SIGKILL, such as `2s`; 0 kills at once.
    #[schema(example = "2s")]
    pub(in crate::http) stop_grace: Option<String>,
    #[schema(default = "default")]
    pub(in crate::http) pool: Option<String>,
    /// How long a worker of a python or node function stays after its last use, such as `1m`; 0 is a fresh process each time.
    #[schema(default = "1m")]
    pub(in crate::http) keep_warm: Option<String>,
    /// Of a python function: each call has a process of its own, forked from a worker that loaded the handler and served nobody.
    #[schema(default = false)]
    pub(in crate::http) fresh: Option<bool>,
}

#[derive(ToSchema)]
#[allow(dead_code)]
pub(in crate::http) struct ResourcesConfig {
    /// Thousandths of a core.
    #[schema(default = 100)]
    pub(in crate::http) cpu: Option<u32>,
    /// MB.
    #[schema(default = 128)]
    pub(in crate::http) memory: Option<u32>,
}

/// How often an asynchronous execution is tried when the function itself fails.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(in crate::http) struct RetryConfig {
    #[schema(default = 1, minimum = 1)]
    pub(in crate::http) max_attempts: Option<u32>,
    /// Wait before the second attempt, such as `1s`; it doubles with each further one.
    #[schema(default = "1s")]
    pub(in crate::http) backoff: Option<String>,
}
