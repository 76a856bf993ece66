//! What the engine costs over the bare client, in one run against one server of its own:
//! `cargo run --release -p flux-broker --example pipe_bench`.
//!
//! Each figure of ours stands beside the same thing done with `async_nats` alone. Where the machine is busy the rates
//! are noise; the CPU time of client and server for one message is not.
#![allow(clippy::print_stdout)]

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, consumer::pull, stream};
use flux_broker::{
    Broker as _, Message, Queue as _, Signals as _, StatusLog as _,
    nats::{NatsBroker, NatsOptions},
};
use flux_protocol::{FunctionName, PoolName, invocation::Lane, subject::QueueName};
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::NatsServer;
use futures::{StreamExt as _, TryStreamExt as _, stream as streams};

const LATENCY_ROUNDS: usize = 3_000;
const MESSAGES: usize = 50_000;
const IN_FLIGHT: usize = 512;
const BODY: &str = "{\"n\":1,\"text\":\"thirty-two byte\"}";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let server = NatsServer::start().await;
    SERVER.store(server.pid(), std::sync::atomic::Ordering::Relaxed);
    let tasks = Tasks::new(Shutdown::new());
    let ours = NatsBroker::connect(NatsOptions::new(server.url(), "bench"), tasks.clone()).await?;
    ours.provision(&[PoolName::default()]).await?;
    let client = async_nats::connect(server.url()).await?;
    let bare = jetstream::context::ContextBuilder::new().max_ack_inflight(20_000).build(client.clone());

    println!("{:<46} {:>12} {:>12} {:>7}", "", "ours", "bare", "ratio");
    heat(&ours).await?;
    core_requests(&ours, &client, &tasks).await?;
    for (lane, storage) in [(Lane::Call, stream::StorageType::Memory), (Lane::Invoke, stream::StorageType::File)] {
        let queue = QueueName::new(lane, PoolName::default(), FunctionName::parse("bench")?);
        ours.heat(&queue).await?;
        let consumer = bare_consumer(&bare, lane, storage).await?;
        publishes(&ours, &bare, &queue).await?;
        drain(&ours, &consumer, &queue).await?;
        whole_pipe(&ours, &bare, &consumer, &queue).await?;
        delivered(&ours, &bare, &consumer, &queue).await?;
    }
    statuses(&ours).await?;
    ours.close().await;
    Ok(())
}

async fn bare_consumer(
    bare: &jetstream::Context,
    lane: Lane,
    storage: stream::StorageType,
) -> Result<jetstream::consumer::Consumer<pull::Config>> {
    let name = format!("BARE_{}", lane.as_str());
    let config = stream::Config {
        name,
        subjects: vec![format!("bare.{}.*", lane.as_str())],
        retention: stream::RetentionPolicy::WorkQueue,
        storage,
        ..stream::Config::default()
    };
    let consumer = pull::Config {
        durable_name: Some("bench".to_owned()),
        max_ack_pending: 20_000,
        memory_storage: storage == stream::StorageType::Memory,
        ..pull::Config::default()
    };
    Ok(bare.create_stream(config).await?.create_consumer(consumer).await?)
}

fn message() -> Message {
    Message { headers: vec![("Flux-Execution-Id", "exc-0".to_owned())], body: BODY.into(), id: None }
}

fn bare_subject(queue: &QueueName) -> String {
    format!("bare.{}.bench", queue.lane.as_str())
}

async fn p50<F: Future<Output = Result<()>>>(rounds: usize, mut work: impl FnMut() -> F) -> Result<Duration> {
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        work().await?;
        took.push(begun.elapsed());
    }
    took.sort();
    Ok(took[rounds / 2])
}

fn say_latency(what: &str, ours: Duration, bare: Duration) {
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!("{what:<46} {:>9.1} µs {:>9.1} µs {ratio:>7.2}", ours.as_secs_f64() * 1e6, bare.as_secs_f64() * 1e6);
}

/// Wall time, and CPU time of this process and of the server.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    client: Duration,
    server: Duration,
}

struct Meter {
    begun: Instant,
    client: Duration,
    server: Duration,
}

static SERVER: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

/// User and system time, in ticks of 10 ms.
fn cpu_of(process: &str) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn server_cpu() -> Duration {
    cpu_of(&SERVER.load(std::sync::atomic::Ordering::Relaxed).to_string())
}

impl Meter {
    fn start() -> Self {
        Self { begun: Instant::now(), client: cpu_of("self"), server: server_cpu() }
    }

