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
    /// Of a sync call.
    pub p50: Option<Duration>,
    pub p95: Option<Duration>,
}

impl Cost {
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
    load::call(&cluster.api, functions, functions, 1).await;
    load::publish(&cluster.client, functions, functions).await;
    load::until_ended(cluster, ended, ENDED_WITHIN).await;
    let mut costs = Vec::new();
    for way in Way::ALL {
        let count = match way {
            Way::CallAlone => size.calls / 2,
            Way::Call | Way::Accept => size.calls,
            Way::Publish => size.publishes,
        };
        ended += count as u64;
        costs.push(measure_way(cluster, way, count, functions, ended).await);
    }
    costs
}

async fn measure_way(cluster: &Cluster, way: Way, count: usize, functions: usize, ended: u64) -> Cost {
    let processes = cluster.measured();
    let before = Spent::now(&processes);
    let began = Instant::now();
    let mut latencies = match way {
        Way::CallAlone => load::call(&cluster.api, count, functions, 1).await,
        Way::Call => load::call(&cluster.api, count, functions, CALLS_AT_ONCE).await,
        Way::Accept => {
            load::accept(&cluster.api, count, functions, CALLS_AT_ONCE).await;
            Vec::new()
        }
        Way::Publish => {
            load::publish(&cluster.client, count, functions).await;
            Vec::new()
        }
    };
    load::until_ended(cluster, ended, ENDED_WITHIN).await;
    let spent = Spent::now(&processes).since(&before);
    let is_call = !latencies.is_empty();
    let p50 = is_call.then(|| percentile(&mut latencies, 0.5));
    let p95 = is_call.then(|| percentile(&mut latencies, 0.95));
    Cost { way, count, took: began.elapsed(), spent, p50, p95 }
}
