//! API keys over HTTP: scopes, expiry, rotation, rates, several gateways.

use std::time::Duration;

use flux_testkit::Api;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    flux::{Flux, head},
    world::eventually,
};

/// A new key's id and text.
async fn key(api: &Api, body: Value) -> (String, String) {
    let made = api.post("/keys", &body).await.expect(201).json;
    let text = |field: &str| made[field].as_str().expect(field).to_owned();
    (text("id"), text("key"))
}

async fn status(api: &Api, method: Method, path: &str) -> u16 {
    Api::try_send(api.request(method, path)).await.expect("an answer").status
}

#[tokio::test]
async fn each_scope_opens_its_rows_and_no_others() {
    let flux = Flux::start().await;
    let with = async |scopes: &[&str]| {
        let (_, text) = key(&flux.api, json!({"name": "t", "scopes": scopes})).await;
        flux.api.with_key(text)
    };
    let (admin, deploy, read, invoke) =
        (with(&["admin"]).await, with(&["deploy"]).await, with(&["read"]).await, with(&["invoke:ec*"]).await);
    let rows: &[(Method, &str, [bool; 4])] = &[
        // admin, deploy, read, invoke:ec*
        (Method::GET, "/functions", [true, true, true, false]),
        (Method::GET, "/functions/echo", [true, true, true, false]),
        (Method::PUT, "/functions", [true, true, false, false]),
        (Method::DELETE, "/functions/nobody", [true, true, false, false]),
        (Method::PUT, "/deploy/echo", [true, true, false, false]),
        (Method::POST, "/functions/echo/rollback", [true, true, false, false]),
        (Method::POST, "/execute/echo", [true, false, false, true]),
        (Method::POST, "/execute/%65cho", [true, false, false, true]),
        (Method::POST, "/execute/echo/async", [true, false, false, true]),
        (Method::POST, "/execute/fail", [true, false, false, false]),
        (Method::POST, "/execute/fail/async", [true, false, false, false]),
        (Method::GET, "/fn/echo", [true, false, false, true]),
        (Method::PATCH, "/fn/echo/a/b", [true, false, false, true]),
        (Method::GET, "/fn/fail/", [true, false, false, false]),
        (Method::GET, "/fn/%66ail/echo", [true, false, false, false]),
        (Method::GET, "/executions", [true, false, true, false]),
        (Method::GET, "/metrics", [true, false, true, false]),
        (Method::GET, "/resources", [true, false, true, false]),
        (Method::GET, "/dlq", [true, false, true, false]),
        (Method::DELETE, "/dlq/echo", [true, true, false, false]),
        (Method::POST, "/dlq/echo/redrive", [true, false, false, true]),
        (Method::POST, "/dlq/fail/redrive", [true, false, false, false]),
        (Method::GET, "/keys", [true, false, false, false]),
        (Method::POST, "/keys", [true, false, false, false]),
        (Method::DELETE, "/keys/nobody", [true, false, false, false]),
        (Method::POST, "/keys/nobody/rotate", [true, false, false, false]),
        (Method::GET, "/audit", [true, false, false, false]),
        (Method::GET, "/health", [true, true, true, true]),
    ];
    for (method, path, open) in rows {
        for (api, (who, open)) in [&admin, &deploy, &read, &invoke]
            .into_iter()
            .zip(["admin", "deploy", "read", "invoke"].into_iter().zip(open))
        {
            let reply = Api::try_send(api.request(method.clone(), path)).await.expect("an answer");
            assert_eq!(reply.status != 403, *open, "{method} {path} as {who}: {}", reply.text());
            if reply.status == 403 {
                assert_eq!(reply.json["error"]["code"], "forbidden");
                assert!(reply.json["error"]["details"]["needs"].is_array(), "{}", reply.text());
            }
            assert_ne!(reply.status, 401, "{method} {path} as {who}");
        }
    }
    assert_eq!(status(&read, Method::GET, "/no/such/route").await, 404);
    assert_eq!(status(&read, Method::PATCH, "/functions").await, 403, "nothing says that it may");
}

