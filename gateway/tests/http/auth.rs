use reqwest::Method;

use crate::flux::{Flux, KEY};

#[tokio::test]
async fn without_the_key_nothing_but_the_public_rows_answers() {
    let flux = Flux::start().await;
    for key in ["", "another", &KEY[1..], &format!("{KEY}x")] {
        let api = flux.api.with_key(key);
        for path in [
            "/functions",
            "/executions",
            "/metrics",
            "/dlq",
            "/resources",
            "/no/such/route",
            "/fn/echo",
            "/agents/register",
            "/docs/x",
        ] {
            let refused = api.get(path).await.expect(401);
            assert_eq!(refused.json["error"]["code"], "unauthorized", "{path}");
            assert!(refused.header("www-authenticate").starts_with("Bearer"));
        }
        api.post("/execute/echo", &serde_json::json!({})).await.expect(401);
        for path in ["/health", "/ready", "/agents", "/docs", "/openapi.json"] {
            api.get(path).await.expect(200);
        }
    }
}

#[tokio::test]
async fn the_key_comes_in_either_header() {
    let flux = Flux::start().await;
    let bare = flux.api.with_key("");
    for (name, value) in [
        ("X-API-Key", KEY.to_owned()),
        ("Authorization", format!("Bearer {KEY}")),
        ("authorization", format!("bearer {KEY}")),
    ] {
        let request = bare.request(Method::GET, "/functions").header(name, value);
        flux_testkit::Api::try_send(request).await.expect("an answer").expect(200);
    }
    let basic = bare.request(Method::GET, "/functions").header("Authorization", format!("Basic {KEY}"));
    flux_testkit::Api::try_send(basic).await.expect("an answer").expect(401);
}

#[tokio::test]
async fn a_stranger_with_a_body_is_told_so_too() {
    let flux = Flux::start().await;
    let refused = flux.api.with_key("wrong").put("/deploy/echo", "application/zip", vec![0; 300_000]).await.expect(401);
    assert_eq!(refused.json["error"]["code"], "unauthorized");
}

#[test]
fn no_key_is_no_gateway() {
    let settings = flux_runtime::Settings::default();
    let missing = flux_gateway::http::HttpOptions::from_settings(&settings).expect_err("refused");
    assert!(missing.to_string().contains("--api-key"), "{missing}");
}
