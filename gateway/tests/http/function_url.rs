use flux_testkit::{Api, Reply};
use reqwest::Method;
use serde_json::{Value, json};

use crate::flux::{Flux, KEY};

#[tokio::test]
async fn a_request_goes_in_whole() {
    let flux = Flux::start().await;
    let event = async |method: &str, path: &str, body: &'static [u8]| -> Value {
        let request =
            flux.api.request(method.parse::<Method>().expect("a method"), path).header("X-Mine", "1").body(body);
        Api::try_send(request).await.expect("an answer").expect(200).json
    };
    let whole = event("PUT", "/fn/echo/a%20b/c?x=1&x=2&y=%26", b"hello").await;
    assert_eq!(whole["method"], "PUT");
    assert_eq!(whole["path"], "/a%20b/c");
    assert_eq!(whole["rawQuery"], "x=1&x=2&y=%26");
    assert_eq!(whole["query"], json!({"x": "1,2", "y": "&"}));
    assert_eq!(whole["headers"]["x-mine"], "1");
    assert_eq!((&whole["body"], &whole["isBase64Encoded"]), (&json!("hello"), &json!(false)));
    assert!(!whole.to_string().contains(KEY), "the gateway's key is not the function's business: {whole}");
    assert_eq!(event("GET", "/fn/echo", b"").await["path"], "/");
    assert_eq!(event("DELETE", "/fn/echo/", b"").await["path"], "/");
    let binary = event("PATCH", "/fn/echo/x", b"\xff\x00").await;
    assert_eq!((&binary["body"], &binary["isBase64Encoded"]), (&json!("/wA="), &json!(true)));
}

#[tokio::test]
async fn no_key_of_the_gateway_goes_in() {
    let flux = Flux::start().await;
    let body = json!({"name": "t", "scopes": ["invoke:echo"]});
    let other = flux.api.post("/keys", &body).await.expect(201).json["key"].as_str().expect("a key").to_owned();
    let bare = flux.api.with_key("");
    let event = async |shown: &[(&str, String)]| -> Value {
        let request = bare.request(Method::GET, "/fn/echo");
        let request = shown.iter().fold(request, |request, (name, value)| request.header(*name, value));
        Api::try_send(request).await.expect("an answer").expect(200).json
    };
    let bearer = |key: &str| ("Authorization", format!("Bearer {key}"));
    for shown in [
        vec![("X-API-Key", KEY.to_owned()), bearer(KEY)],
        vec![("X-API-Key", KEY.to_owned()), bearer(&other)],
        vec![("X-API-Key", other.clone()), bearer(KEY)],
        vec![("X-API-Key", "nobody's".to_owned()), ("X-API-Key", other.clone()), bearer(KEY)],
        vec![("X-API-Key", KEY.to_owned()), ("Authorization", "Basic eA==".to_owned()), bearer(&other)],
    ] {
        let whole = event(&shown).await.to_string();
        assert!(!whole.contains(KEY) && !whole.contains(&other), "{shown:?}: {whole}");
    }
    // What opens nothing here is the function's business.
    let own = event(&[("X-API-Key", KEY.to_owned()), bearer("its-own")]).await;
    assert_eq!(own["headers"]["authorization"], "Bearer its-own", "{own}");
}

async fn answer(flux: &Flux, body: &str) -> Reply {
    // `answer` prints the body of the event.
    let request = flux.api.request(Method::POST, "/fn/answer/x").body(body.to_owned());
    Api::try_send(request).await.expect("an answer")
}

#[tokio::test]
async fn a_response_comes_out_with_status_and_headers() {
    let flux = Flux::start().await;
    let said = json!({"statusCode": 418, "headers": {"X-Tea": "pot", "content-type": "text/x-tea", "Connection": "upgrade", "Content-Length": "1"}, "body": "short and stout"});
    let reply = answer(&flux, &said.to_string()).await.expect(418);
    assert_eq!((reply.header("x-tea"), reply.header("content-type")), ("pot", "text/x-tea"));
    assert_eq!(reply.text(), "short and stout");
    assert_eq!(reply.header("connection"), "");
    assert!(reply.header("x-flux-execution-id").starts_with("exc-"));

    let reply = answer(&flux, &json!({"statusCode": 200, "body": "/wA=", "isBase64Encoded": true}).to_string())
        .await
        .expect(200);
    assert_eq!(&reply.body[..], [0xff, 0]);
    let reply = answer(&flux, &json!({"statusCode": 204, "body": "not sent"}).to_string()).await.expect(204);
    assert!(reply.body.is_empty());
    let reply = answer(&flux, &json!({"statusCode": 200, "body": {"a": 1}}).to_string()).await.expect(200);
    assert_eq!((reply.header("content-type"), &reply.json), ("application/json", &json!({"a": 1})));
}

#[tokio::test]
async fn what_is_printed_is_a_body() {
    let flux = Flux::start().await;
    let reply = answer(&flux, "hello\n").await.expect(200);
    assert_eq!((reply.header("content-type"), reply.text().as_str()), ("text/plain; charset=utf-8", "hello\n"));
    let reply = answer(&flux, "[1, 2.50]").await.expect(200);
    assert_eq!((reply.header("content-type"), reply.text().as_str()), ("application/json", "[1, 2.50]"));
    assert_eq!(answer(&flux, "").await.expect(200).text(), "");
}

#[tokio::test]
async fn a_failure_is_an_error_that_names_the_execution() {
    let flux = Flux::start().await;
    let reply = flux.api.get("/fn/fail/x").await.expect(500);
    let error = &reply.json["error"];
    assert_eq!(error["code"], "function_failed");
    assert_eq!(error["details"]["error"]["exit_code"], 3);
    assert_eq!(error["details"]["execution_id"], reply.header("x-flux-execution-id"));
    for wrong in [
        "{\"statusCode\": 101}",
        "{\"statusCode\": \"x\"}",
        "{\"statusCode\": 200, \"headers\": {\"a\": \"b\\r\\nc: d\"}}",
    ] {
        let reply = answer(&flux, wrong).await.expect(500);
        assert_eq!(reply.json["error"]["code"], "function_failed", "{wrong}");
    }
    flux.api.get("/fn/nobody/x").await.expect(404);
}
