//! Cancels of what is on its way between two places.

use std::time::Duration;

use flux_testkit::{FluxUp, eventually};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cluster::deploy_script;

const ENDS: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_retry_that_was_due_and_waits_for_its_turn_does_not_start() {
    let up = FluxUp::start().await;
    let more =
        "max_concurrency: 1\nmax_concurrency_behavior: wait\ntimeout: 60\nretry: { max_attempts: 2, backoff: 2s }";
    deploy_script(&up, "fails", "grep -q block && exec sleep 60; exit 1", more).await;
    let mut statuses = up.queue().await.subscribe("flux.status.>").await.expect("statuses");
    let record = async |id: &str| up.api.get(&format!("/executions/{id}")).await.expect(200).json;
    let has_failed_once = async |id: &str| record(id).await["attempt"] == 2;

    let id = up.api.execute_async("fails", &json!("x")).await;
    // In order: it starts when the first has failed, long before that one's retry is due.
    let blocks = up.api.execute_async("fails", &json!("block")).await;
    eventually(ENDS, "its retry to wait", || has_failed_once(&id)).await;
    eventually(ENDS, "the function to be busy", || async { record(&blocks).await["phase"] == "running" }).await;
    eventually(ENDS, "the retry to be due", || async {
        let why = up.api.get(&format!("/executions/{id}/why")).await.expect(200).json;
        why["reason"] != "waiting_for_retry"
    })
    .await;
    up.api.delete(&format!("/executions/{id}")).await.expect(200);
    assert_eq!(up.api.outcome(&id, ENDS).await["status"], "cancelled");
    up.api.delete(&format!("/executions/{blocks}")).await.expect(200);

    // In order: what was behind it in the queue runs after it.
    let later = up.api.execute_async("fails", &json!("x")).await;
    eventually(ENDS, "the next one to have run", || has_failed_once(&later)).await;
    let refused_by_agent = async {
        let mut refused_by_agent = 0;
        loop {
            let message = statuses.next().await.expect("the connection lasts");
            let status: Value = serde_json::from_slice(&message.payload).expect("JSON");
            if status["execution_id"] == later.as_str() {
                return refused_by_agent;
            }
            if status["execution_id"] == id.as_str() && status["attempt"] == 2 {
                assert!(status["started_at"].is_null(), "it was started: {status:#}");
                refused_by_agent += usize::from(status["agent_id"].is_string());
            }
        }
    };
    let refused_by_agent = tokio::time::timeout(ENDS, refused_by_agent).await.expect("the statuses in time");
    assert!(refused_by_agent > 0, "it came to an agent, which did not start it");
}