    fn cost(&self) -> Cost {
        Cost {
            wall: self.begun.elapsed(),
            client: cpu_of("self").saturating_sub(self.client),
            server: server_cpu().saturating_sub(self.server),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // counts
fn say_rate(what: &str, count: usize, ours: Cost, bare: Cost) {
    let rate = |cost: Cost| count as f64 / cost.wall.as_secs_f64();
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count as f64;
    println!(
        "{what:<46} {:>10.0}/s {:>10.0}/s {:>7.2}   CPU µs each: client {:>5.1} to {:>5.1}, server {:>5.1} to {:>5.1}",
        rate(ours),
        rate(bare),
        rate(ours) / rate(bare),
        each(ours.client),
        each(bare.client),
        each(ours.server),
        each(bare.server),
    );
}

async fn heat(ours: &Arc<NatsBroker>) -> Result<()> {
    let queue = QueueName::new(Lane::Call, PoolName::default(), FunctionName::parse("heat")?);
    ours.heat(&queue).await?;
    let begun = Instant::now();
    for _ in 0..100_000 {
        ours.heat(&queue).await?;
    }
    println!("{:<46} {:>9.3} µs", "heat() of a hot queue", begun.elapsed().as_secs_f64() * 10.0);
    Ok(())
}

async fn core_requests(ours: &Arc<NatsBroker>, client: &async_nats::Client, tasks: &Tasks) -> Result<()> {
    let mut questions = client.subscribe("bench.ask").await?;
    client.flush().await?;
    let answering = client.clone();
    tasks.spawn("answer", async move {
        while let Some(question) = questions.next().await {
            if let Some(reply) = question.reply {
                let _ = answering.publish(reply, "yes".into()).await;
            }
        }
    });
    let asked = p50(LATENCY_ROUNDS, || async {
        ours.ask("bench.ask".to_owned(), BODY.into(), Duration::from_secs(1)).await?;
        Ok(())
    })
    .await?;
    let bare = p50(LATENCY_ROUNDS, || async {
        client.request("bench.ask", BODY.into()).await?;
        Ok(())
    })
    .await?;
    say_latency("ask (core request), p50", asked, bare);
    Ok(())
}

async fn publishes(ours: &Arc<NatsBroker>, bare: &jetstream::Context, queue: &QueueName) -> Result<()> {
    let lane = queue.lane.as_str();
    let stored = p50(LATENCY_ROUNDS, || async {
        ours.publish(queue, message()).await?;
        Ok(())
    })
    .await?;
    let subject = bare_subject(queue);
    let bare_stored = p50(LATENCY_ROUNDS, || async {
        bare.publish(subject.clone(), BODY.into()).await?.await?;
        Ok(())
    })
    .await?;
    say_latency(&format!("{lane}: publish + ack, p50"), stored, bare_stored);

    let meter = Meter::start();
    streams::iter(0..MESSAGES)
        .map(|_| ours.publish(queue, message()))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let took = meter.cost();
    let meter = Meter::start();
    streams::iter(0..MESSAGES)
        .map(|n| {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("{:032x}", n));
            headers.insert("Flux-Execution-Id", "exc-0");
            let subject = subject.clone();
            async move { bare.publish_with_headers(subject, headers, BODY.into()).await?.await }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    say_rate(&format!("{lane}: publish + ack, {IN_FLIGHT} in flight"), MESSAGES, took, meter.cost());
    Ok(())
}

/// Reads until `count` were acked.
async fn read_ours(ours: &Arc<NatsBroker>, queue: &QueueName, batch: usize, count: usize) -> Result<()> {
    let mut got = 0;
    while got < count {
        let mut pull = ours.pull(queue, batch.min(count - got), Duration::from_secs(5)).await?;
        while let Some(delivery) = pull.next().await {
            delivery?.ack.ack().await?;
            got += 1;
        }
    }
    Ok(())
}

async fn drain(
    ours: &Arc<NatsBroker>,
    consumer: &jetstream::consumer::Consumer<pull::Config>,
    queue: &QueueName,
) -> Result<()> {
    let lane = queue.lane.as_str();
    for (batch, count) in [(1, 3_000), (32, 25_000), (256, 25_000)] {
        let meter = Meter::start();
        read_ours(ours, queue, batch, count).await?;
        let took = meter.cost();
        let meter = Meter::start();
        let mut got = 0;
        while got < count {
            let mut messages = consumer.fetch().max_messages(batch.min(count - got)).messages().await?;
            while let Some(message) = messages.next().await {
                message?.ack().await?;
                got += 1;
            }
        }
        say_rate(&format!("{lane}: pull + ack, batches of {batch} (bare: fetch)"), count, took, meter.cost());
    }
    Ok(())
}

async fn whole_pipe(
    ours: &Arc<NatsBroker>,
    bare: &jetstream::Context,
    consumer: &jetstream::consumer::Consumer<pull::Config>,
    queue: &QueueName,
) -> Result<()> {
    let meter = Meter::start();
    let publishing = streams::iter(0..MESSAGES)
        .map(|_| ours.publish(queue, message()))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) });
    // As an agent with many slots does: the next pull is open before the last is read.
    let reading = futures::future::try_join_all((0..2).map(|_| read_ours(ours, queue, 256, MESSAGES / 2)));
    let (published, read) = tokio::join!(publishing, reading);
    published?;
    read?;
    let took = meter.cost();

    let subject = bare_subject(queue);
    let meter = Meter::start();
    let publishing = streams::iter(0..MESSAGES)
        .map(|n| {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("pipe.{n:032x}"));
            let subject = subject.clone();
            async move { bare.publish_with_headers(subject, headers, BODY.into()).await?.await }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) });
    let reading = async {
        let mut messages = consumer.stream().max_messages_per_batch(512).messages().await?;
        for _ in 0..MESSAGES {
            if let Some(message) = messages.next().await {
                message?.ack().await?;
            }
        }
        Result::Ok(())
    };
    let (published, read) = tokio::join!(publishing, reading);
    published?;
    read?;
    say_rate(&format!("{}: publish, deliver, ack (bare: messages)", queue.lane.as_str()), MESSAGES, took, meter.cost());
    Ok(())
}

