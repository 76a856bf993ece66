//! What an invocation costs: processor time of each process, and how long a caller waits.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    cluster::Cluster,
    load,
    meter::{Spent, percentile},
    size::Size,
};

const IDLE: Duration = Duration::from_secs(5);
const CALLS_AT_ONCE: usize = 8;
/// Nobody waited at the queue: a call that finds an agent there takes a millisecond or two. Between it and the 100 ms after
/// which a gateway calls every agent is room for a busy machine.
pub const SLOW: Duration = Duration::from_millis(75);
const ENDED_WITHIN: Duration = Duration::from_secs(120);

/// How executions are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Sync calls, one after the other.
    CallAlone,
    /// Sync calls, eight at once.
    Call,
    /// Accepted over HTTP.
    Accept,
    /// Published to the queue by a producer.
    Publish,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::CallAlone, Self::Call, Self::Accept, Self::Publish];

    pub const fn name(self) -> &'static str {
        match self {
            Self::CallAlone => "sync call, one at a time",
            Self::Call => "sync call, 8 at once",
            Self::Accept => "async over HTTP",
            Self::Publish => "published to the queue",
        }
    }
}

/// Of one way to ask.
#[derive(Debug, Clone)]
pub struct Cost {
    pub way: Way,
    pub count: usize,
    pub took: Duration,
    /// Processor time of each process.
    pub spent: Vec<(&'static str, Duration)>,
    /// Of sync calls.
    pub calls: Option<Called>,
}

/// How sync calls went.
#[derive(Debug, Clone)]
pub struct Called {
    pub p50: Duration,
    pub p95: Duration,
    /// Those that took longer than [`SLOW`].
    pub slow: usize,
    pub refusals: Vec<String>,
}

impl Cost {
    /// Executions that came of it.
    pub fn ended(&self) -> usize {
        self.count - self.calls.as_ref().map_or(0, |calls| calls.refusals.len())
    }

    /// Microseconds of all processes, for each invocation.
    pub fn cpu_us(&self) -> f64 {
        per(self.spent.iter().map(|(_, spent)| *spent).sum(), self.count)
    }

    /// Of one process.
    pub fn cpu_us_of(&self, process: &str) -> f64 {
        per(self.spent.iter().filter(|(name, _)| *name == process).map(|(_, spent)| *spent).sum(), self.count)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a mean")]
fn per(spent: Duration, count: usize) -> f64 {
    spent.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// What an idle second costs, in parts of a core, by process.
#[derive(Debug, Clone)]
pub struct Idle(pub Vec<(&'static str, f64)>);

impl Idle {
    pub fn cores(&self) -> f64 {
        self.0.iter().map(|(_, cores)| cores).sum()
    }
}

pub(crate) async fn idle(cluster: &Cluster) -> Idle {
    let processes = cluster.measured();
    let before = Spent::now(&processes);
    tokio::time::sleep(IDLE).await;
    let spent = Spent::now(&processes).since(&before);
    Idle(spent.into_iter().map(|(name, spent)| (name, spent.as_secs_f64() / IDLE.as_secs_f64())).collect())
}

/// Measures every way to ask, with this many functions in turn.
pub(crate) async fn measure(cluster: &Cluster, size: &Size, functions: usize) -> Vec<Cost> {
    let mut ended = cluster.ended().await.all() + 2 * functions as u64;
    // Everything that is done once is done before.
    let refused = load::call(&cluster.api, functions, functions, 1).await.refusals;
    assert!(refused.is_empty(), "{refused:?}");
    load::publish(&cluster.client, functions, functions).await;
    load::until_ended(cluster, ended, ENDED_WITHIN).await;
    let mut costs = Vec::new();
    for way in Way::ALL {
        let count = match way {
            Way::CallAlone => size.calls / 2,
            Way::Call | Way::Accept => size.calls,
            Way::Publish => size.publishes,
        };
        let cost = measure_way(cluster, way, count, functions, ended).await;
        ended += cost.ended() as u64;
        costs.push(cost);
    }
    costs
}

async fn measure_way(cluster: &Cluster, way: Way, count: usize, functions: usize, ended: u64) -> Cost {
    let processes = cluster.measured();
    let before = Spent::now(&processes);
    let began = Instant::now();
    let calls = match way {
        Way::CallAlone => Some(load::call(&cluster.api, count, functions, 1).await),
        Way::Call => Some(load::call(&cluster.api, count, functions, CALLS_AT_ONCE).await),
        Way::Accept => {
            load::accept(&cluster.api, count, functions, CALLS_AT_ONCE).await;
            None
        }
        Way::Publish => {
            load::publish(&cluster.client, count, functions).await;
            None
        }
    };
    let calls = calls.map(|mut calls| Called {
        p50: percentile(&mut calls.latencies, 0.5),
        p95: percentile(&mut calls.latencies, 0.95),
        slow: calls.latencies.iter().filter(|latency| **latency > SLOW).count(),
        refusals: calls.refusals,
    });
    let mut cost = Cost { way, count, took: Duration::ZERO, spent: Vec::new(), calls };
    load::until_ended(cluster, ended + cost.ended() as u64, ENDED_WITHIN).await;
    cost.spent = Spent::now(&processes).since(&before);
    cost.took = began.elapsed();
    cost
}
