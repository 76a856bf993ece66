//! The configured kind `aws`, by EC2's own client, at moto's server: to the launch. moto's machines are none: nothing is on their
//! console, so that nothing is ever spoken to, and they cannot be set up.

use std::time::Duration;

use flux_testkit::{Api, File, FluxCommand, FluxUp, Moto, eventually, eventually_some, passable_dir};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(120);

fn config(up: &FluxUp, moto: &Moto, ami: &str, node_type: &str) -> String {
    format!(
        "certs_dir: {certs:?}\nqueue: {{ url: {queue:?} }}\nautoscaler:\n  pool: cloud\n  gateway_url: {url:?}\n  api_key: {key:?}\n  \
         poll_interval_sec: 0.5\n  target_queue_seconds: 4\n  providers:\n    - kind: aws\n      max_nodes: 2\n      \
         node_types: [{{ name: {node_type}, tasks: 4 }}]\n      aws:\n        region: eu-central-1\n        ami: {ami:?}\n        \
         endpoint_url: {endpoint:?}\n        keys: {{ access_key_id: AKIATEST, secret_access_key: none-of-it }}\n      \
         ssh:\n        address: private\n        wait_sec: 2\n        agent: {{ present: true }}\n        queue_url: {queue:?}\n",
        certs = up.path("certs").display().to_string(),
        queue = up.queue_url(),
        url = up.api.base(),
        key = up.api.key(),
        endpoint = moto.url(),
    )
}

/// Of every machine at moto: its state.
async fn states(moto: &Moto) -> Vec<String> {
    let all = moto.ec2("DescribeInstances").await;
    let states = all.split("<instanceState>").skip(1).filter_map(|state| {
        let (_, name) = state.split_once("<name>")?;
        Some(name.split_once("</name>")?.0.to_owned())
    });
    states.collect()
}

async fn not_set_up(api: &Api) -> Option<Value> {
    let said = api.get("/autoscaler").await.json;
    let decisions = said["decisions"].as_array()?.clone();
    let mut actions = decisions.iter().flat_map(|one| one["actions"].as_array().cloned().unwrap_or_default());
    actions.find(|action| action["reason"]["rule"] == "set_up")
}

#[tokio::test]
async fn a_machine_is_launched_cannot_be_set_up_and_is_terminated() {
    let dir = passable_dir("flux-moto-scaled-");
    let gateway = dir.path().join("flux.yaml");
    std::fs::write(&gateway, "gateway: { pools: [cloud] }\n").expect("written");
    let up = FluxUp::start_with(&["--config", &gateway.to_string_lossy()]).await;
    let moto = Moto::start().await;
    let file = dir.path().join("autoscaler.yaml");

    // A type that there is not is found out before anything is bought.
    std::fs::write(&file, config(&up, &moto, "ami-12c6146b", "t3.smal")).expect("written");
    let refused = FluxCommand::new("flux-autoscaler").arg("--config").arg(&file).output(WITHIN).await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("`node_types`: aws has no `t3.smal`"), "{told}");

    std::fs::write(&file, config(&up, &moto, "ami-12c6146b", "t3.small")).expect("written");
    let mut autoscaler = FluxCommand::new("flux-autoscaler").arg("--config").arg(&file).spawn();
    let yaml = "name: far\nhandler: run.sh\npool: cloud\nresources: { cpu: 10, memory: 16 }\n";
    up.api.deploy("far", yaml, &[File::executable("run.sh", "#!/bin/sh\necho far\n")]).await;
    up.api.execute_async("far", &json!({})).await;
    let failed = eventually_some(WITHIN, "a reason", || async { not_set_up(&up.api).await }).await;
    let why = "learning the host key failed at try 1: the console showed no host key within 2 s";
    assert_eq!((&failed["action"], &failed["reason"]["said"]), (&json!("terminate"), &json!(why)), "{failed:#}");
    eventually(WITHIN, "no machine", || async {
        let states = states(&moto).await;
        !states.is_empty() && states.iter().all(|state| state == "terminated")
    })
    .await;
    let log = autoscaler.log();
    assert!(!log.contains("none-of-it") && !log.contains(up.api.key()), "a secret is in the log: {log}");
    autoscaler.terminate();
    assert!(autoscaler.wait_exit(WITHIN).await.success(), "{}", autoscaler.log());
}
