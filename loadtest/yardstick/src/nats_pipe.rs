//! JetStream by itself, at the durability that the server and `--storage` give.

use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::{client::RequestErrorKind, jetstream::consumer::pull};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::{
    nats::{Queue, Storage},
    stats::{Samples, rate},
};

/// Publishes in flight: with fewer the publisher waits, with more nothing is gained.
const IN_FLIGHT: usize = 4096;
const PULL_BATCH: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The NATS server.
    #[arg(long)]
    url: String,
    /// The certificates of a queue that takes nothing else
    #[arg(long, value_name = "DIR")]
    certs: Option<std::path::PathBuf>,
    #[arg(long, value_enum, default_value = "file")]
    storage: Storage,
    /// Messages of the pipeline.
    #[arg(long, default_value_t = 50_000)]
    messages: usize,
    /// Messages sent one at a time, for the latencies.
    #[arg(long, default_value_t = 1_000)]
    singles: usize,
    /// Bytes of each.
    #[arg(long, default_value_t = 32)]
    size: usize,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Value> {
    let client = crate::nats::connect(&args.url, args.certs.as_deref()).await?;
    // Who publishes and who is delivered to are two processes in life: here two connections.
    let other = crate::nats::connect(&args.url, args.certs.as_deref()).await?;
    let body = Bytes::from(vec![b'x'; args.size]);
    let core = core_request(&client, other.clone(), &body, args.singles).await?;

    let queue = Queue::make(&client, "pipe", args.storage).await?.consumed_by(other).await?;
    // One stream of deliveries for both: pulls of another would still take messages when it is gone.
    let mut messages = queue.consumer.stream().max_messages_per_batch(PULL_BATCH).messages().await?;
    let (acked, delivered) = one_at_a_time(&queue, &mut messages, &body, args.singles).await?;
    let elapsed = pipeline(&queue, &mut messages, &body, args.messages).await?;
    queue.remove().await?;

    let mut line = json!({
        "what": "nats-pipe",
        "storage": args.storage.name(),
        "messages": args.messages,
        "pipe_per_s": rate(args.messages, elapsed),
    });
    if let Some(map) = line.as_object_mut() {
        map.extend(acked.summary("publish_ack_"));
        map.extend(delivered.summary("publish_delivered_"));
        map.extend(core.summary("core_request_"));
    }
    Ok(line)
}

/// Request and reply without JetStream, between two connections.
async fn core_request(
    client: &async_nats::Client,
    responder: async_nats::Client,
    body: &Bytes,
    count: usize,
) -> anyhow::Result<Samples> {
    let subject = client.new_inbox();
    let mut requests = responder.subscribe(subject.clone()).await?;
    responder.flush().await?;
    let answering = tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            if let Some(reply) = message.reply {
                let _ = responder.publish(reply, message.payload).await;
            }
        }
    });
    let mut samples = Samples::with_capacity(count);
    // A flush does not wait for the server: the other connection's subscription may come after this one's first request.
    let until = Instant::now() + SUBSCRIBED_WITHIN;
    while let Err(error) = client.request(subject.clone(), body.clone()).await {
        if error.kind() != RequestErrorKind::NoResponders || Instant::now() > until {
            return Err(error.into());
        }
    }
    for _ in 0..count {
        let start = Instant::now();
        client.request(subject.clone(), body.clone()).await?;
        samples.record(start.elapsed());
    }
    answering.abort();
    Ok(samples)
}

/// (publish → its ack, publish → delivered), one message in flight at a time.
async fn one_at_a_time(
    queue: &Queue,
    messages: &mut pull::Stream,
    body: &Bytes,
    count: usize,
) -> anyhow::Result<(Samples, Samples)> {
    let (mut acked, mut delivered) = (Samples::with_capacity(count), Samples::with_capacity(count));
    for _ in 0..count {
        let start = Instant::now();
        let ack = queue.jetstream.publish(queue.subject.clone(), body.clone()).await?;
        let stored = async { ack.await.map(|_| start.elapsed()) };
        let arrived = async { (messages.next().await, start.elapsed()) };
        let (stored, (message, at)) = tokio::time::timeout(PATIENCE, async { tokio::join!(stored, arrived) }).await?;
        acked.record(stored?);
        delivered.record(at);
        let message = message.context("the consumer's stream ended")??;
        message.ack().await.map_err(anyhow::Error::from_boxed)?;
    }
    Ok((acked, delivered))
}

/// The time from the first publish until the last message was delivered and its ack sent.
async fn pipeline(queue: &Queue, messages: &mut pull::Stream, body: &Bytes, count: usize) -> anyhow::Result<Duration> {
    let (jetstream, subject, body) = (queue.jetstream.clone(), queue.subject.clone(), body.clone());
    let start = Instant::now();
    // A task of its own, as a producer is a program of its own.
    let publishing = tokio::spawn(async move {
        let publishes = futures::stream::iter(0..count).map(|_| {
            let (jetstream, subject, body) = (jetstream.clone(), subject.clone(), body.clone());
            async move { jetstream.publish(subject, body).await?.await.map(|_| ()) }
        });
        let mut acks = publishes.buffered(IN_FLIGHT);
        while let Some(ack) = acks.next().await {
            ack?;
        }
        Ok::<_, async_nats::jetstream::context::PublishError>(())
    });
    let consuming = async {
        for _ in 0..count {
            let message =
                tokio::time::timeout(PATIENCE, messages.next()).await?.context("the consumer's stream ended")??;
            message.ack().await.map_err(anyhow::Error::from_boxed)?;
        }
        anyhow::Ok(())
    };
    // Whichever fails first says why.
    tokio::try_join!(async { anyhow::Ok(publishing.await??) }, consuming)?;
    Ok(start.elapsed())
}
