//! Three ways to ask for an execution, and waiting until all of them ended.

use std::time::Duration;

use bytes::Bytes;
use flux_testkit::{Api, eventually};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{cluster::Cluster, registry::name};

/// Publishes whose acks are awaited at once.
const PUBLISHES_AT_ONCE: usize = 1_000;
/// So many are in flight that the last of them waits for all others.
const STORED_WITHIN: Duration = Duration::from_secs(60);
const PAYLOAD: &[u8] = br#"{"n":1}"#;

/// Sync calls that were made.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// How long each took that was answered.
    pub(crate) latencies: Vec<Duration>,
    /// What was said to the others.
    pub(crate) refusals: Vec<String>,
}

/// Calls `count` times, over so many functions in turn.
pub(crate) async fn call(api: &Api, count: usize, functions: usize, at_once: usize) -> Calls {
    let payload = json!({ "n": 1 });
    let made = futures::stream::iter(0..count).map(|n| {
        let payload = &payload;
        async move {
            let began = Instant::now();
            let reply = api.execute(&name(n % functions), payload).await;
            if reply.status == 200 { Ok(began.elapsed()) } else { Err(reply.text()) }
        }
    });
    let mut calls = Calls::default();
    let mut made = made.buffer_unordered(at_once);
    while let Some(call) = made.next().await {
        match call {
            Ok(latency) => calls.latencies.push(latency),
            Err(refusal) => calls.refusals.push(refusal),
        }
    }
    calls
}

/// Accepted over HTTP, not waited for.
pub(crate) async fn accept(api: &Api, count: usize, functions: usize, at_once: usize) {
    let body: Value = json!({ "payload": { "n": 1 } });
    futures::stream::iter(0..count)
        .for_each_concurrent(at_once, |n| {
            let body = &body;
            async move {
                api.post(&format!("/execute/{}/async", name(n % functions)), body).await.expect(202);
            }
        })
        .await;
}

/// Published to the queue, each stored when this returns.
pub(crate) async fn publish(client: &async_nats::Client, count: usize, functions: usize) {
    let mut jetstream = async_nats::jetstream::new(client.clone());
    jetstream.set_timeout(STORED_WITHIN);
    let jetstream = &jetstream;
    futures::stream::iter(0..count)
        .map(|n| async move {
            let subject = format!("flux.invoke.{}", name(n % functions));
            let stored = jetstream.publish(subject, Bytes::from_static(PAYLOAD)).await?;
            stored.await.map(|_| ())
        })
        .buffer_unordered(PUBLISHES_AT_ONCE)
        .try_collect::<()>()
        .await
        .expect("the queue takes it");
}

/// Waits until so many ends were recorded since the cluster's start.
pub(crate) async fn until_ended(cluster: &Cluster, ended: u64, deadline: Duration) {
    eventually(deadline, format!("{ended} executions to end"), || async { cluster.ended().await.all() >= ended }).await;
}
