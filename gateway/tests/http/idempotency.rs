use flux_testkit::{Api, Reply};
use reqwest::Method;
use serde_json::{Value, json};

use crate::flux::{Flux, SOON};

async fn keyed(flux: &Flux, path: &str, key: &str, body: &Value) -> Reply {
    let request = flux.api.request(Method::POST, path).header("Idempotency-Key", key).json(body);
    Api::try_send(request).await.expect("an answer")
}

#[tokio::test]
async fn a_repeated_call_is_answered_from_the_first() {
    let flux = Flux::start().await;
    let body = json!({"payload": {"order": 7}});
    let first = keyed(&flux, "/execute/echo", "order-7", &body).await.expect(200);
    assert_eq!(first.header("idempotency-replayed"), "");
    let second = keyed(&flux, "/execute/echo", "order-7", &body).await.expect(200);
    assert_eq!(second.header("idempotency-replayed"), "true");
    for field in ["execution_id", "output", "status"] {
        assert_eq!(first.json[field], second.json[field], "{field}");
    }
    let other = keyed(&flux, "/execute/echo", "order-7", &json!({"payload": {"order": 8}})).await.expect(422);
    assert_eq!(other.json["error"]["code"], "idempotency_mismatch");
}

#[tokio::test]
async fn a_repeated_acceptance_names_the_first() {
    let flux = Flux::start().await;
    let body = json!({"payload": 1});
    let first = keyed(&flux, "/execute/echo/async", "k", &body).await.expect(202);
    let second = keyed(&flux, "/execute/echo/async", "k", &body).await.expect(202);
    assert_eq!(first.json, second.json);
    assert_eq!(second.header("idempotency-replayed"), "true");
    flux.api.outcome(first.json["execution_id"].as_str().expect("text"), SOON).await;
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let flux = Flux::start().await;
    let refused = keyed(&flux, "/execute/echo", &"k".repeat(256), &json!({})).await.expect(400);
    assert_eq!(refused.json["error"]["details"]["field"], "Idempotency-Key");
}