#[tokio::test]
async fn who_runs_a_function_sees_and_stops_its_executions_alone() {
    let flux = Flux::start().await;
    let (_, text) = key(&flux.api, json!({"name": "t", "scopes": ["invoke:slow"]})).await;
    let runner = flux.api.with_key(text);
    let own = runner.execute_async("slow", &json!(1)).await;
    let other = flux.api.execute_async("lines", &json!(1)).await;
    let path = |id: &str, more: &str| format!("/executions/{id}{more}");
    for more in ["", "?wait=10ms", "/why"] {
        runner.get(&path(&own, more)).await.expect(200);
        runner.get(&path(&other, more)).await.expect(403);
    }
    assert_eq!(status(&runner, Method::GET, &path(&other, "/stream")).await, 403);
    runner.delete(&path(&other, "")).await.expect(403);
    runner.post("/tickets", &json!({"execution_id": other})).await.expect(403);
    runner.post("/tickets", &json!({"execution_id": own})).await.expect(201);
    runner.delete(&path(&own, "")).await.expect(200);
}

#[tokio::test]
async fn a_ticket_watches_one_execution() {
    let flux = Flux::start().await;
    let (one, two) = (flux.api.execute_async("slow", &json!(1)).await, flux.api.execute_async("slow", &json!(2)).await);
    let ticket = flux.api.post("/tickets", &json!({"execution_id": one})).await.expect(201).json;
    let ticket = ticket["ticket"].as_str().expect("a ticket").to_owned();
    let bare = flux.api.with_key("");
    flux.api.delete(&format!("/executions/{one}")).await.expect(200);
    let watched = bare.get(&format!("/executions/{one}/stream?ticket={ticket}")).await.expect(200);
    assert!(watched.text().contains("event: end"), "{}", watched.text());
    for (path, expected) in [
        (format!("/executions/{two}/stream?ticket={ticket}"), 403),
        (format!("/executions/{one}?ticket={ticket}"), 403),
        (format!("/executions/{one}/why?ticket={ticket}"), 403),
        (format!("/executions?ticket={ticket}"), 401),
        (format!("/keys?ticket={ticket}"), 401),
        (format!("/executions/{one}/stream?ticket={}", &ticket[1..]), 401),
        (format!("/executions/{one}/stream?ticket="), 401),
        (format!("/executions/{one}/stream"), 401),
    ] {
        let reply = bare.get(&path).await;
        assert!(reply.status == expected || (expected == 403 && reply.status == 400), "{path}: {}", reply.text());
    }
    flux.api.delete(&format!("/executions/{two}")).await.expect(200);
    flux.api.post("/tickets", &json!({"execution_id": "exc-01890000-0000-7000-8000-000000000000"})).await.expect(404);
}

