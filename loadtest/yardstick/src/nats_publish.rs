//! A producer that puts messages straight onto a queue, and waits until whoever works on it has acked the last.

use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::stats::{rate, seconds};

/// As the bare pipe has.
const IN_FLIGHT: usize = 4096;
/// Between two looks at what is left.
const POLL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The NATS server.
    #[arg(long)]
    url: String,
    /// The certificates of a queue that takes nothing else
    #[arg(long, value_name = "DIR")]
    certs: Option<std::path::PathBuf>,
    /// Where to publish.
    #[arg(long)]
    subject: String,
    /// The work-queue stream that keeps it: empty when all is done.
    #[arg(long)]
    stream: String,
    #[arg(long)]
    messages: usize,
    #[arg(long)]
    body: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Value> {
    let client = crate::nats::connect(&args.url, args.certs.as_deref()).await?;
    let jetstream = async_nats::jetstream::context::ContextBuilder::new()
        .max_ack_inflight(IN_FLIGHT)
        .timeout(PATIENCE)
        .build(client);
    let mut stream = jetstream.get_stream(&args.stream).await?;
    let body = Bytes::from(args.body);
    let start = Instant::now();
    let mut acks = futures::stream::iter(0..args.messages)
        .map(|_| {
            let (jetstream, subject, body) = (&jetstream, args.subject.clone(), body.clone());
            async move { jetstream.publish(subject, body).await?.await.map(|_| ()) }
        })
        .buffered(IN_FLIGHT);
    while let Some(ack) = acks.next().await {
        ack?;
    }
    let published = start.elapsed();
    while stream.info().await?.state.messages > 0 {
        if start.elapsed() > PATIENCE {
            bail!("{} messages are left after {PATIENCE:?}", stream.cached_info().state.messages);
        }
        tokio::time::sleep(POLL).await;
    }
    let done = start.elapsed();
    Ok(json!({
        "what": "nats-publish",
        "messages": args.messages,
        "seconds": seconds(done),
        "published_per_s": rate(args.messages, published),
        "executed_per_s": rate(args.messages, done),
    }))
}
