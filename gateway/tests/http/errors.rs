use flux_testkit::{Api, Reply};
use reqwest::Method;
use serde_json::json;

use crate::flux::Flux;

/// The error of an answer, whose shape is checked.
#[track_caller]
fn error(reply: &Reply) -> &serde_json::Value {
    let error = &reply.json["error"];
    let fields: Vec<&str> = error.as_object().expect("an error").keys().map(String::as_str).collect();
    assert_eq!(
        {
            let mut sorted = fields;
            sorted.sort_unstable();
            sorted
        },
        ["code", "details", "message", "request_id"]
    );
    assert!(error["details"].is_object(), "{error}");
    assert_eq!(error["request_id"], reply.header("x-request-id"));
    assert_eq!(reply.header("content-type"), "application/json");
    error
}

#[tokio::test]
async fn what_is_not_there_has_the_same_shape() {
    let flux = Flux::start().await;
    for path in [
        "/",
        "/nothing",
        "/health/",
        "/jobs",
        "/workflows/x",
        "/schedules",
        "/ui",
        "/2015-03-31/functions/echo/invocations",
    ] {
        let reply = flux.api.get(path).await.expect(404);
        assert_eq!(error(&reply)["code"], "route_not_found", "{path}");
    }
    let reply = flux.api.get("/execute/echo").await.expect(405);
    assert_eq!(error(&reply)["code"], "method_not_allowed");
    assert_eq!(reply.header("allow"), "POST");
    let reply = flux.api.delete("/health").await.expect(405);
    assert_eq!(error(&reply)["code"], "method_not_allowed");
    let reply = flux.api.post("/execute/nobody", &json!({})).await.expect(404);
    assert_eq!(error(&reply)["code"], "function_not_found");
    let reply = flux.api.post("/execute/no.body", &json!({})).await.expect(404);
    assert!(error(&reply)["message"].as_str().expect("text").contains("A-Z"), "{}", reply.text());
    let reply = flux.api.get("/executions/nonsense").await.expect(404);
    assert_eq!(error(&reply)["code"], "execution_not_found");
    let reply = flux.api.get("/executions/exc-01890000-0000-7000-8000-000000000000").await.expect(404);
    assert_eq!(error(&reply)["code"], "execution_not_found");
    for number in ["seven", "0", "-1"] {
        let reply = flux.api.get(&format!("/dlq/echo/{number}")).await.expect(404);
        assert_eq!(error(&reply)["code"], "message_not_found");
        let said = format!("`{number}` is no sequence number of a dead letter");
        assert_eq!(error(&reply)["message"], said, "and the queue is not asked");
    }
    let reply = flux.api.get("/functions/%ff").await.expect(400);
    assert_eq!(error(&reply)["code"], "invalid_request");
    let reply = flux.api.put("/deploy/a.b", "application/zip", "x").await.expect(400);
    assert_eq!(error(&reply)["details"]["field"], "name");
}

