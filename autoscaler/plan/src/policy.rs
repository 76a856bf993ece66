//! What is configured. The names are those of the configuration file, without the units that it has in them.

use std::time::Duration;

use crate::ScheduledMinimum;

#[derive(Debug, Clone)]
pub struct Policy {
    /// Percent of CPU and memory. Every managed agent at or above one of the upper ones for the whole `evaluation_window`: a
    /// node more. Every one below both lower ones for as long: a node less, if the queue needs it no more.
    pub cpu_upper_threshold: f64,
    pub cpu_lower_threshold: f64,
    pub mem_upper_threshold: f64,
    pub mem_lower_threshold: f64,
    pub evaluation_window: Duration,
    /// Between two nodes that thresholds ask for, or what waits too long. That sees first what a node changes, for as long.
    pub cooldown: Duration,
    /// A backlog is to be worked off in this time. Zero: the queue has no say, thresholds alone decide.
    pub target_queue: Duration,
    /// Load is averaged over this.
    pub load_window: Duration,
    /// The short window of bursts: load as it was in this one counts when it asks for `panic_threshold` times what is there.
    pub panic_window: Duration,
    pub panic_threshold: f64,
    /// Slots above the load: this many times its square root, which is how much a random load of that size varies.
    pub headroom: f64,
    /// How long an execution takes before any was seen to end.
    pub assumed_service: Duration,
    /// From a launch to the first execution.
    pub expected_boot: Duration,
    /// A node goes when none of the wishes of this time needed it.
    pub scale_down_delay: Duration,
    /// What comes again and again, with gaps no longer than this, keeps its nodes between. Zero: nothing does.
    pub recurring_gap: Duration,
    /// A node that drains is terminated after this, whatever it still runs: that goes back to the queue.
    pub drain_timeout: Duration,
    /// A node that was not heard of this long after it was bought is terminated.
    pub boot_timeout: Duration,
    /// The same of one that fell silent.
    pub silent_timeout: Duration,
    /// What all nodes together may cost in an hour.
    pub max_cost_per_hour: Option<f64>,
    pub schedules: Vec<ScheduledMinimum>,
    pub providers: Vec<ProviderPolicy>,
}

/// One place to buy machines.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderPolicy {
    pub name: String,
    pub min_nodes: u32,
    pub max_nodes: u32,
    /// Smallest first.
    pub node_types: Vec<NodeType>,
    /// How much of the nodes it is to have, beside the others' shares.
    pub share: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NodeType {
    pub name: String,
    pub price_per_hour: f64,
    /// Executions at once, until an agent on such a machine says how many.
    pub slots: u32,
}

impl Policy {
    /// The defaults, which simulation was used to find (docs/autoscaler.md).
    pub fn new(providers: Vec<ProviderPolicy>) -> Self {
        Self {
            cpu_upper_threshold: 80.0,
            cpu_lower_threshold: 20.0,
            mem_upper_threshold: 80.0,
            mem_lower_threshold: 40.0,
            evaluation_window: Duration::from_secs(60),
            cooldown: Duration::from_secs(60),
            target_queue: Duration::from_secs(75),
            load_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(10),
            panic_threshold: 1.5,
            headroom: 1.0,
            assumed_service: Duration::from_secs(1),
            expected_boot: Duration::from_secs(60),
            scale_down_delay: Duration::from_secs(30),
            recurring_gap: Duration::from_secs(360),
            drain_timeout: Duration::from_secs(300),
            boot_timeout: Duration::from_secs(900),
            silent_timeout: Duration::from_secs(60),
            max_cost_per_hour: None,
            schedules: Vec::new(),
            providers,
        }
    }

    pub(crate) fn provider(&self, name: &str) -> Option<&ProviderPolicy> {
        self.providers.iter().find(|provider| provider.name == name)
    }

    /// What a machine costs in an hour; nothing where nobody said.
    pub(crate) fn price(&self, provider: &str, node_type: &str) -> f64 {
        self.provider(provider).and_then(|provider| provider.node_type(node_type)).map_or(0.0, |of| of.price_per_hour)
    }

    /// How long what was seen has to be remembered.
    pub(crate) fn remembers(&self) -> Duration {
        [self.evaluation_window, self.load_window, self.panic_window, self.scale_down_delay, self.cooldown]
            .into_iter()
            .fold(Duration::ZERO, Duration::max)
    }
}

impl ProviderPolicy {
    pub(crate) fn node_type(&self, name: &str) -> Option<&NodeType> {
        self.node_types.iter().find(|of| of.name == name)
    }

    pub(crate) fn largest(&self) -> Option<&NodeType> {
        self.node_types.last()
    }
}
