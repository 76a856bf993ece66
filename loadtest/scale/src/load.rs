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
const PAYLOAD: &[u8] = br#"{"n":1}"#;

/// Calls `count` times, over so many functions in turn; how long each took.
pub(crate) async fn call(api: &Api, count: usize, functions: usize, at_once: usize) -> Vec<Duration> {
    let payload = json!({ "n": 1 });
    futures::stream::iter(0..count)
        .map(|n| {
            let payload = &payload;
            async move {
                let began = Instant::now();
                api.execute(&name(n % functions), payload).await.expect(200);
                began.elapsed()
            }
        })
        .buffer_unordered(at_once)
        .collect()
        .await
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
    let jetstream = async_nats::jetstream::new(client.clone());
    futures::stream::iter(0..count)
        .map(|n| {
            let jetstream = &jetstream;
            async move {
                let subject = format!("flux.invoke.{}", name(n % functions));
                let stored = jetstream.publish(subject, Bytes::from_static(PAYLOAD)).await?;
                stored.await.map(|_| ())
            }
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
