//! What it costs to judge a key, on one thread, with few keys and with many: `cargo run --release -p flux-gateway --example
//! auth_bench`. The reach is 5 µs a request.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program that prints what it measured

use std::{hint::black_box, sync::Arc, time::Instant};

use flux_artifacts::{BlobArtifacts, Filesystem, Tiered};
use flux_broker::{
    Broker,
    memory::{MemoryBroker, MemoryLimits},
};
use flux_gateway::core::{Gateway, GatewayParts, NewKey};
use flux_protocol::Scopes;
use flux_runtime::{
    Shutdown, Tasks,
    settings::{Durability, GatewaySettings},
};
use flux_store::Tuning;

const CHECKS: u32 = 200_000;

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new(MemoryLimits::default()));
    let blobs = BlobArtifacts::new(Arc::clone(&broker));
    let gateway = Gateway::start(GatewayParts {
        store: flux_store::open("sqlite::memory:", &Tuning::default()).await.unwrap(),
        artifacts: Arc::new(Tiered::new(Arc::new(Filesystem::open(dir.path()).unwrap()), Arc::new(blobs))),
        broker,
        settings: GatewaySettings::default(),
        history: std::time::Duration::from_secs(3600),
        pools: Vec::new(),
        durability: Durability::default(),
        certs: None,
        queue_url: String::new(),
        tasks: Tasks::new(Shutdown::new()),
    })
    .await
    .unwrap();
    let new = |rate| NewKey {
        name: "bench".to_owned(),
        scopes: Scopes::admin(),
        expires_at: None,
        requests_per_second: rate,
    };
    let (_, plain) = gateway.create_key(new(None), "bench".to_owned()).await.unwrap();
    let (_, rated) = gateway.create_key(new(Some(1_000_000)), "bench".to_owned()).await.unwrap();
    let wrong = format!("{}x", &plain[..plain.len() - 1]);
    let measure = |what: &str| {
        for (name, text, good) in
            [("a key", &plain, true), ("a key with a rate", &rated, true), ("a wrong key", &wrong, false)]
        {
            let began = Instant::now();
            for _ in 0..CHECKS {
                let known = gateway.check_key(black_box(text));
                assert_eq!(known.is_ok(), good);
                if let Ok(known) = known {
                    let _ = black_box(known.rate.take());
                }
            }
            println!("{what}: {name}: {} ns", began.elapsed().as_nanos() / u128::from(CHECKS));
        }
    };
    measure("2 keys");
    for _ in 0..1000 {
        gateway.create_key(new(None), "bench".to_owned()).await.unwrap();
    }
    measure("1002 keys");
}
