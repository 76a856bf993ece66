//! A whole Flux whose nodes are agents of this machine: it grows under load, shrinks after it, and loses nothing.

mod cloud;

use std::time::Duration;

use flux_testkit::{
    Api, File, FluxCommand, FluxProcess, FluxUp, assert_no_processes_left, eventually, passable_dir, processes_matching,
};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(120);
const INVOCATIONS: usize = 120;

/// Times are short, so that minutes are seconds; but for the thresholds' window: the CPU of this machine is everybody's. Functions of the pool `cloud` run on nodes alone: the agent of `flux up` is in
/// another, and not the autoscaler's to touch.
fn config(up: &FluxUp, dir: &std::path::Path) -> String {
    format!(
        "certs_dir: {certs:?}\nqueue: {{ url: {queue:?} }}\nautoscaler:\n  pool: cloud\n  gateway_url: {url:?}\n  api_key: {key:?}\n  dir: {dir:?}\n  \
         poll_interval_sec: 0.5\n  evaluation_window_sec: 3600\n  cooldown_sec: 2\n  target_queue_seconds: 4\n  load_window_sec: 4\n  \
         panic_window_sec: 1\n  scale_down_delay_sec: 2\n  recurring_gap_sec: 0\n  expected_boot_sec: 2\n  drain_timeout_sec: 60\n  providers:\n    \
         - kind: local\n      min_nodes: 1\n      max_nodes: 3\n      node_types: [{{ name: small, tasks: 2, price_per_hour: 0.01 }}]\n",
        certs = up.path("certs").display().to_string(),
        queue = up.queue_url(),
        url = up.api.base(),
        key = up.api.key(),
        dir = dir.display().to_string(),
    )
}

fn start(config: &std::path::Path) -> FluxProcess {
    FluxCommand::new("flux-autoscaler").arg("--config").arg(config).spawn()
}

/// Agents outlive the autoscaler, as they are to: but not a test that failed.
struct Nodes(String);

impl Drop for Nodes {
    fn drop(&mut self) {
        for process in processes_matching(&self.0) {
            process.kill9();
        }
    }
}

/// Nodes that are heard of, by what the API says.
async fn nodes(api: &Api) -> Vec<Value> {
    let agents = api.get("/agents").await.json;
    let all = agents.as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|agent| agent["provider"] == "local" && agent["status"] != "offline").collect()
}

#[tokio::test]
async fn nodes_come_with_the_load_and_go_after_it_and_nothing_is_lost() {
    let dir = passable_dir("flux-scaled-");
    let _nodes = Nodes(dir.path().join("nodes").to_string_lossy().into_owned());
    let gateway = dir.path().join("flux.yaml");
    std::fs::write(&gateway, "gateway: { pools: [cloud] }\n").expect("a configuration");
    let up = FluxUp::start_with(&["--config", &gateway.to_string_lossy()]).await;
    let api = &up.api;
    api.get("/autoscaler").await.expect(503);
    let file = dir.path().join("autoscaler.yaml");
    std::fs::write(&file, config(&up, &dir.path().join("nodes"))).expect("a configuration");
    let mut autoscaler = start(&file);
    eventually(WITHIN, "the least number of nodes", || async { nodes(api).await.len() == 1 }).await;

    let yaml = "name: nap\nhandler: run.sh\npool: cloud\nresources: { cpu: 10, memory: 16 }\nmax_concurrency: 2\ntimeout: 60\n";
    api.deploy("nap", yaml, &[File::executable("run.sh", "#!/bin/sh\nsleep 0.4; echo rested\n")]).await;
    let mut ids = Vec::new();
    for n in 0..INVOCATIONS {
        ids.push(api.execute_async("nap", &json!({ "n": n })).await);
    }
    eventually(WITHIN, "more nodes", || async { nodes(api).await.len() >= 2 }).await;
    // One that comes after a crash knows what there is.
    autoscaler.kill9();
    drop(autoscaler);
    let mut autoscaler = start(&file);
    let mut succeeded = 0;
    for id in &ids {
        let record = api.outcome(id, WITHIN).await;
        assert_eq!(record["status"], "success", "{record:#}");
        succeeded += 1;
    }
    assert_eq!(succeeded, INVOCATIONS);
    eventually(WITHIN, "one node again", || async {
        let said = api.get("/autoscaler").await.json;
        let kept = said["nodes"].as_array().cloned().unwrap_or_default();
        kept.len() == 1 && kept[0]["state"] == "ready" && nodes(api).await.len() == 1
    })
    .await;

    let said = api.get("/autoscaler").await.expect(200).json;
    let decided: Vec<String> = said["decisions"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|decision| decision["actions"].as_array().cloned().unwrap_or_default())
        .map(|action| {
            format!("{} {}", action["action"].as_str().unwrap_or("?"), action["reason"]["rule"].as_str().unwrap_or("?"))
        })
        .collect();
    for expected in ["launch minimum", "drain unneeded", "terminate drained"] {
        assert!(decided.iter().any(|one| one == expected), "no `{expected}` in {decided:?}");
    }
    let node = &nodes(api).await[0];
    assert_eq!((&node["instance_type"], &node["provider_id"]), (&json!("small"), &node["id"]), "{node:#}");

    let explained = FluxCommand::new("flux")
        .args(["autoscaler", "explain", "--url", api.base(), "--key", api.key()])
        .output(WITHIN)
        .await;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("drain") && explained.contains("wanted_slots"), "{explained}");

    let removed = api.delete("/nodes").await.expect(200).json;
    assert_eq!(removed, json!({ "status": "removed", "removed": 1 }), "{said:#}");
    assert_no_processes_left(&dir.path().join("nodes").to_string_lossy()).await;
    autoscaler.terminate();
    assert!(autoscaler.wait_exit(WITHIN).await.success(), "{}", autoscaler.log());
}
