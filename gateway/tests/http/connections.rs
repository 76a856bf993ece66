//! Connections that misbehave, and those that end early.

use std::time::{Duration, Instant};

use flux_testkit::eventually;

use crate::flux::{Flux, SOON, head};

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let flux = Flux::with(|options| options.head_read_timeout = Duration::from_millis(200)).await;
    let started = Instant::now();
    // Nothing; half a word that may become HTTP/2; half a head.
    for (text, told) in [("", ""), ("PRI * HT", ""), ("GET /health HTTP/1.1\r\nHost:", "HTTP/1.1 408")] {
        let mut wire = flux.connect().await;
        wire.send(text).await;
        let answer = wire.rest().await;
        assert!(if told.is_empty() { answer.is_empty() } else { answer.starts_with(told) }, "{text:?}: {answer}");
        if !told.is_empty() {
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains("connection: close") && head.contains("x-request-id: "), "{head}");
            let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body["error"]["code"], "request_timeout");
        }
    }
    assert!(started.elapsed() >= Duration::from_millis(600));
    // Idle after an answer: closed, and nothing that a later request could take for its answer.
    let mut wire = flux.connect().await;
    wire.send(&head("GET", "/health", "")).await;
    wire.until("{\"status\":\"ok\"}").await;
    assert_eq!(wire.rest().await, "");
}

#[tokio::test]
async fn a_head_that_comes_drop_by_drop_is_cut_off() {
    let flux = Flux::with(|options| options.head_read_timeout = Duration::from_millis(300)).await;
    let mut wire = flux.connect().await;
    wire.send("GET /health HTTP/1.1\r\n").await;
    let dripping = async {
        for n in 0.. {
            use tokio::io::AsyncWriteExt as _;
            let line = format!("X-{n}: y\r\n");
            if wire.0.write_all(line.as_bytes()).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, dripping).await.expect("the gateway closes it");
}

#[tokio::test]
async fn a_body_that_stops_coming_is_an_error() {
    let flux = Flux::with(|options| options.body_stall_timeout = Duration::from_millis(200)).await;
    let mut wire = flux.connect().await;
    wire.send(&head("POST", "/execute/echo", "Content-Length: 100\r\nContent-Type: text/plain\r\n")).await;
    wire.send("half").await;
    let answer = wire.until("request_timeout").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_body_that_trickles_is_an_error() {
    let flux = Flux::with(|options| options.body_stall_timeout = Duration::from_millis(400)).await;
    let mut wire = flux.connect().await;
    wire.send(&head("POST", "/execute/echo", "Content-Length: 100000\r\nContent-Type: text/plain\r\n")).await;
    // Never still for as long as a pause may be, and far below the pace.
    let trickle = async {
        loop {
            use tokio::io::AsyncWriteExt as _;
            let _ = wire.0.write_all(b"x").await;
            let answered = tokio::time::timeout(Duration::from_millis(50), wire.0.readable()).await;
            if answered.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, trickle).await.expect("an answer");
    let answer = wire.until("request_timeout").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let flux = Flux::start().await;
    let mut wire = flux.connect().await;
    let headers: String = (0..101).map(|n| format!("X-{n}: y\r\n")).collect();
    wire.send(&head("GET", "/health", &headers)).await;
    let answer = wire.rest().await;
    assert!(answer.starts_with("HTTP/1.1 431") && answer.contains("\"code\":\"head_too_large\""), "{answer}");
    assert!(answer.contains("\r\nx-request-id: req-"), "{answer}");
    let mut wire = flux.connect().await;
    wire.send(&head("GET", "/health", &format!("X-Large: {}\r\n", "y".repeat(70 * 1024)))).await;
    let answer = wire.until("head_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_shape_of_all_errors() {
    let flux = Flux::start().await;
    let mut wire = flux.connect().await;
    wire.send("GET /health HTTP/1.1\r\nthis is no header\r\n\r\n").await;
    let answer = wire.rest().await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("\"code\":\"invalid_request\""), "{answer}");
}

#[tokio::test]
async fn beyond_the_limit_connections_are_told_so() {
    let flux = Flux::with(|options| options.max_connections = 2).await;
    let mut first = flux.connect().await;
    let mut second = flux.connect().await;
    for wire in [&mut first, &mut second] {
        wire.send(&head("GET", "/health", "")).await;
        wire.until("ok").await;
    }
    let mut third = flux.connect().await;
    third.send(&head("GET", "/health", "")).await;
    let answer = third.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("too_many_connections"), "{answer}");
    // Those that are open go on, and a place that is given back is there for the next.
    second.send(&head("GET", "/health", "")).await;
    second.until("ok").await;
    drop(first);
    eventually(SOON, "room for another", async || {
        let mut next = flux.connect().await;
        next.send(&head("GET", "/health", "Connection: close\r\n")).await;
        next.rest().await.starts_with("HTTP/1.1 200")
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_disconnects_cancels_its_execution() {
    let flux = Flux::start().await;
    let mut wire = flux.connect().await;
    wire.send(&head("POST", "/execute/slow", "Content-Length: 0\r\n")).await;
    eventually(SOON, "the call to run", async || flux.scripted.running() == 1).await;
    drop(wire);
    eventually(SOON, "the execution to be cancelled", async || flux.scripted.cancelled().await == 1).await;
}

#[tokio::test]
async fn http_2_in_the_clear() {
    let flux = Flux::start().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client");
    let request = client.post(format!("http://{}/execute/echo", flux.address)).header("X-API-Key", crate::flux::KEY);
    let reply = request.json(&serde_json::json!({"payload": {"n": 1}})).send().await.expect("an answer");
    assert_eq!(reply.version(), reqwest::Version::HTTP_2);
    assert_eq!(reply.status(), 200);
    let json: serde_json::Value = reply.json().await.expect("JSON");
    assert_eq!(json["result"]["n"], 1);
}

#[tokio::test]
async fn a_stream_of_http_2_that_is_reset_cancels_its_execution() {
    let flux = Flux::start().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client");
    let url = |path: &str| format!("http://{}{path}", flux.address);
    let slow = client.post(url("/execute/slow")).header("X-API-Key", crate::flux::KEY).send();
    let runs = eventually(SOON, "the call to run", async || flux.scripted.running() == 1);
    tokio::select! {
        answer = slow => panic!("it was answered: {answer:?}"),
        () = runs => {}
    }
    eventually(SOON, "the execution to be cancelled", async || flux.scripted.cancelled().await == 1).await;
    // The connection itself goes on.
    assert_eq!(client.get(url("/health")).send().await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let flux = Flux::start().await;
    let mut wire = flux.connect().await;
    for _ in 0..3 {
        wire.send(&head("GET", "/health", "")).await;
        let answer = wire.until("{\"status\":\"ok\"}").await;
        assert!(!answer.to_lowercase().contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    const SIZE: usize = 24 * 1024 * 1024;
    let flux = Flux::with(|options| options.write_stall_timeout = Duration::from_millis(300)).await;
    let mut wire = flux.connect().await;
    wire.send(&head("POST", "/execute/echo", &format!("Content-Length: {SIZE}\r\nContent-Type: text/plain\r\n"))).await;
    wire.send(&"x".repeat(SIZE)).await;
    eventually(SOON, "the connection to be given up", async || {
        let metrics = flux.api.get("/metrics").await.text();
        let stalled = "flux_http_stalled_connections_total ";
        metrics.lines().any(|line| line.strip_prefix(stalled).is_some_and(|count| count != "0"))
    })
    .await;
    let mut rest = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut wire.0, &mut rest).await;
    assert!(rest.len() < SIZE, "it was cut off");
}
