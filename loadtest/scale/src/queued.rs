//! Much that is queued while no agent takes anything, and then drained to nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    cluster::{Cluster, Ended},
    load,
    meter::{Sampler, Series, Spent},
    size::Size,
};

const ACCEPTS_AT_ONCE: usize = 16;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longer than this without an end, and it will not go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// After the last end, for memory to settle.
const SETTLE: Duration = Duration::from_secs(5);

/// What was queued and ended.
#[derive(Debug, Clone)]
pub struct Drained {
    pub queued: u64,
    pub publishing: Duration,
    pub accepting: Duration,
    pub draining: Duration,
    /// Recorded ends of what was queued: one each, or something is wrong.
    pub ended: Ended,
    /// Executions that simulated agents started; the real one started the others.
    pub simulated_starts: u64,
    /// Processor time while it was drained.
    pub spent: Vec<(&'static str, Duration)>,
    pub store_bytes: u64,
    pub memory: Series,
    /// The sample after the first hundredth was executed, and the last one.
    pub first_sample: usize,
    pub last_sample: usize,
}

impl Drained {
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    pub fn per_second(&self) -> f64 {
        self.queued as f64 / self.draining.as_secs_f64()
    }
}

/// Queues all of it, with agents drained, and lets them have it.
pub(crate) async fn run(cluster: &Cluster, size: &Size, agents: usize, sampler: &Sampler) -> Drained {
    let (before, starts_before) = (cluster.ended().await, cluster.simulated_starts().await);
    cluster.drain_agents(agents).await;
    sampler.mark("publishing");
    let began = Instant::now();
    load::publish(&cluster.client, size.invocations - size.over_http, size.hot).await;
    let publishing = began.elapsed();
    sampler.mark("accepting");
    let began = Instant::now();
    load::accept(&cluster.api, size.over_http, size.hot, ACCEPTS_AT_ONCE).await;
    let accepting = began.elapsed();
    let queued = size.invocations as u64;

    sampler.mark("draining");
    let processes = cluster.measured();
    let spent_before = Spent::now(&processes);
    let began = Instant::now();
    cluster.undrain_agents().await;
    let mut first_sample = None;
    let (mut last, mut moved) = (0, Instant::now());
    while last < queued {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = cluster.ended().await.all() - before.all();
        if now > last {
            (last, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed() < PATIENCE, "{last} of {queued} ended, and no more for {PATIENCE:?}");
        if last >= queued / 100 {
            first_sample.get_or_insert_with(|| sampler.series().samples.len().saturating_sub(1));
        }
    }
    let draining = moved - began;
    let spent = Spent::now(&processes).since(&spent_before);
    sampler.mark("drained");
    tokio::time::sleep(SETTLE).await;
    let after = cluster.ended().await;
    let memory = sampler.series();
    Drained {
        queued,
        publishing,
        accepting,
        draining,
        ended: Ended { successes: after.successes - before.successes, others: after.others - before.others },
        simulated_starts: cluster.simulated_starts().await - starts_before,
        spent,
        store_bytes: cluster.store_bytes(),
        first_sample: first_sample.unwrap_or(0),
        last_sample: memory.samples.len().saturating_sub(1),
        memory,
    }
}
