//! Many at once: those who only hold connections do not disturb those who call.

use std::time::Duration;

use flux_testkit::eventually;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::flux::{Flux, SOON, Wire, head};

const READERS: usize = 1000;
const SLOW: usize = 500;

/// Both ends of each connection are this process's.
fn raise_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    assert!(hard > 4 * READERS as u64, "this test needs more open files than the hard limit of {hard}");
}

async fn answers(flux: &Flux) {
    for n in 0..20 {
        let reply = flux.api.post("/execute/echo", &json!({"payload": {"n": n}})).await;
        assert_eq!(reply.expect(200).json["result"]["n"], n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_readers_leave_others_alone() {
    raise_open_files();
    let flux = Flux::start().await;
    let id = flux.api.execute_async("slow", &json!({})).await;
    eventually(SOON, "it runs", async || flux.scripted.running() == 1).await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut wire = flux.connect().await;
        wire.send(&head("GET", &format!("/executions/{id}/stream"), "")).await;
        readers.push(wire);
    }
    for reader in &mut readers {
        let answer = reader.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    answers(&flux).await;
    // Each of them is told the end.
    flux.scripted.let_go();
    for reader in &mut readers {
        reader.until("event: end").await;
    }
    // What half of them leaves behind by vanishing is given back.
    drop(readers);
    eventually(SOON, "their connections to be gone", async || {
        let metrics = flux.api.get("/metrics").await.text();
        let open = metrics.lines().find_map(|line| line.strip_prefix("flux_http_connections ")?.parse::<f64>().ok());
        open.is_some_and(|open| open < 10.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_half_open_connections_leave_others_alone() {
    raise_open_files();
    let flux = Flux::with(|options| options.head_read_timeout = Duration::from_secs(2)).await;
    let mut slow: Vec<Wire> = Vec::new();
    for n in 0..SLOW {
        let mut wire = flux.connect().await;
        // Nothing at all, a head that does not come on, a body that does not, and a caller that says no more.
        match n % 4 {
            0 => {}
            1 => wire.send("GET /health HTTP/1.1\r\nX-Slow: ").await,
            2 => wire.send(&head("POST", "/execute/echo", "Content-Length: 9\r\n")).await,
            _ => {
                wire.send("POST /execute/echo HTTP/1.1\r\n").await;
                tokio::io::AsyncWriteExt::shutdown(&mut wire.0).await.expect("half closed");
            }
        }
        slow.push(wire);
    }
    answers(&flux).await;
    // All but the bodies, whose time is longer, are ended.
    for (n, wire) in slow.iter_mut().enumerate().filter(|(n, _)| n % 4 != 2) {
        let answer = wire.rest().await;
        assert!(n % 4 != 1 || answer.starts_with("HTTP/1.1 408"), "{n}: {answer}");
    }
}