#[tokio::test]
async fn a_key_is_shown_once_and_what_is_kept_opens_nothing() {
    let flux = Flux::start().await;
    let (id, text) = key(&flux.api, json!({"name": "ci", "scopes": ["read"], "expires_in": "1h"})).await;
    assert!(text.starts_with(&format!("flux_{id}_")) && text.len() == 5 + 12 + 1 + 43, "{text}");
    let listed = flux.api.get("/keys").await.expect(200);
    assert!(!listed.text().contains(&text[18..]), "{}", listed.text());
    let [shown] = &listed.json["keys"].as_array().expect("keys")[..] else { panic!("{}", listed.text()) };
    assert_eq!((&shown["name"], &shown["scopes"]), (&json!("ci"), &json!(["read"])));
    assert_eq!(shown["created_by"], "the configured key");
    assert!(shown.get("last_used_at").is_none() && shown.get("digest").is_none(), "{shown}");
    let stored = flux.scripted.store().api_keys().await.expect("read");
    assert!(!format!("{stored:?}").contains(&text[18..]));

    flux.api.with_key(&text).get("/functions").await.expect(200);
    eventually("its use is written", || async {
        flux.scripted.store().api_keys().await.expect("read")[0].last_used_at.is_some()
    })
    .await;
    for wrong in ["flux_", &text[..text.len() - 1], &format!("{text}x"), &text.to_uppercase(), &format!("flux_{id}_")] {
        flux.api.with_key(wrong).get("/functions").await.expect(401);
    }
    let audit = flux.api.get("/audit").await.expect(200);
    assert!(!audit.text().contains(&text[18..]), "{}", audit.text());
    let entry = &audit.json["entries"][0];
    assert_eq!((&entry["method"], &entry["path"], &entry["status"]), (&json!("POST"), &json!("/keys"), &json!(201)));
    assert_eq!(entry["what"], format!("key {id} (ci) with read"));
    assert!(entry["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{entry}");
}

#[tokio::test]
async fn what_a_new_key_must_say() {
    let flux = Flux::start().await;
    for (body, field) in [
        (json!({"scopes": ["read"]}), "name"),
        (json!({"name": " ", "scopes": ["read"]}), "name"),
        (json!({"name": "a\nb", "scopes": ["read"]}), "name"),
        (json!({"name": "a", "scopes": []}), "scopes"),
        (json!({"name": "a", "scopes": ["reed"]}), "scopes"),
        (json!({"name": "a", "scopes": ["invoke:a b"]}), "scopes"),
        (json!({"name": "a", "scopes": ["read"], "expires_in": "soon"}), "expires_in"),
        (json!({"name": "a", "scopes": ["read"], "expires_in": "0s"}), "expires_in"),
        (json!({"name": "a", "scopes": ["read"], "requests_per_second": 0}), "requests_per_second"),
        (json!({"name": "a", "scopes": ["read"], "scope": "x"}), "scope"),
    ] {
        let refused = flux.api.post("/keys", &body).await.expect(400);
        assert_eq!(refused.json["error"]["details"]["field"], field, "{}", refused.text());
    }
    let (id, _) = key(&flux.api, json!({"name": "a", "scopes": ["read"]})).await;
    flux.api.post(&format!("/keys/{id}/rotate"), &json!({"overlap": "31d"})).await.expect(400);
    flux.api.post("/keys/nobody/rotate", &json!({})).await.expect(404);
    assert_eq!(flux.api.delete("/keys/nobody").await.expect(404).json["error"]["code"], "key_not_found");
}

#[tokio::test]
async fn rotation_overlaps_and_ends() {
    let flux = Flux::start().await;
    let (id, first) = key(&flux.api, json!({"name": "a", "scopes": ["read"]})).await;
    let rotate = async |overlap: &str| {
        let rotated = flux.api.post(&format!("/keys/{id}/rotate"), &json!({"overlap": overlap})).await.expect(200).json;
        assert_eq!(rotated["id"], id);
        rotated["key"].as_str().expect("a key").to_owned()
    };
    let opens = async |text: &str| flux.api.with_key(text).get("/functions").await.status == 200;
    let second = rotate("1h").await;
    assert!(opens(&first).await && opens(&second).await, "both, for an hour");
    let third = rotate("0s").await;
    assert_eq!((opens(&first).await, opens(&second).await, opens(&third).await), (false, false, true));
    let fourth = rotate("300ms").await;
    assert!(opens(&fourth).await);
    eventually("the overlap ends", || async { !opens(&third).await }).await;
    assert!(opens(&fourth).await);
}

#[tokio::test]
async fn an_expired_key_says_so() {
    let flux = Flux::start().await;
    let (_, text) = key(&flux.api, json!({"name": "a", "scopes": ["read"], "expires_in": "400ms"})).await;
    let api = flux.api.with_key(&text);
    eventually("it expires", || async { api.get("/functions").await.status == 401 }).await;
    assert!(api.get("/functions").await.text().contains("expired at"));
    let guessed = flux.api.with_key(format!("{}x", &text[..text.len() - 1])).get("/functions").await.expect(401);
    assert!(!guessed.text().contains("expired"), "only its bearer learns that");
}

#[tokio::test]
async fn a_key_has_its_rate() {
    let flux = Flux::start().await;
    let (_, text) = key(&flux.api, json!({"name": "a", "scopes": ["read"], "requests_per_second": 3})).await;
    let api = flux.api.with_key(text);
    let mut refused = None;
    for _ in 0..200 {
        let reply = api.get("/functions").await;
        if reply.status == 429 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.expect("200 at once are too many");
    assert_eq!(refused.json["error"]["code"], "too_many_requests");
    assert_eq!(refused.header("retry-after"), "1");
    flux.api.get("/functions").await.expect(200);
    eventually("there is room again", || async { api.get("/functions").await.status == 200 }).await;
}

#[tokio::test]
async fn a_change_is_in_force_on_every_gateway_within_a_second() {
    let flux = Flux::start().await;
    let other = flux.beside().await;
    let (id, text) = key(&flux.api, json!({"name": "a", "scopes": ["read"]})).await;
    let there = other.with_key(&text);
    let within = async |what: &str, expected: u16| {
        let begun = tokio::time::Instant::now();
        eventually(what, || async { there.get("/functions").await.status == expected }).await;
        // The store is read again every 10 s anyway: less than that is the signal's.
        assert!(begun.elapsed() < Duration::from_secs(5), "{what} after {:?}", begun.elapsed());
    };
    within("the other gateway knows the key", 200).await;
    flux.api.delete(&format!("/keys/{id}")).await.expect(200);
    flux.api.with_key(&text).get("/functions").await.expect(401);
    within("the other gateway refuses it", 401).await;
}

#[tokio::test]
async fn refused_changes_are_in_the_audit_log_too() {
    let flux = Flux::start().await;
    let (id, text) = key(&flux.api, json!({"name": "reader", "scopes": ["read"]})).await;
    let reader = flux.api.with_key(text);
    let request = reader.request(Method::PUT, "/deploy/echo").header("X-Request-Id", "mine-1").body("zip");
    Api::try_send(request).await.expect("an answer").expect(403);
    reader.get("/audit").await.expect(403);
    flux.api.with_key("nobody").delete("/functions/echo").await.expect(401);
    flux.api.delete("/functions/fail").await.expect(200);
    let all = flux.api.get("/audit").await.expect(200).json["entries"].clone();
    let shown: Vec<_> = all
        .as_array()
        .expect("entries")
        .iter()
        .map(|entry| {
            format!("{} {} {} {}", entry["who"], entry["method"], entry["path"], entry["status"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        shown,
        [
            "the configured key DELETE /functions/fail 200".to_owned(),
            format!("key {id} (reader) PUT /deploy/echo 403"),
            "the configured key POST /keys 201".to_owned(),
        ],
        "and no stranger's"
    );
    assert_eq!((&all[1]["request_id"], &all[1]["what"]), (&json!("mine-1"), &json!("forbidden")));
    let page = flux.api.get("/audit?limit=2").await.expect(200).json;
    let cursor = page["next_cursor"].as_str().expect("there is more");
    let rest = flux.api.get(&format!("/audit?cursor={cursor}")).await.expect(200).json;
    assert_eq!(rest["entries"], json!([all[2]]));
}

#[tokio::test]
async fn who_goes_away_does_not_take_the_audit_log_s_entry_along() {
    let flux = Flux::start().await;
    let mut wire = flux.connect().await;
    let more = "Content-Type: application/zip\r\nContent-Length: 100\r\nExpect: 100-continue\r\n";
    wire.send(&head("PUT", "/deploy/half", more)).await;
    // The handler waits for the body.
    wire.until("100 Continue").await;
    drop(wire);
    eventually("its entry is there", || async {
        let audit = flux.api.get("/audit").await.expect(200).json;
        let entry = &audit["entries"][0];
        entry["path"] == "/deploy/half" && entry["what"] == "invalid_request"
    })
    .await;
}

#[tokio::test]
async fn agents_are_public_and_their_room_is_not() {
    let flux = Flux::start().await;
    let public = flux.api.with_key("").get("/agents").await.expect(200).json[0].clone();
    let mine = flux.api.get("/agents").await.expect(200).json[0].clone();
    for field in ["id", "address", "active_count", "status", "last_heartbeat", "node_status", "capabilities"] {
        assert!(!public[field].is_null(), "{field}: {public}");
    }
    for field in ["pool", "total", "free"] {
        assert!(public.get(field).is_none() && !mine[field].is_null(), "{field}: {public} {mine}");
    }
}
