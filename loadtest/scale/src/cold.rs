//! The first message that a function ever gets: how long until it runs.

use std::time::Duration;

use async_nats::HeaderMap;
use flux_protocol::{StatusMessage, Timestamp, time};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{cluster::Cluster, meter::percentile, registry::name};

const WITHIN: Duration = Duration::from_secs(20);

/// p50, p95 and the longest.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    pub p50: Duration,
    pub p95: Duration,
    pub most: Duration,
    pub count: usize,
}

impl Latency {
    fn of(mut all: Vec<Duration>) -> Self {
        let most = all.iter().max().copied().unwrap_or_default();
        Self { p50: percentile(&mut all, 0.5), p95: percentile(&mut all, 0.95), most, count: all.len() }
    }
}

/// One latency for each way to ask.
#[derive(Debug, Clone, Copy)]
pub struct Cold {
    /// Asked until answered.
    pub call: Latency,
    /// Accepted over HTTP until its process started.
    pub accepted: Latency,
    /// Published to the queue until its process started.
    pub published: Latency,
}

/// Uses three times `each` functions that nothing was ever asked of, from `first` on.
pub(crate) async fn measure(cluster: &Cluster, first: usize, each: usize) -> Cold {
    let mut call = Vec::new();
    for n in first..first + each {
        let began = Instant::now();
        cluster.api.execute(&name(n), &Value::Null).await.expect(200);
        call.push(began.elapsed());
    }
    let mut accepted = Vec::new();
    for n in first + each..first + 2 * each {
        accepted.push(accept(cluster, n).await);
    }
    let mut published = Vec::new();
    for n in first + 2 * each..first + 3 * each {
        published.push(publish(cluster, n).await);
    }
    Cold { call: Latency::of(call), accepted: Latency::of(accepted), published: Latency::of(published) }
}

async fn accept(cluster: &Cluster, n: usize) -> Duration {
    let began = time::now();
    let id = cluster.api.execute_async(&name(n), &json!({ "n": n })).await;
    let record = cluster.api.outcome(&id, WITHIN).await;
    let started: Timestamp = serde_json::from_value(record["started_at"].clone()).expect("a started execution");
    started.since(began)
}

async fn publish(cluster: &Cluster, n: usize) -> Duration {
    let inbox = cluster.client.new_inbox();
    let mut replies = cluster.client.subscribe(inbox.clone()).await.expect("subscribed");
    let mut headers = HeaderMap::new();
    headers.insert("Flux-Reply-To", inbox.as_str());
    let began = time::now();
    let subject = format!("flux.invoke.{}", name(n));
    cluster.client.publish_with_headers(subject, headers, "{}".into()).await.expect("published");
    cluster.client.flush().await.expect("sent");
    let reply = tokio::time::timeout(WITHIN, replies.next()).await.expect("a reply in time").expect("a reply");
    let status: StatusMessage = serde_json::from_slice(&reply.payload).expect("a status");
    status.started_at.expect("a started execution").since(began)
}
