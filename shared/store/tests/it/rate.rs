//! How fast: printed, with a floor far below what a quiet machine does, so that only a defect fails it.

use std::time::Instant;

use flux_protocol::ExecutionId;
use flux_store::StatusUpdate;

use crate::{
    Scratch,
    durability::{accepted, ended},
};

const STATUSES: usize = 20_000;
const BATCH: usize = 256;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout, clippy::cast_precision_loss)] // the figures are what it is for
async fn rates() {
    let scratch = Scratch::new();
    let store = crate::open(&scratch.url).await;

    let batches: Vec<Vec<StatusUpdate>> = (0..STATUSES / BATCH)
        .map(|batch| {
            (0..BATCH)
                .map(|n| StatusUpdate { status: ended(ExecutionId::new()), sequence: Some((batch * BATCH + n) as u64) })
                .collect()
        })
        .collect();
    let count = batches.len() * BATCH;
    let started = Instant::now();
    for batch in batches {
        store.record(batch).await.expect("record");
    }
    let recorded = count as f64 / started.elapsed().as_secs_f64();

    let mut tasks = tokio::task::JoinSet::new();
    let started = Instant::now();
    for _ in 0..64 {
        let store = std::sync::Arc::clone(&store);
        tasks.spawn(async move {
            for _ in 0..STATUSES / 64 {
                store.insert_queued(accepted()).await.expect("insert");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a writer");
    }
    let inserted = (STATUSES / 64 * 64) as f64 / started.elapsed().as_secs_f64();

    println!("record: {recorded:.0} statuses/s in batches of {BATCH}; insert_queued: {inserted:.0}/s from 64 callers");
    assert!(recorded > 1000.0 && inserted > 500.0, "{recorded} {inserted}");
}
