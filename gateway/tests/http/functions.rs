use flux_testkit::{File, archive};
use serde_json::json;

use crate::flux::Flux;

fn code(text: &str) -> Vec<u8> {
    archive(&[File::executable("run", text)])
}

#[tokio::test]
async fn a_function_from_registration_to_removal() {
    let flux = Flux::start().await;
    let api = &flux.api;
    let yaml = "name: life\nhandler: run\nresources: {cpu: 200, memory: 64}\nenv: {LEVEL: info}\n";
    let registered = api.put("/functions", "application/yaml", yaml).await.expect(201).json;
    assert_eq!(
        (&registered["status"], &registered["name"], &registered["version"]),
        (&json!("success"), &json!("life"), &json!(1))
    );
    assert_eq!(registered["agents"], json!(["agent-1"]));
    assert_eq!((&registered["registered_count"], &registered["total_agents"]), (&json!(1), &json!(1)));
    let refused = api.execute("life", &json!(1)).await.expect(409);
    assert_eq!(refused.json["error"]["code"], "function_not_deployed");

    let deployed = api.put("/deploy/life", "application/zip", code("one")).await.expect(201).json;
    assert_eq!((&deployed["status"], &deployed["deployed_count"]), (&json!("success"), &json!(1)));
    let digest = deployed["digest"].as_str().expect("a digest");
    assert!(digest.starts_with("sha256:"));
    let again = api.put("/deploy/life", "application/zip", code("one")).await.expect(201).json;
    assert_eq!((&again["version"], &again["changed"]), (&deployed["version"], &json!(false)));
    let second = api.put("/deploy/life", "application/zip", code("two")).await.expect(201).json;
    assert_eq!(second["version"].as_u64(), deployed["version"].as_u64().map(|version| version + 1));

    let shown = api.get("/functions/life").await.expect(200).json;
    assert_eq!(
        (&shown["name"], &shown["handler"], &shown["resources"]["cpu"]),
        (&json!("life"), &json!("run"), &json!(200))
    );
    let versions = shown["versions"].as_array().expect("versions");
    assert_eq!(versions.iter().filter(|version| version["current"] == true).count(), 1);
    let back = api.post("/functions/life/rollback", &json!({"version": deployed["version"]})).await.expect(200).json;
    assert_eq!(back["digest"], digest);
    let none = api.post("/functions/life/rollback", &json!({"version": 99})).await.expect(404);
    assert_eq!(none.json["error"]["code"], "version_not_found");
    api.post("/functions/life/rollback", &json!({"version": "1"})).await.expect(400);

    assert_eq!(api.delete("/functions/life").await.expect(200).json, json!({"status": "removed", "name": "life"}));
    api.get("/functions/life").await.expect(404);
    api.delete("/functions/life").await.expect(404);
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let flux = Flux::start().await;
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = flux.api.get(&format!("/functions?limit=2{cursor}")).await.expect(200).json;
        names.extend(
            page["functions"]
                .as_array()
                .expect("rows")
                .iter()
                .map(|row| row["name"].as_str().expect("text").to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["answer", "echo", "fail", "lines", "slow"]);
    let some = flux.api.get("/functions?prefix=e").await.expect(200).json;
    assert_eq!(some["functions"].as_array().expect("rows").len(), 1);
}

#[tokio::test]
async fn registration_takes_json_and_refuses_what_is_no_archive() {
    let flux = Flux::start().await;
    let body = json!({"name": "in-json", "handler": "run"}).to_string();
    flux.api.put("/functions", "application/json", body.clone()).await.expect(201);
    let again = flux.api.put("/functions", "application/yaml", body).await.expect(201);
    assert_eq!(again.json["changed"], false, "JSON is YAML");
    for wrong in ["", "no zip at all"] {
        let refused = flux.api.put("/deploy/in-json", "application/zip", wrong).await.expect(422);
        assert_eq!(refused.json["error"]["code"], "invalid_archive", "{}", refused.text());
    }
    let missing = flux.api.put("/deploy/unregistered", "application/zip", code("x")).await;
    assert!([404, 422].contains(&missing.status), "{}", missing.text());
}

#[tokio::test]
async fn agents_are_shown_with_what_they_can() {
    let flux = Flux::start().await;
    let agents = flux.api.with_key("").get("/agents").await.expect(200).json;
    let agent = &agents.as_array().expect("agents")[0];
    assert_eq!(
        (&agent["id"], &agent["status"], &agent["active_count"]),
        (&json!("agent-1"), &json!("online"), &json!(0))
    );
    assert_eq!(agent["capabilities"]["tiers"], json!(["process"]));
    for field in [
        "cpu_percent",
        "memory_percent",
        "memory_total_mb",
        "memory_used_mb",
        "active_tasks",
        "uptime_seconds",
        "collected_at",
    ] {
        assert!(agent["node_status"].get(field).is_some(), "{field}");
    }
    let resources = flux.api.get("/resources").await.expect(200).json;
    assert!(resources["flux"]["node"]["memory_total_mb"].as_u64().expect("a number") > 0);
    assert_eq!(resources["agents"][0]["id"], "agent-1");
    assert!(resources["agents"][0]["node"].is_object());
}
