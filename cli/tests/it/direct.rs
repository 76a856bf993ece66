//! Invocations published straight to the queue, with no gateway in between.

use std::time::Duration;

use async_nats::HeaderMap;
use flux_testkit::{FluxUp, eventually_some};
use futures::StreamExt as _;
use serde_json::Value;

use crate::cluster::{deploy_script, flux};

const ENDS: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_bare_publish_is_an_invocation_and_its_outcome_arrives_where_asked() {
    let up = FluxUp::start().await;
    deploy_script(&up, "echo", "cat", "").await;
    let nats = up.queue().await;

    nats.publish("flux.invoke.echo", r#"{"n":1}"#.into()).await.expect("published");
    let record = eventually_some(ENDS, "its record", || async {
        let list = up.api.get("/executions?function=echo&status=success").await;
        list.json["executions"].get(0).cloned()
    })
    .await;
    let id = record["execution_id"].as_str().expect("an id").to_owned();
    let whole = up.api.outcome(&id, ENDS).await;
    assert_eq!(whole["result"], serde_json::json!({"n": 1}), "{whole}");
    assert_eq!(flux(&up, &["logs", "echo"]).await.ok().stdout, r#"{"n":1}"#);

    let inbox = nats.new_inbox();
    let mut replies = nats.subscribe(inbox.clone()).await.expect("subscribed");
    let mut headers = HeaderMap::new();
    headers.insert("Flux-Reply-To", inbox.as_str());
    nats.publish_with_headers("flux.invoke.echo", headers, r#"{"n":2}"#.into()).await.expect("published");
    let reply = tokio::time::timeout(ENDS, replies.next()).await.expect("a reply in time").expect("a reply");
    let outcome: Value = serde_json::from_slice(&reply.payload).expect("JSON");
    assert_eq!(outcome["outcome"]["status"], "success", "{outcome}");
    assert_ne!(outcome["execution_id"], Value::String(id));
}

#[tokio::test]
async fn a_publish_for_nobody_becomes_a_dead_letter() {
    let up = FluxUp::start().await;
    let nats = up.queue().await;
    nats.publish("flux.invoke.nobody", "{}".into()).await.expect("published");
    let record = eventually_some(ENDS, "its record", || async {
        up.api.get("/executions?function=nobody&status=failed").await.json["executions"].get(0).cloned()
    })
    .await;
    assert_eq!(record["error"]["kind"], "invalid_function", "{record}");
    eventually_some(ENDS, "its letter", || async { up.api.get("/dlq/nobody").await.json["letters"].get(0).cloned() })
        .await;
}
