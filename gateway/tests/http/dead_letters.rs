use flux_testkit::{Api, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use crate::flux::{Flux, SOON};

/// Lets executions of `fail` fail; their letters, oldest first.
async fn letters(flux: &Flux, count: usize) -> Vec<Value> {
    for n in 0..count {
        flux.api.execute_async("fail", &json!({"n": n})).await;
    }
    let list =
        async || flux.api.get("/dlq/fail").await.expect(200).json["letters"].as_array().cloned().expect("letters");
    eventually(SOON, "the letters", async || list().await.len() == count).await;
    list().await
}

#[tokio::test]
async fn a_letter_says_what_it_was_and_why() {
    let flux = Flux::start().await;
    assert_eq!(flux.api.get("/dlq").await.expect(200).json, json!({"functions": []}));
    let letter = letters(&flux, 1).await.remove(0);
    assert_eq!(flux.api.get("/dlq").await.expect(200).json, json!({"functions": [{"function": "fail", "count": 1}]}));
    assert_eq!(
        (&letter["function"], &letter["error"]["exit_code"], &letter["payload_bytes"]),
        (&json!("fail"), &json!(3), &json!(7))
    );
    assert!(letter["reason"].as_str().expect("text").starts_with("exit: "), "{letter}");
    assert!(letter.get("payload").is_none(), "lists are short");
    let shown = flux.api.get(&format!("/dlq/fail/{}", letter["sequence"])).await.expect(200).json;
    assert_eq!((&shown["payload"], &shown["execution_id"]), (&json!("{\"n\":0}"), &letter["execution_id"]));
    let none = flux.api.get("/dlq/fail/999999").await.expect(404);
    assert_eq!(none.json["error"]["code"], "message_not_found");
}

#[tokio::test]
async fn letters_are_run_again() {
    let flux = Flux::start().await;
    let buried = letters(&flux, 2).await;
    let first = &buried[0];
    let dry = flux.api.post("/dlq/fail/redrive?dry_run=true", &Value::Null).await.expect(200).json;
    assert_eq!((&dry["dry_run"], dry["redriven"].as_array().expect("rows").len()), (&json!(true), 2));
    assert!(dry["redriven"][0]["execution_id"].is_null());
    let path = format!("/dlq/fail/{}/redrive", first["sequence"]);
    let none = Api::try_send(flux.api.request(Method::POST, &path)).await.expect("an answer").expect(200).json;
    let redriven = &none["redriven"][0];
    assert_eq!((&redriven["of"], &redriven["sequence"]), (&first["execution_id"], &first["sequence"]));
    let record = flux.api.outcome(redriven["execution_id"].as_str().expect("text"), SOON).await;
    assert_eq!(record["redrive_of"], first["execution_id"]);
    let wrong = flux.api.post("/dlq/fail/redrive", &json!({"sequnce": 1})).await.expect(400);
    assert!(wrong.json["error"]["message"].as_str().expect("text").contains("`sequence`"), "{}", wrong.text());
    let version = flux.api.post("/dlq/fail/redrive", &json!({"version": 99})).await.expect(404);
    assert_eq!(version.json["error"]["code"], "version_not_found");
    let clash = flux.api.post(&path, &json!({"sequence": 424_242})).await.expect(400);
    assert_eq!(clash.json["error"]["details"]["field"], "sequence");
}

#[tokio::test]
async fn letters_are_read_by_the_page_and_removed() {
    let flux = Flux::start().await;
    let buried = letters(&flux, 3).await;
    let page = flux.api.get("/dlq/fail?limit=2").await.expect(200).json;
    assert_eq!(page["letters"].as_array().expect("rows").len(), 2);
    let rest = flux
        .api
        .get(&format!("/dlq/fail?limit=2&cursor={}", page["next_cursor"].as_str().expect("more")))
        .await
        .expect(200)
        .json;
    assert_eq!(rest["letters"], json!([buried[2]]));
    let one = format!("/dlq/fail/{}", buried[0]["sequence"]);
    assert_eq!(flux.api.delete(&one).await.expect(200).json, json!({"status": "purged", "purged": 1}));
    flux.api.delete(&one).await.expect(404);
    assert_eq!(flux.api.delete("/dlq/fail").await.expect(200).json["purged"], 2);
    assert_eq!(flux.api.get("/dlq").await.expect(200).json, json!({"functions": []}));
}
