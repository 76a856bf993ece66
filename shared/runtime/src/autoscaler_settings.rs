//! The section `autoscaler` of the configuration file. Fields that the predecessor had keep their names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoscalerSettings {
    /// Names what it buys at providers: who finds a machine with this name believes that it is its own.
    pub cluster: String,
    /// The pool that machines join.
    pub pool: String,
    pub poll_interval_sec: f64,
    /// Percent. Every managed agent at one of the upper thresholds for the whole window: a node more.
    pub cpu_upper_threshold: f64,
    pub cpu_lower_threshold: f64,
    pub mem_upper_threshold: f64,
    pub mem_lower_threshold: f64,
    pub evaluation_window_sec: f64,
    /// Between two nodes that thresholds ask for, or what waits too long.
    pub cooldown_sec: f64,
    /// A backlog is worked off in this time, and what waits longer gets a node more; 0: thresholds alone decide.
    pub target_queue_seconds: f64,
    pub load_window_sec: f64,
    pub panic_window_sec: f64,
    /// A burst is what asks for this many times what is there.
    pub panic_threshold: f64,
    /// Slots beside the load, in times its square root.
    pub headroom: f64,
    /// How long an execution takes, before any was seen to end.
    pub assumed_service_sec: f64,
    /// From a launch to the first execution.
    pub expected_boot_sec: f64,
    pub scale_down_delay_sec: f64,
    /// What comes again within this keeps its nodes between; 0: nothing does.
    pub recurring_gap_sec: f64,
    /// A node that drains is terminated after this, whatever it runs.
    pub drain_timeout_sec: f64,
    /// A node that was not heard of for so long after it was launched is given up; the same of one that fell silent.
    pub boot_timeout_sec: f64,
    pub silent_timeout_sec: f64,
    /// What all nodes may cost in an hour together; no limit unless it is set.
    pub max_cost_per_hour: Option<f64>,
    pub schedules: Vec<ScheduleSettings>,
    pub providers: Vec<ProviderSettings>,
    /// Where it asks for the tokens with which machines join, with an admin key.
    pub gateway_url: String,
    pub api_key: Option<String>,
    /// Of providers that keep files on this machine; `autoscaler` in the data directory unless it is set.
    pub dir: Option<PathBuf>,
}

/// At least so many nodes, from each time of a cron expression (UTC) on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleSettings {
    pub cron: String,
    pub lasts_sec: f64,
    pub min_nodes: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderSettings {
    /// `local`, `aws`, `gcp`.
    pub kind: String,
    pub min_nodes: u32,
    pub max_nodes: u32,
    /// Smallest first.
    pub node_types: Vec<NodeTypeSettings>,
    /// How much of the nodes it is to have, beside the others' shares.
    pub share: f64,
    /// Of the kind `aws`: what `flux_provider_aws::AwsSettings` has, which alone reads it.
    pub aws: Option<serde_json::Value>,
    /// Of the kind `gcp`: the same of `flux_provider_gcp::GcpSettings`.
    pub gcp: Option<serde_json::Value>,
    /// How a machine of a cloud becomes an agent.
    pub ssh: Option<SshSettings>,
}

/// How a bare machine is reached and set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SshSettings {
    /// `root`, or who has sudo without a password.
    pub user: String,
    /// The private key; `ssh/flux-agent.pem` in `certs_dir` unless it is set.
    pub key: Option<PathBuf>,
    pub port: u16,
    pub address: MachineAddress,
    /// The console where the provider shows it, else the first use.
    pub host_key: Option<HostKeySource>,
    /// How long a machine may take until its host key is shown, and from then until it lets us in.
    pub wait_sec: f64,
    /// Each is run as root by `sh -e`, once on each machine.
    pub agent_setup_commands: Vec<String>,
    pub agent: AgentPackage,
    /// The queue as machines reach it; `queue.url` unless it is set.
    pub queue_url: Option<String>,
    /// Values that no output of a machine may show.
    pub secrets: Vec<String>,
}

/// Which of a machine's addresses the autoscaler reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineAddress {
    #[default]
    Public,
    Private,
}

/// Where a machine's host key is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostKeySource {
    Console,
    FirstUse,
}

/// Where the agent's program comes from: one of these.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentPackage {
    /// A `.deb` that the machine fetches, of this SHA-256.
    pub url: Option<String>,
    pub sha256: Option<String>,
    /// A package of a repository that the machine knows.
    pub package: Option<String>,
    /// A `.deb`, or the program, on the autoscaler's own disk.
    pub file: Option<PathBuf>,
    /// It is on the machine's image.
    pub present: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeTypeSettings {
    pub name: String,
    pub price_per_hour: f64,
    /// Executions at once, until an agent on such a machine says how many.
    pub tasks: u32,
}

impl Default for ProviderSettings {
    fn default() -> Self {
        let kind = "local".to_owned();
        Self { kind, min_nodes: 0, max_nodes: 3, node_types: Vec::new(), share: 1.0, aws: None, gcp: None, ssh: None }
    }
}

impl Default for SshSettings {
    fn default() -> Self {
        Self {
            // As on Debian's own images.
            user: "admin".to_owned(),
            key: None,
            port: 22,
            address: MachineAddress::default(),
            host_key: None,
            wait_sec: 300.0,
            agent_setup_commands: Vec::new(),
            agent: AgentPackage::default(),
            queue_url: None,
            secrets: Vec::new(),
        }
    }
}

impl Default for NodeTypeSettings {
    fn default() -> Self {
        Self { name: String::new(), price_per_hour: 0.0, tasks: 16 }
    }
}

impl Default for AutoscalerSettings {
    fn default() -> Self {
        Self {
            cluster: "flux".to_owned(),
            pool: "default".to_owned(),
            poll_interval_sec: 5.0,
            cpu_upper_threshold: 80.0,
            cpu_lower_threshold: 20.0,
            mem_upper_threshold: 80.0,
            mem_lower_threshold: 40.0,
            evaluation_window_sec: 60.0,
            cooldown_sec: 60.0,
            target_queue_seconds: 75.0,
            load_window_sec: 60.0,
            panic_window_sec: 10.0,
            panic_threshold: 1.5,
            headroom: 1.0,
            assumed_service_sec: 1.0,
            expected_boot_sec: 60.0,
            scale_down_delay_sec: 30.0,
            recurring_gap_sec: 360.0,
            drain_timeout_sec: 300.0,
            boot_timeout_sec: 900.0,
            silent_timeout_sec: 60.0,
            max_cost_per_hour: None,
            schedules: Vec::new(),
            providers: Vec::new(),
            gateway_url: "http://127.0.0.1:7227".to_owned(),
            api_key: None,
            dir: None,
        }
    }
}
