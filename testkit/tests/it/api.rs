//! The client, against a gateway that only records.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, body::Bytes, extract::Request, http::StatusCode, routing::any};
use flux_testkit::{Api, File, archive, free_port};
use serde_json::json;

type Seen = Arc<Mutex<Vec<(String, String, Bytes)>>>;

/// Answers everything with 201 and remembers `METHOD path`, the key and the body.
async fn gateway() -> (Api, Seen) {
    let seen = Seen::default();
    let record = seen.clone();
    let handler = move |request: Request| async move {
        let key = request.headers().get("x-api-key").and_then(|key| key.to_str().ok()).unwrap_or("none").to_owned();
        let line = format!("{} {}", request.method(), request.uri().path());
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.expect("a body");
        let status = if line == "GET /ready" { StatusCode::OK } else { StatusCode::CREATED };
        record.lock().expect("not poisoned").push((line, key, body));
        (status, Json(json!({ "execution_id": "exc-1" })))
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", free_port())).await.expect("a free port");
    let api = Api::new(format!("http://{}", listener.local_addr().expect("bound")), "secret");
    let router = Router::new().fallback(any(handler));
    #[allow(clippy::disallowed_methods)] // ends with the test's runtime
    tokio::spawn(async move { axum::serve(listener, router).await });
    (api, seen)
}

#[tokio::test]
async fn deploying_registers_and_uploads_with_the_key() {
    let (api, seen) = gateway().await;
    api.ready(Duration::from_secs(10)).await;
    let files = [File::executable("hello.sh", "#!/bin/sh\n"), File::plain("data", "1")];
    let answer = api.deploy("hello", "name: hello", &files).await;
    assert_eq!(answer["execution_id"], "exc-1");
    let seen = seen.lock().expect("not poisoned");
    let lines: Vec<&str> = seen.iter().map(|(line, ..)| line.as_str()).collect();
    assert_eq!(lines, ["GET /ready", "PUT /functions", "PUT /deploy/hello"]);
    assert!(seen.iter().all(|(_, key, _)| key == "secret"));
    assert_eq!(seen[1].2, "name: hello");
    assert_eq!(seen[2].2, archive(&files), "the same files are the same bytes");
}

#[test]
fn an_archive_says_what_can_be_run() {
    let bytes = archive(&[File::executable("run", "x"), File::plain("sub/read", "y")]);
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).expect("a zip");
    let mode =
        |zip: &mut zip::ZipArchive<_>, path| zip.by_name(path).expect("there").unix_mode().map(|mode| mode & 0o777);
    assert_eq!(mode(&mut zip, "run"), Some(0o755));
    assert_eq!(mode(&mut zip, "sub/read"), Some(0o644));
}
