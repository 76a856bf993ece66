//! What accepted work survives is said aloud, and is what the queue and the store were told.

use flux_testkit::{FluxCommand, FluxUp, NatsServer, eventually, free_port};
use serde_json::json;

use crate::cluster::{COMMAND, alone, deploy_script, settings};

#[tokio::test]
async fn with_fsync_queue_and_store_sync_and_say_so() {
    let mut up = FluxUp::start_with(&["--queue-durability", "fsync"]).await;
    let nats = std::fs::read_to_string(up.path("run/nats.conf")).expect("what `flux up` wrote");
    assert!(nats.contains("  sync_interval: always\n"), "{nats}");
    assert_eq!(settings(&up)["queue"]["durability"], "fsync");
    assert_eq!(up.api.get("/ready").await.json["durability"], "fsync");
    assert!(up.process.log().contains("accepted work survives a power cut"), "{}", up.process.log());

    deploy_script(&up, "hello", "echo hello", "").await;
    let id = up.api.execute_async("hello", &json!({})).await;
    up.restart().await;
    let ended = up.api.get(&format!("/executions/{id}?wait=30s")).await;
    assert_eq!(ended.json["status"], "success", "{ended:?}");
}

#[tokio::test]
async fn a_queue_of_another_s_is_warned_about() {
    let nats = NatsServer::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let listen = format!("127.0.0.1:{}", free_port());
    let gateway = FluxCommand::new("flux-gateway")
        .env("FLUX_DISABLE_MTLS", "true")
        .args(["--queue-url", &nats.url(), "--listen", &listen, "--api-key", "key", "--queue-durability", "fsync"])
        .arg("--data-dir")
        .arg(dir.path())
        .spawn();
    eventually(COMMAND, "the warning", || async {
        gateway.log().contains("has `sync_interval: always` in its `jetstream` block")
    })
    .await;
}

#[tokio::test]
async fn a_durability_that_is_none_names_the_field() {
    alone(&["up", "--queue-durability", "sync"]).await.fails(2, "possible values: process, fsync");
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("flux.yaml");
    std::fs::write(&config, "queue: { durability: always }\n").expect("a file");
    let config = config.to_str().expect("UTF-8");
    let words = "error: configuration: `queue.durability`: `always` is not one of: process, fsync";
    alone(&["up", "--config", config]).await.fails(1, words);
}
