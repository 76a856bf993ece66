//! Going away: what is in flight ends well, nothing new begins, and nobody can hold it up beyond the deadline.

use std::time::{Duration, Instant};

use flux_testkit::eventually;
use tokio::net::TcpStream;

use crate::flux::{Flux, SOON, head};

async fn ended(flux: &Flux) {
    tokio::time::timeout(SOON, flux.tasks.wait()).await.expect("every task ends");
}

#[tokio::test]
async fn a_request_in_flight_is_answered_and_new_connections_are_refused() {
    let flux = Flux::start().await;
    let mut busy = flux.connect().await;
    busy.send(&head("POST", "/execute/slow", "Content-Length: 0\r\n")).await;
    eventually(SOON, "the call to run", async || flux.scripted.running() == 1).await;
    let mut idle = flux.connect().await;
    idle.send(&head("GET", "/health", "")).await;
    idle.until("ok").await;

    flux.shutdown.start_drain();
    eventually(SOON, "new connections to be refused", async || TcpStream::connect(flux.address).await.is_err()).await;
    assert_eq!(idle.rest().await, "", "an idle connection is closed");

    flux.scripted.let_go();
    let answer = busy.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    assert!(answer.contains("let go"), "{answer}");
    ended(&flux).await;
}

#[tokio::test]
async fn what_is_already_on_the_wire_is_answered() {
    let flux = Flux::start().await;
    let mut open = flux.connect().await;
    open.send(&head("GET", "/health", "")).await;
    open.until("ok").await;
    // Connected and sent, but perhaps not accepted yet.
    let mut fresh = flux.connect().await;
    fresh.send(&head("GET", "/health", "")).await;
    flux.shutdown.start_drain();
    open.send(&head("GET", "/health", "")).await;
    for wire in [&mut open, &mut fresh] {
        let answer = wire.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    ended(&flux).await;
}

#[tokio::test]
async fn ready_says_that_it_goes() {
    let flux = Flux::start().await;
    flux.api.get("/ready").await.expect(200);
    let mut open = flux.connect().await;
    open.send(&head("GET", "/health", "")).await;
    open.until("ok").await;
    flux.shutdown.start_drain();
    open.send(&head("GET", "/ready", "")).await;
    let answer = open.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("shutting_down") && answer.contains("\"draining\":true"), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: "), "{answer}");
}

#[tokio::test]
async fn a_slow_client_cannot_hold_it_up() {
    let flux = Flux::start().await;
    // One in the middle of a body, one in the middle of a head, one that runs.
    let mut body = flux.connect().await;
    body.send(&head("POST", "/execute/echo", "Content-Length: 100\r\n")).await;
    let mut half = flux.connect().await;
    half.send("GET /health HT").await;
    let mut runs = flux.connect().await;
    runs.send(&head("POST", "/execute/slow", "Content-Length: 0\r\n")).await;
    eventually(SOON, "the call to run", async || flux.scripted.running() == 1).await;
    flux.shutdown.start_drain();
    let deadline = Instant::now();
    tokio::time::sleep(Duration::from_millis(400)).await;
    flux.shutdown.start_kill();
    ended(&flux).await;
    assert!(deadline.elapsed() < Duration::from_secs(3));
    eventually(SOON, "what ran to be cancelled with its caller", async || flux.scripted.cancelled().await == 1).await;
}
