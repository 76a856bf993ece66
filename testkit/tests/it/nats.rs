//! A server of a test's own: what survives what.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use flux_testkit::{NatsServer, is_alive};

const DEADLINE: Duration = Duration::from_secs(10);

async fn jetstream_of(server: &NatsServer) -> jetstream::Context {
    jetstream::new(server.client().await)
}

async fn publish(jetstream: &jetstream::Context, body: &str) -> u64 {
    let ack = jetstream.publish("kept.one", body.to_owned().into()).await.expect("published");
    ack.await.expect("stored").sequence
}

fn stream() -> stream::Config {
    stream::Config { name: "KEPT".into(), subjects: vec!["kept.>".into()], ..Default::default() }
}

async fn messages(jetstream: &jetstream::Context) -> Option<u64> {
    jetstream.get_stream("KEPT").await.ok().map(|stream| stream.cached_info().state.messages)
}

#[tokio::test]
async fn takes_messages_of_the_products_size() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    assert_eq!(client.server_info().max_payload, 8 * 1024 * 1024);
    assert!(client.server_info().version.starts_with("2."));
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9_and_a_restart() {
    let mut server = NatsServer::start().await;
    let before = jetstream_of(&server).await;
    before.create_stream(stream()).await.expect("stream");
    assert_eq!(publish(&before, "first").await, 1);
    let (pid, url) = (server.pid(), server.url());

    server.kill9();
    assert!(!is_alive(pid));

    server.restart().await;
    assert_eq!(server.url(), url);
    let after = jetstream_of(&server).await;
    assert_eq!(messages(&after).await, Some(1));

    // In order, too; and an old client finds its way back by itself.
    server.restart().await;
    flux_testkit::eventually(DEADLINE, "the first client to see the message again", || async {
        messages(&before).await == Some(1)
    })
    .await;
}

#[tokio::test]
async fn a_wiped_store_is_empty() {
    let mut server = NatsServer::start().await;
    jetstream_of(&server).await.create_stream(stream()).await.expect("stream");
    server.wipe_store();
    server.restart().await;
    assert_eq!(messages(&jetstream_of(&server).await).await, None);
}

#[tokio::test]
async fn a_paused_server_is_silent_and_goes_on_when_resumed() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    server.pause();
    assert!(tokio::time::timeout(Duration::from_millis(200), client.flush_round_trip()).await.is_err());
    server.resume();
    tokio::time::timeout(DEADLINE, client.flush_round_trip()).await.expect("an answer in time");
}

#[tokio::test]
async fn dropping_it_leaves_neither_process_nor_directory() {
    let server = NatsServer::start().await;
    let (pid, dir) = (server.pid(), server.dir().to_path_buf());
    drop(server);
    assert!(!is_alive(pid));
    assert!(!dir.exists());
}

/// A request that only the server can answer: `flush` alone says no more than that bytes were written.
trait RoundTrip {
    async fn flush_round_trip(&self);
}

impl RoundTrip for async_nats::Client {
    async fn flush_round_trip(&self) {
        jetstream::new(self.clone()).query_account().await.expect("JetStream answers");
    }
}
