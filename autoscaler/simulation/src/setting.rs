//! What is simulated apart from the traffic.

use std::time::Duration;

use flux_plan::{NodeType, Policy, ProviderPolicy};

/// Machines, and how often a policy looks.
#[derive(Debug, Clone)]
pub struct Setting {
    pub slots: u32,
    pub price_per_hour: f64,
    /// From the order to the first execution.
    pub boot: Duration,
    pub poll: Duration,
    pub max_nodes: u32,
    /// Of the policies that cannot start from none.
    pub min_nodes: u32,
    /// At the start this much is not counted: every policy begins with nothing.
    pub warm_up: Duration,
    pub policy: Policy,
}

/// The one provider of a simulation, and its one type.
pub(crate) const PROVIDER: &str = "simulated";
pub(crate) const NODE_TYPE: &str = "node";
/// What all traffic calls.
pub(crate) const FUNCTION: &str = "simulated";

impl Default for Setting {
    fn default() -> Self {
        Self::new(8, 0.05, Duration::from_secs(60), 40, 0)
    }
}

impl Setting {
    /// `min_nodes` of the plan under test.
    pub fn new(slots: u32, price_per_hour: f64, boot: Duration, max_nodes: u32, min_nodes: u32) -> Self {
        let node_types = vec![NodeType { name: NODE_TYPE.to_owned(), price_per_hour, slots }];
        let provider = ProviderPolicy { name: PROVIDER.to_owned(), min_nodes, max_nodes, node_types, share: 1.0 };
        Self {
            slots,
            price_per_hour,
            boot,
            poll: Duration::from_secs(5),
            max_nodes,
            min_nodes: min_nodes.max(1),
            warm_up: Duration::from_secs(600),
            policy: Policy::new(vec![provider]),
        }
    }
}
