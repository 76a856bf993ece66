use flux_testkit::Api;
use reqwest::Method;
use serde_json::json;

use crate::flux::Flux;

async fn send(flux: &Flux, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> flux_testkit::Reply {
    let request = flux.api.request(Method::POST, path).header("Content-Type", content_type).body(body);
    Api::try_send(request).await.expect("an answer")
}

#[tokio::test]
async fn a_call_answers_with_what_the_function_wrote() {
    let flux = Flux::start().await;
    let reply =
        send(&flux, "/execute/echo", "application/json", r#"{"payload": {"z": 1.10, "a": [12345678901234567890123]}}"#)
            .await
            .expect(200);
    assert_eq!(reply.json["status"], "success");
    assert_eq!(reply.json["output"], r#"{"z": 1.10, "a": [12345678901234567890123]}"#);
    // Not by way of a parser: numbers and the order of keys are the function's.
    assert!(reply.text().contains(r#""result":{"z": 1.10, "a": [12345678901234567890123]}"#), "{}", reply.text());
    assert_eq!(reply.json["attempt"], 1);
    assert_eq!(reply.json["version"], 1);
    assert!(reply.json["duration_ms"].is_number());
    assert!(reply.json["agent_id"].is_string());
    assert!(reply.json.get("error").is_none());
    assert_eq!(reply.header("x-flux-execution-id"), reply.json["execution_id"].as_str().expect("text"));
    assert_eq!(reply.header("traceparent").len(), 55);
}

#[tokio::test]
async fn a_payload_is_what_its_content_type_says() {
    let flux = Flux::start().await;
    let output = async |content_type: &str, body: &'static str| {
        send(&flux, "/execute/echo", content_type, body).await.expect(200).json["output"].clone()
    };
    assert_eq!(output("application/json", r#"{"payload": "text"}"#).await, "\"text\"");
    assert_eq!(output("application/json", "{}").await, "");
    assert_eq!(output("application/json", r#"{"payload": null}"#).await, "");
    assert_eq!(output("application/json", "").await, "");
    assert_eq!(output("text/plain", r#"{"payload": 1}"#).await, r#"{"payload": 1}"#);
    assert_eq!(output("application/x-www-form-urlencoded", r#"{"payload": 1}"#).await, "1");
    assert_eq!(output("application/x-www-form-urlencoded", "a=b").await, "a=b");
    let bare = flux.api.request(Method::POST, "/execute/echo").body(r#"{"payload": 7}"#);
    assert_eq!(Api::try_send(bare).await.expect("an answer").expect(200).json["result"], 7);
    let empty = flux.api.request(Method::POST, "/execute/echo");
    assert_eq!(Api::try_send(empty).await.expect("an answer").expect(200).json["output"], "");
    let binary = send(&flux, "/execute/echo", "application/octet-stream", vec![0xff, 0, b'a']).await.expect(200);
    assert_eq!(binary.json["output"], "\u{fffd}\0a");
    assert!(binary.json.get("result").is_none());
}

#[tokio::test]
async fn the_largest_payload_passes_and_one_byte_more_does_not() {
    const LIMIT: usize = flux_protocol::limits::PAYLOAD;
    let flux = Flux::start().await;
    let payload = vec![b'x'; LIMIT];
    let reply = send(&flux, "/execute/echo", "application/octet-stream", payload.clone()).await.expect(200);
    assert_eq!(reply.json["output"].as_str().expect("text").len(), LIMIT);
    let reply =
        send(&flux, "/execute/echo", "application/octet-stream", [&payload[..], b"x"].concat()).await.expect(413);
    assert_eq!(reply.json["error"]["details"]["limit_bytes"], LIMIT);
    let mut json = b"{\"payload\":\"".to_vec();
    json.extend_from_slice(&payload[..LIMIT - 2]);
    json.extend_from_slice(b"\"}");
    let reply = send(&flux, "/execute/echo", "application/json", json.clone()).await.expect(200);
    assert_eq!(reply.json["result"].as_str().expect("text").len(), LIMIT - 2);
    json.insert(12, b'x');
    send(&flux, "/execute/echo", "application/json", json).await.expect(413);
}

#[tokio::test]
async fn a_functions_failure_is_an_outcome() {
    let flux = Flux::start().await;
    let reply = flux.api.execute("fail", &json!(null)).await.expect(500);
    assert_eq!(reply.json["status"], "failed");
    assert_eq!(reply.json["error"]["kind"], "exit");
    assert_eq!(reply.json["error"]["exit_code"], 3);
    assert_eq!(reply.json["output"], "oops\n");
    assert!(reply.json["execution_id"].is_string());
}

#[tokio::test]
async fn accepted_is_said_with_a_place_to_look() {
    let flux = Flux::start().await;
    let reply = flux.api.post("/execute/echo/async", &json!({"payload": 1})).await.expect(202);
    let id = reply.json["execution_id"].as_str().expect("text");
    assert_eq!(reply.json["status"], "accepted");
    assert_eq!(reply.header("location"), format!("/executions/{id}"));
    let preferring = flux.api.request(Method::POST, "/execute/echo").header("Prefer", "respond-async").json(&json!({}));
    let reply = Api::try_send(preferring).await.expect("an answer").expect(202);
    assert_eq!(reply.header("preference-applied"), "respond-async");
}

#[tokio::test]
async fn a_trace_goes_on() {
    let flux = Flux::start().await;
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = flux.api.request(Method::POST, "/execute/echo").header("traceparent", given).json(&json!({}));
    let reply = Api::try_send(request).await.expect("an answer").expect(200);
    let answered = reply.header("traceparent");
    assert_eq!(answered[..35], given[..35], "the same trace");
    assert_ne!(answered[36..52], given[36..52], "a span of its own");
}

#[tokio::test]
async fn the_callers_deadline_is_504_and_want_of_room_is_said_at_once() {
    let flux = Flux::start().await;
    let late = flux.api.post("/execute/slow?timeout=300ms", &json!({})).await.expect(504);
    assert_eq!(late.json["error"]["code"], "deadline_exceeded");
    flux_testkit::eventually(crate::flux::SOON, "room again", async || flux.scripted.running() == 0).await;

    // As many as the agent takes, and one more.
    for _ in 0..4 {
        flux.api.execute_async("slow", &json!(null)).await;
    }
    flux_testkit::eventually(crate::flux::SOON, "the agent to be full", async || flux.scripted.running() == 4).await;
    flux_testkit::eventually(crate::flux::SOON, "the gateway to know", async || {
        flux.api.get("/agents").await.json[0]["status"] == "busy"
    })
    .await;
    let refused = flux.api.execute("echo", &json!(1)).await;
    assert!([429, 503].contains(&refused.status), "{}", refused.text());
    assert!(refused.header("retry-after").parse::<u64>().expect("seconds") >= 1);
    assert!(["no_resources", "at_concurrency"].contains(&refused.json["error"]["code"].as_str().expect("a code")));
}