async fn delivered(
    ours: &Arc<NatsBroker>,
    bare: &jetstream::Context,
    consumer: &jetstream::consumer::Consumer<pull::Config>,
    queue: &QueueName,
) -> Result<()> {
    // What earlier parts left.
    while ours.depth(queue).await? > 0 {
        read_ours(ours, queue, 256, usize::try_from(ours.depth(queue).await?)?).await?;
        ours.ping().await?;
    }
    let mut pull = ours.pull(queue, LATENCY_ROUNDS, Duration::from_secs(30)).await?;
    let mut took = Vec::new();
    for _ in 0..LATENCY_ROUNDS {
        let begun = Instant::now();
        let (stored, delivery) = tokio::join!(ours.publish(queue, message()), pull.next());
        stored?;
        delivery.ok_or("the pull ended")??.ack.ack().await?;
        took.push(begun.elapsed());
    }
    took.sort();
    let mut messages = consumer.stream().max_messages_per_batch(64).messages().await?;
    while consumer.clone().info().await?.num_pending > 0 {
        messages.next().await.ok_or("ended")??.ack().await?;
    }
    let subject = bare_subject(queue);
    let mut took_bare = Vec::new();
    for _ in 0..LATENCY_ROUNDS {
        let begun = Instant::now();
        let (stored, message) = tokio::join!(
            async { Result::Ok(bare.publish(subject.clone(), BODY.into()).await?.await?) },
            messages.next()
        );
        stored?;
        message.ok_or("ended")??.ack().await?;
        took_bare.push(begun.elapsed());
    }
    took_bare.sort();
    let what = format!("{}: publish, stored and delivered, p50", queue.lane.as_str());
    say_latency(&what, took[LATENCY_ROUNDS / 2], took_bare[LATENCY_ROUNDS / 2]);
    Ok(())
}

async fn statuses(ours: &Arc<NatsBroker>) -> Result<()> {
    let status = |n: usize| -> Result<flux_protocol::StatusMessage> {
        Ok(serde_json::from_value(serde_json::json!({
            "execution_id": flux_protocol::ExecutionId::new(), "function": "bench", "version": 1, "attempt": n + 1,
            "lane": "call", "phase": "running", "queued_at": flux_protocol::time::now(), "at": flux_protocol::time::now(),
        }))?)
    };
    let all: Vec<_> = (0..MESSAGES / 2).map(status).collect::<Result<_>>()?;
    let meter = Meter::start();
    streams::iter(&all)
        .map(|status| ours.publish_status("agent-1", status))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    let published = meter.cost();
    let meter = Meter::start();
    let mut log = ours.statuses(256).await?;
    let mut got = 0;
    while got < all.len() {
        for delivery in log.next().await.ok_or("ended")? {
            delivery.ack.ack().await?;
            got += 1;
        }
    }
    say_rate("statuses: published; read + acked", all.len(), published, meter.cost());
    Ok(())
}
