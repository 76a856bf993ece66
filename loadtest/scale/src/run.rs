//! The two cases that are compared, and what was found of each.

use std::{path::Path, time::Duration};

use crate::{
    cluster::Cluster,
    cold::{self, Cold},
    cost::{self, Cost, Idle},
    meter::{Measured, Sampler, memory_of},
    queued::{self, Drained},
    registry,
    size::Size,
};

/// Few functions, one agent.
#[derive(Debug, Clone)]
pub struct SmallCase {
    pub size: Size,
    pub idle: Idle,
    pub costs: Vec<Cost>,
    pub cold: Cold,
}

/// Many of everything.
#[derive(Debug, Clone)]
pub struct LargeCase {
    pub size: Size,
    pub registering: Duration,
    /// KiB before anything was registered, and after.
    pub registered_memory: Vec<(&'static str, u64, u64)>,
    pub idle: Idle,
    /// With as many functions in turn as in the small case.
    pub costs: Vec<Cost>,
    /// With all hot functions in turn.
    pub hot_costs: Vec<Cost>,
    pub cold: Cold,
    /// A call to a function that does not exist.
    pub unknown: Duration,
    pub drained: Drained,
}

/// What [`costs`] measured.
#[derive(Debug, Clone)]
pub struct CostCase {
    pub costs: Vec<Cost>,
    /// With all hot functions in turn, where they are more.
    pub hot_costs: Vec<Cost>,
    pub idle: Idle,
    pub cold: Cold,
}

/// Both.
#[derive(Debug, Clone)]
pub struct Figures {
    pub small: SmallCase,
    pub large: LargeCase,
}

/// `program` is this package's own, which simulated agents are a process of.
pub async fn small(size: Size, program: &Path) -> SmallCase {
    say("the small case");
    let cluster = Cluster::start(&size, program).await;
    registry::register(&cluster.api, 0..size.functions).await;
    let costs = cost::measure(&cluster, &size, size.busy).await;
    let idle = cost::idle(&cluster).await;
    // The cost was measured with few functions; these are only there to be cold.
    registry::register(&cluster.api, size.functions..size.functions + 3 * size.cold).await;
    let cold = cold::measure(&cluster, size.functions, size.cold).await;
    SmallCase { size, idle, costs, cold }
}

pub async fn large(size: Size, program: &Path) -> LargeCase {
    say("the large case: starting agents and registering functions");
    let mut cluster = Cluster::start(&size, program).await;
    let before = memory(&cluster.measured());
    let registering = registry::register(&cluster.api, 0..size.functions).await;
    let after = memory(&cluster.measured());
    let registered_memory = before.iter().zip(&after).map(|((name, was), (_, is))| (*name, *was, *is)).collect();
    say("what an invocation costs");
    let costs = cost::measure(&cluster, &size, size.busy).await;
    let hot_costs = cost::measure(&cluster, &size, size.hot).await;
    let idle = cost::idle(&cluster).await;
    say("the first message of cold functions");
    let cold = cold::measure(&cluster, size.hot, size.cold).await;
    let unknown = unknown(&cluster).await;
    cluster.start_real(size.agents).await;
    say("queueing, and draining");
    let sampler = Sampler::start(cluster.measured());
    let drained = queued::run(&cluster, &size, size.agents + 1, &sampler).await;
    LargeCase { size, registering, registered_memory, idle, costs, hot_costs, cold, unknown, drained }
}

/// A part of a case, in a minute or two: what invocations cost, the first message of cold functions, and no queue.
pub async fn costs(size: Size, program: &Path) -> CostCase {
    let cluster = Cluster::start(&size, program).await;
    registry::register(&cluster.api, 0..size.hot + 3 * size.cold).await;
    let busy = cost::measure(&cluster, &size, size.busy).await;
    let hot = if size.hot > size.busy { cost::measure(&cluster, &size, size.hot).await } else { Vec::new() };
    let idle = cost::idle(&cluster).await;
    let cold = cold::measure(&cluster, size.hot, size.cold).await;
    CostCase { costs: busy, hot_costs: hot, idle, cold }
}

fn memory(processes: &[Measured]) -> Vec<(&'static str, u64)> {
    processes.iter().map(|process| (process.name, memory_of(process.pid))).collect()
}

async fn unknown(cluster: &Cluster) -> Duration {
    let began = tokio::time::Instant::now();
    cluster.api.execute("no-such-function", &serde_json::Value::Null).await.expect(404);
    began.elapsed()
}

/// What goes on: a full run takes minutes.
#[allow(clippy::print_stderr, reason = "for whoever waits for it")]
fn say(what: &str) {
    eprintln!("flux-scale: {what}");
}
