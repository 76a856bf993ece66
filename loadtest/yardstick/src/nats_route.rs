//! The bare route of a synchronous invocation: HTTP → JetStream → pull → echo → reply → HTTP.
//!
//! Gateway and agent in one process with a connection each, as under `flux up`; no record, no budget, no checks.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::HeaderMap;
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::any};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    listen::{ListenArgs, serve},
    nats::{Queue, Storage},
};

const REPLY_TO: &str = "Reply-To";
const WAIT: Duration = Duration::from_secs(30);
/// Messages that the agent side asks for at a time, and works on at a time.
const PULL_BATCH: usize = 64;
const CONCURRENCY: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The NATS server.
    #[arg(long)]
    url: String,
    /// The certificates of a queue that takes nothing else
    #[arg(long, value_name = "DIR")]
    certs: Option<std::path::PathBuf>,
    #[arg(long, value_enum, default_value = "memory")]
    storage: Storage,
    /// Wait for the publish ack before waiting for the reply, as an asynchronous invocation has to.
    #[arg(long)]
    await_ack: bool,
    #[command(flatten)]
    listen: ListenArgs,
}

struct Gateway {
    queue: Queue,
    inbox: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Bytes>>>,
    await_ack: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = crate::nats::connect(&args.url, args.certs.as_deref()).await?;
    let queue = Queue::make(&client, "route", args.storage).await?;
    let agent = crate::nats::connect(&args.url, args.certs.as_deref()).await?;
    let queue = queue.consumed_by(agent.clone()).await?;
    tokio::spawn(answer(agent, queue.consumer.clone()));

    let inbox = client.new_inbox();
    let replies = client.subscribe(format!("{inbox}.*")).await?;
    let gateway = Arc::new(Gateway {
        queue,
        inbox,
        next: AtomicU64::new(0),
        waiting: Mutex::default(),
        await_ack: args.await_ack,
    });
    tokio::spawn(dispatch(gateway.clone(), replies));
    let router = Router::new().fallback(any(invoke)).with_state(gateway.clone());
    serve(args.listen, router).await?;
    gateway.queue.remove().await
}

async fn invoke(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Result<Bytes, StatusCode> {
    let id = gateway.next.fetch_add(1, Ordering::Relaxed);
    let (reply, replied) = oneshot::channel();
    gateway.waiting.lock().insert(id, reply);
    let mut headers = HeaderMap::new();
    headers.insert(REPLY_TO, format!("{}.{id}", gateway.inbox));
    let published = gateway.queue.jetstream.publish_with_headers(gateway.queue.subject.clone(), headers, body).await;
    let ack = published.map_err(|_| StatusCode::BAD_GATEWAY)?;
    if gateway.await_ack {
        ack.await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    }
    let reply = tokio::time::timeout(WAIT, replied).await.map_err(|_| StatusCode::GATEWAY_TIMEOUT)?;
    reply.map_err(|_| StatusCode::BAD_GATEWAY)
}

/// Replies to those who wait for them.
async fn dispatch(gateway: Arc<Gateway>, mut replies: async_nats::Subscriber) {
    while let Some(message) = replies.next().await {
        let id = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        if let Some(waiter) = id.and_then(|id: u64| gateway.waiting.lock().remove(&id)) {
            let _ = waiter.send(message.payload);
        }
    }
}

/// The agent's side: pull, echo, reply, ack.
async fn answer(client: async_nats::Client, consumer: async_nats::jetstream::consumer::PullConsumer) {
    let slots = Arc::new(Semaphore::new(CONCURRENCY));
    let Ok(mut messages) = consumer.stream().max_messages_per_batch(PULL_BATCH).messages().await else { return };
    while let Some(Ok(message)) = messages.next().await {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let client = client.clone();
        tokio::spawn(async move {
            let reply_to = message.headers.as_ref().and_then(|headers| headers.get(REPLY_TO));
            if let Some(reply_to) = reply_to {
                let _ = client.publish(reply_to.to_string(), message.payload.clone()).await;
            }
            let _ = message.ack().await;
            drop(slot);
        });
    }
}
