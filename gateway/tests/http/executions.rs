use std::time::{Duration, Instant};

use flux_testkit::eventually;
use serde_json::json;

use crate::flux::{Flux, SOON};

#[tokio::test]
async fn a_record_holds_what_came_of_it() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("echo", &json!({"n": 1})).await;
    let record = flux.api.outcome(&id, SOON).await;
    assert_eq!(record["execution_id"], id.as_str());
    assert_eq!(
        (&record["function_name"], &record["status"], &record["phase"]),
        (&json!("echo"), &json!("success"), &json!("ended"))
    );
    assert_eq!((&record["output"], &record["result"]), (&json!("{\"n\":1}"), &json!({"n": 1})));
    assert_eq!((&record["agent_id"], &record["attempt"]), (&json!("agent-1"), &json!(1)));
    for field in ["version", "duration_ms", "queued_at", "started_at", "status_at"] {
        assert!(!record[field].is_null(), "{field}: {record}");
    }
    assert!(record["usage"]["cpu_ms"].is_number() && record["usage"]["memory_peak_mb"].is_number());
    assert!(record.get("error").is_none());
    let failed = flux.api.execute_async("fail", &json!(null)).await;
    let record = flux.api.outcome(&failed, SOON).await;
    assert_eq!(
        (&record["status"], &record["error"]["kind"], &record["error"]["exit_code"]),
        (&json!("failed"), &json!("exit"), &json!(3))
    );
    // A sync call leaves a record too.
    let called = flux.api.execute("echo", &json!(2)).await.expect(200);
    let record = flux.api.outcome(called.json["execution_id"].as_str().expect("text"), SOON).await;
    assert_eq!(record["output"], "2");
}

#[tokio::test]
async fn a_poll_is_held_until_the_outcome() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("slow", &json!(null)).await;
    eventually(SOON, "it to run", async || flux.scripted.running() == 1).await;
    let started = Instant::now();
    let early = flux.api.get(&format!("/executions/{id}?wait=300ms")).await.expect(200).json;
    assert_eq!(early["status"], "running");
    assert!(started.elapsed() >= Duration::from_millis(300));
    let path = format!("/executions/{id}?wait=30s");
    let (held, ()) = tokio::join!(flux.api.get(&path), async { flux.scripted.let_go() });
    assert_eq!(held.expect(200).json["status"], "success");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_poll_does_not_hold_up_a_drain() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("slow", &json!(null)).await;
    eventually(SOON, "it to run", async || flux.scripted.running() == 1).await;
    let path = format!("/executions/{id}?wait=60s");
    let (answer, ()) = tokio::join!(flux.api.get(&path), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        flux.shutdown.start_drain();
    });
    assert_eq!(answer.expect(200).json["status"], "running");
    tokio::time::timeout(SOON, flux.tasks.wait()).await.expect("it drains");
}

#[tokio::test]
async fn output_grows_while_it_runs() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("lines", &json!(null)).await;
    eventually(SOON, "it to run", async || flux.scripted.running() == 1).await;
    flux.scripted.let_go();
    eventually(SOON, "the first line in the record", async || {
        let record = flux.api.get(&format!("/executions/{id}")).await.json;
        record["output"] == "one\n" && record["status"] == "running" && record["phase"] == "running"
    })
    .await;
}

#[tokio::test]
async fn cancelling_is_once() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("slow", &json!(null)).await;
    eventually(SOON, "it to run", async || flux.scripted.running() == 1).await;
    let cancelled = flux.api.delete(&format!("/executions/{id}")).await.expect(200).json;
    assert_eq!(cancelled, json!({"status": "cancelled", "execution_id": id}));
    let record = flux.api.outcome(&id, SOON).await;
    assert_eq!((&record["status"], &record["error"]["kind"]), (&json!("cancelled"), &json!("cancelled")));
    let refused = flux.api.delete(&format!("/executions/{id}")).await.expect(409);
    assert_eq!(refused.json["error"]["code"], "already_terminal");
}

#[tokio::test]
async fn a_list_is_filtered_and_paged() {
    let flux = Flux::start().await;
    for n in 0..3 {
        let id = flux.api.execute_async("echo", &json!(n)).await;
        flux.api.outcome(&id, SOON).await;
    }
    let failed = flux.api.execute_async("fail", &json!(null)).await;
    flux.api.outcome(&failed, SOON).await;
    let all = flux.api.get("/executions").await.expect(200).json;
    let rows = all["executions"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[0]["execution_id"]), (4, &json!(failed)), "the newest first");
    assert!(rows.iter().all(|row| row.get("output").is_none()), "without output");
    let some = flux.api.get("/executions?status=failed").await.expect(200).json;
    assert_eq!(some["executions"].as_array().expect("rows").len(), 1);
    let first = flux.api.get("/executions?function=echo&limit=2").await.expect(200).json;
    let cursor = first["next_cursor"].as_str().expect("there is more");
    let rest = flux.api.get(&format!("/executions?function=echo&limit=2&cursor={cursor}")).await.expect(200).json;
    assert_eq!(rest["executions"].as_array().expect("rows").len(), 1);
    assert!(rest["next_cursor"].is_null());
    let none = flux.api.get("/executions?since=2100-01-01T00:00:00Z").await.expect(200).json;
    assert_eq!(none["executions"], json!([]));
}

#[tokio::test]
async fn why_says_where_it_is() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("slow", &json!(null)).await;
    eventually(SOON, "why to say that it runs", async || {
        flux.api.get(&format!("/executions/{id}/why")).await.json["reason"] == "running"
    })
    .await;
    let why = flux.api.get(&format!("/executions/{id}/why")).await.expect(200).json;
    assert_eq!((&why["execution_id"], &why["function_name"]), (&json!(id), &json!("slow")));
    assert!(why["explanation"].as_str().expect("text").len() > 10);
}
