//! The same load on NATS and on RabbitMQ, one after the other in one run: `make bench-queues`.
//!
//! Each has a server of its own (NATS on disk without a sync of each message, RabbitMQ as it is), a `flux-gateway` with SQLite
//! and a `flux-agent`, all on this machine.

#![allow(clippy::print_stdout)] // its figures

use std::time::{Duration, Instant};

use flux_testkit::{
    Api, File, FluxCommand, FluxProcess, NatsServer, RabbitServer, eventually, free_port, passable_dir, start_gateway,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

const KEY: &str = "bench";
const SOON: Duration = Duration::from_secs(120);
const CALLS: usize = 400;
const INVOCATIONS: usize = 1_000;
const AT_ONCE: usize = 16;

struct Figures {
    p50: Duration,
    p99: Duration,
    accepted: f64,
    drained: f64,
}

#[tokio::main]
async fn main() {
    let nats = NatsServer::start().await;
    let on_nats = measure(&nats.url()).await;
    drop(nats);
    let rabbit = RabbitServer::start().await;
    let on_rabbit = measure(&rabbit.url()).await;
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    println!("| | NATS | RabbitMQ | ratio |\n|---|---:|---:|---:|");
    let row =
        |what: &str, nats: f64, rabbit: f64| println!("| {what} | {nats:.1} | {rabbit:.1} | {:.2} |", rabbit / nats);
    row("sync, c=1, p50 ms", ms(on_nats.p50), ms(on_rabbit.p50));
    row("sync, c=1, p99 ms", ms(on_nats.p99), ms(on_rabbit.p99));
    row("async, c=16, accepted/s", on_nats.accepted, on_rabbit.accepted);
    row("async, executed/s, from the first accept to the last outcome", on_nats.drained, on_rabbit.drained);
}

async fn measure(queue: &str) -> Figures {
    let dir = passable_dir("flux-queues-");
    let listen = format!("127.0.0.1:{}", free_port());
    let _gateway = start_gateway(queue, dir.path(), &listen, KEY);
    let api = Api::new(format!("http://{listen}"), KEY);
    api.ready(SOON).await;
    let _agent: FluxProcess = FluxCommand::new("flux-agent")
        .env("FLUX_DISABLE_MTLS", "true")
        .args(["--queue-url", queue, "--id", "bench", "--tasks", "16"])
        .arg("--work-dir")
        .arg(dir.path().join("agent"))
        .spawn();
    eventually(SOON, "the agent", || async {
        api.get("/agents")
            .await
            .json
            .as_array()
            .is_some_and(|agents| agents.iter().any(|one| one["status"] == "online"))
    })
    .await;
    let yaml = "name: echo\nhandler: run.sh\nmax_concurrency: 16\nresources: { cpu: 10, memory: 16 }\n";
    api.deploy("echo", yaml, &[File::executable("run.sh", "#!/bin/sh\necho done\n")]).await;
    eventually(SOON, "a call to succeed", || async { api.execute("echo", &Value::Null).await.status == 200 }).await;

    let mut took = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = Instant::now();
        api.execute("echo", &Value::Null).await.expect(200);
        took.push(begun.elapsed());
    }
    took.sort_unstable();

    let begun = Instant::now();
    let ids: Vec<String> = futures::stream::iter(0..INVOCATIONS)
        .map(|n| {
            let api = &api;
            async move { api.execute_async("echo", &json!({ "n": n })).await }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let accepted = begun.elapsed();
    futures::stream::iter(&ids)
        .for_each_concurrent(AT_ONCE, |id| {
            let api = &api;
            async move {
                assert_eq!(api.outcome(id, SOON).await["status"], "success");
            }
        })
        .await;
    let drained = begun.elapsed();
    let per_second =
        |duration: Duration| f64::from(u32::try_from(INVOCATIONS).unwrap_or(u32::MAX)) / duration.as_secs_f64();
    Figures {
        p50: took[CALLS / 2],
        p99: took[CALLS * 99 / 100],
        accepted: per_second(accepted),
        drained: per_second(drained),
    }
}