#[tokio::test]
async fn a_request_id_is_echoed_if_it_is_sane() {
    let flux = Flux::start().await;
    let with = async |id: &str| {
        let request = flux.api.request(Method::GET, "/nothing").header("X-Request-Id", id);
        let reply = Api::try_send(request).await.expect("an answer").expect(404);
        error(&reply)["request_id"].as_str().expect("text").to_owned()
    };
    assert_eq!(with("order-7.a:b").await, "order-7.a:b");
    assert!(with("a b").await.starts_with("req-"));
    assert!(with(&"x".repeat(200)).await.starts_with("req-"));
    let (first, second) = (flux.api.get("/health").await, flux.api.get("/health").await);
    assert!(first.header("x-request-id").starts_with("req-"));
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

#[tokio::test]
async fn a_misspelt_parameter_names_the_right_one() {
    let flux = Flux::start().await;
    for (path, field, near) in [
        ("/executions?functoin=echo", "functoin", "`?function=`"),
        ("/executions/exc-01890000-0000-7000-8000-000000000000?wiat=3s", "wiat", "`?wait=`"),
        ("/functions?prefx=a", "prefx", "`?prefix=`"),
        ("/functions/echo?x=1", "x", "no query parameters"),
    ] {
        let reply = flux.api.get(path).await.expect(400);
        assert_eq!(error(&reply)["details"]["field"], field);
        assert!(error(&reply)["message"].as_str().expect("text").contains(near), "{}", reply.text());
    }
    for path in [
        "/executions?status=done",
        "/executions?since=yesterday",
        "/executions?limit=0",
        "/executions?cursor=7",
        "/executions?function=a.b",
        "/executions/exc-01890000-0000-7000-8000-000000000000?wait=61s",
    ] {
        let reply = flux.api.get(path).await.expect(400);
        assert_eq!(error(&reply)["code"], "invalid_request", "{path}");
        assert!(error(&reply)["details"]["field"].is_string(), "{path}");
    }
    let reply = flux.api.post("/execute/echo?timeout=soon", &json!({})).await.expect(400);
    assert_eq!(error(&reply)["details"]["field"], "timeout");
}

#[tokio::test]
async fn a_body_that_is_wrong_is_placed() {
    let flux = Flux::start().await;
    let post = async |body: &'static str| {
        let request =
            flux.api.request(Method::POST, "/execute/echo").header("Content-Type", "application/json").body(body);
        Api::try_send(request).await.expect("an answer").expect(400)
    };
    let reply = post("{\"payload\": 1,\n nonsense}").await;
    assert_eq!(error(&reply)["details"]["line"], 2, "{}", reply.text());
    let reply = post("{\"payloda\": 1}").await;
    assert!(error(&reply)["message"].as_str().expect("text").contains("did you mean `payload`"), "{}", reply.text());
    let reply = post("{\"args\": \"-v\"}").await;
    assert_eq!(error(&reply)["details"]["field"], "args");
    let reply = post("{\"args\": [\"a\\u0000b\"]}").await;
    assert_eq!(error(&reply)["details"]["field"], "args");

    let reply = flux.api.put("/functions", "application/yaml", "name: x\nhandlr: run\n").await.expect(422);
    assert_eq!(error(&reply)["code"], "invalid_function");
    assert_eq!(error(&reply)["details"]["field"], "handlr");
    let reply =
        flux.api.put("/functions", "application/yaml", "name: x\nhandler: run\nisolation: microvm\n").await.expect(422);
    assert_eq!(error(&reply)["code"], "unsupported");
    let reply = flux.api.put("/functions", "application/json", "{\"name\": }").await.expect(400);
    assert_eq!(error(&reply)["details"]["line"], 1);
    let reply = flux.api.put("/functions", "application/yaml", vec![0xff, 0xfe]).await.expect(400);
    assert_eq!(error(&reply)["code"], "invalid_request");
}

#[tokio::test]
async fn what_is_too_large_names_the_limit() {
    let flux = Flux::start().await;
    let reply = flux.api.put("/functions", "application/yaml", vec![b'#'; 256 * 1024 + 1]).await.expect(413);
    assert_eq!(error(&reply)["code"], "payload_too_large");
    assert_eq!(error(&reply)["details"]["limit_bytes"], 256 * 1024);
    // In chunks, without an announced length.
    let chunks = futures::stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![b'#'; 8 * 1024])));
    let request = flux.api.request(Method::PUT, "/functions").body(reqwest::Body::wrap_stream(chunks));
    let reply = Api::try_send(request).await.expect("an answer").expect(413);
    assert!(error(&reply)["message"].as_str().expect("text").contains("262144 bytes"), "{}", reply.text());
    let args: Vec<String> = (0..257).map(|n| n.to_string()).collect();
    let reply = flux.api.post("/execute/echo", &json!({ "args": args })).await.expect(400);
    assert_eq!(error(&reply)["details"]["field"], "args");
}

#[tokio::test]
async fn a_client_that_asks_first_does_not_have_to_send() {
    let flux = Flux::start().await;
    let mut wire = flux.connect().await;
    wire.send(&crate::flux::head(
        "PUT",
        "/functions",
        "Expect: 100-continue\r\nContent-Length: 99999999\r\nConnection: close\r\n",
    ))
    .await;
    let answer = wire.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}
