//! What certificates and accounts cost on NATS alone: a sync call's way over the queue (published, pulled, answered, acked), on a
//! server that takes Flux's certificates and on one that takes everybody, in turns:
//! `cargo run --release -p flux-broker --example mtls_bench [ROUNDS] [CALLS]`.
//!
//! No function runs and no gateway admits: what is left is the queue's part, where the cost is largest.
#![allow(clippy::print_stdout)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flux_broker::{
    Broker as _, Message, Queue as _, Signals as _,
    nats::{NatsAuth, NatsBroker, NatsOptions, accounts, server_tls},
};
use flux_pki::{Certs, Credential};
use flux_protocol::{
    AgentId, FunctionName, PoolName, identity::Identity, invocation::Lane, subject, subject::QueueName,
};
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::NatsServer;
use futures::{StreamExt as _, TryStreamExt as _, stream as streams};
use tokio::sync::oneshot;

const CALLERS: usize = 64;
const BODY: &str = "{\"n\":1,\"text\":\"thirty-two byte\"}";
const REPLIES: &str = "flux.reply.gw-bench";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

/// A gateway and an agent on one server, with a connection each.
struct Path {
    gateway: Arc<NatsBroker>,
    queue: QueueName,
    waiting: Waiting,
    _server: NatsServer,
}

impl Path {
    async fn open(server: NatsServer, certs: Option<&Certs>, agent: &AgentId, tasks: &Tasks) -> Result<Self> {
        let connect = async |credential: Option<Arc<Credential>>| -> Result<Arc<NatsBroker>> {
            let mut options = NatsOptions::new(server.url(), "bench");
            if let Some(credential) = credential {
                options.auth = NatsAuth::Certificate(Arc::new(credential.queue_client()?));
                options.own_account = credential.identity() != Identity::Gateway;
                options.answers = Some(match credential.identity().agent() {
                    Some(agent) => subject::answers_of_agent(agent),
                    None => subject::answers_of_gateway(rand::random()),
                });
            }
            Ok(NatsBroker::connect(options, tasks.clone()).await?)
        };
        let gateway = connect(certs.map(Certs::gateway).transpose()?).await?;
        gateway.provision(&[PoolName::default()]).await?;
        let queue = QueueName::new(Lane::Call, PoolName::default(), FunctionName::parse("bench")?);
        gateway.heat(&queue).await?;
        let working = connect(certs.map(|certs| certs.agent(agent)).transpose()?).await?;
        let waiting = Waiting::default();
        let mut replies = gateway.listen(&format!("{REPLIES}.*")).await?;
        let answered = Arc::clone(&waiting);
        tasks.spawn("replies", async move {
            while let Some(reply) = replies.next().await {
                let waiter = answered.lock().ok().and_then(|mut all| all.remove(&reply.subject));
                let _ = waiter.map(|waiter| waiter.send(()));
            }
        });
        // As many pulls as callers: none of them waits for another's answer.
        let (pulled, agent_tasks) = (queue.clone(), tasks.clone());
        tasks.spawn("agent", async move {
            while let Ok(mut pull) = working.pull(&pulled, CALLERS, Duration::from_secs(30)).await {
                while let Some(Ok(delivery)) = pull.next().await {
                    let working = Arc::clone(&working);
                    agent_tasks.spawn("call", async move {
                        if let Some(reply_to) = delivery.header("Flux-Reply-To") {
                            let _ = working.signal(reply_to.to_owned(), BODY.into()).await;
                        }
                        let _ = delivery.ack.ack().await;
                    });
                }
            }
        });
        Ok(Self { gateway, queue, waiting, _server: server })
    }

    async fn call(&self) -> Result<Duration> {
        let reply_to = format!("{REPLIES}.{:032x}", rand::random::<u128>());
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().map_err(|_| "poisoned")?.insert(reply_to.clone(), answer);
        let message = Message { headers: vec![("Flux-Reply-To", reply_to)], body: BODY.into(), id: None };
        let begun = Instant::now();
        self.gateway.publish(&self.queue, message).await?;
        tokio::time::timeout(Duration::from_secs(30), answered).await??;
        Ok(begun.elapsed())
    }

    /// Half of the calls take no longer; one after the other.
    async fn p50(&self, calls: usize) -> Result<Duration> {
        let mut took = Vec::with_capacity(calls);
        for _ in 0..calls {
            took.push(self.call().await?);
        }
        took.sort();
        Ok(took[calls / 2])
    }

    /// How long all of them take, so many at once.
    async fn crowd(&self, calls: usize) -> Result<Duration> {
        let begun = Instant::now();
        let all = streams::iter(0..calls).map(|_| self.call()).buffer_unordered(CALLERS);
        all.try_for_each(|_| async { Ok(()) }).await?;
        Ok(begun.elapsed())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    flux_runtime::install_tls_provider();
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let rounds = numbers.next().transpose()?.unwrap_or(5);
    let calls = numbers.next().transpose()?.unwrap_or(4_000);
    let tasks = Tasks::new(Shutdown::new());
    let (dir, agent) = (tempfile::tempdir()?, AgentId::parse("agent-1")?);
    let certs = Certs::at(dir.path());
    certs.init(&[])?;
    certs.mint_agent(&agent, vec![PoolName::default()])?;
    let grants: Vec<_> = certs.grants()?.iter().cloned().collect();
    let configuration =
        format!("{}{}", server_tls(&certs.queue_files()), accounts(grants, &[PoolName::default()], &[]));
    let secure = NatsServer::start_secure(&configuration, certs.gateway()?.queue_client()?).await;
    let secure = Path::open(secure, Some(&certs), &agent, &tasks).await?;
    let plain = Path::open(NatsServer::start().await, None, &agent, &tasks).await?;
    for path in [&secure, &plain] {
        path.crowd(calls / 4).await?;
    }
    let (mut latency, mut rate) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (p50, p50_plain) = (secure.p50(calls / 4).await?, plain.p50(calls / 4).await?);
        let (crowd, crowd_plain) = (secure.crowd(calls).await?, plain.crowd(calls).await?);
        latency.push(p50.as_secs_f64() / p50_plain.as_secs_f64());
        rate.push(crowd_plain.as_secs_f64() / crowd.as_secs_f64());
        println!(
            "round {round}: p50 {p50:?} to {p50_plain:?}; {calls} calls, {CALLERS} at once, in {crowd:?} to {crowd_plain:?}"
        );
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!("with certificates: p50 × {:.2}, throughput × {:.2} (medians)", median(latency), median(rate));
    Ok(())
}
