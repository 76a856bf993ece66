//! Functions in containers as a user has them, and who holds Docker's socket.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use flux_testkit::{Dockerd, File, FluxUp, assert_no_processes_left, eventually};
use serde_json::json;

use crate::cluster::flux;

const ENDS: Duration = Duration::from_secs(30);
const HANDLER: &str =
    "import os\n\ndef handler(payload, context):\n    return {'uid': os.getuid(), 'n': payload['n']}\n";

fn yaml(name: &str) -> String {
    let image = Dockerd::IMAGE;
    format!(
        "name: {name}\nisolation: container\nimage: {image}\nruntime: python\nhandler: main.handler\nnetwork: none\nresources: {{ cpu: 1000, memory: 128 }}\n"
    )
}

async fn agents_say(up: &FluxUp, what: &str, said: bool) {
    eventually(ENDS, format!("`flux agents` to have {what}: {said}"), || async {
        let agents = up.api.get("/agents").await.json[0].clone();
        agents["capabilities"]["tiers"].as_array().is_some_and(|tiers| tiers.iter().any(|tier| tier == what)) == said
    })
    .await;
}

#[tokio::test]
async fn a_function_in_a_container_from_its_deployment_to_a_docker_that_is_gone() {
    let mut docker = Dockerd::start().await;
    let config = docker.flux_config();
    let mut up = FluxUp::start_with(&["--config", &config.path().to_string_lossy()]).await;
    agents_say(&up, "container", true).await;
    let deployed = up.api.deploy("f", &yaml("f"), &[File::plain("main.py", HANDLER)]).await;
    assert_eq!(deployed["warning"], json!(null));
    for (n, start) in [(1, "cold"), (2, "warm")] {
        let record = up.api.execute("f", &json!({ "n": n })).await.expect(200).json;
        assert_eq!((&record["start"], &record["result"]["n"]), (&json!(start), &json!(n)), "{record:#}");
        assert_ne!(record["result"]["uid"], json!(0));
    }
    let table = flux(&up, &["agents"]).await.ok().stdout;
    let is_root = nix::unistd::geteuid().is_root();
    assert_eq!(table.contains("container_network_guard"), !is_root, "{table}");

    // Whoever parses what strangers send holds no socket of Docker's: the driver does.
    let driver = up.process.descendant("__containers");
    let worker = up.process.descendant("__serve");
    if is_root {
        let mode = std::fs::metadata(docker.socket()).expect("there").permissions().mode();
        assert_eq!(mode & 0o007, 0, "who is neither root nor of Docker's group has no access");
        let status = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let (worker, driver) = (status(worker.pid), status(driver.pid));
        assert!(driver.contains("\nUid:\t0\t"), "{driver}");
        assert!(!worker.contains("\nUid:\t0\t") && worker.contains("\nGroups:\t \n"), "{worker}");
    }

    // All of Flux dies at once: its containers go, and the next one finds nothing of them.
    up.restart().await;
    agents_say(&up, "container", true).await;
    docker.until_empty().await;
    assert_eq!(up.api.execute("f", &json!({ "n": 3 })).await.expect(200).json["start"], json!("cold"));

    // Docker is gone: it is said, at once and when somebody asks.
    docker.kill9();
    agents_say(&up, "container", false).await;
    let deployed = up.api.deploy("g", &yaml("g"), &[File::plain("main.py", HANDLER)]).await;
    assert!(deployed["warning"].as_str().is_some_and(|text| text.contains("isolation `container`")), "{deployed:#}");
    up.api.execute("g", &json!({ "n": 1 })).await.expect(503);
    let id = up.api.execute_async("g", &json!({ "n": 4 })).await;
    let why = up.api.get(&format!("/executions/{id}/why")).await.expect(200).json;
    assert_eq!(why["reason"], json!("no_capability"), "{why:#}");
    let table = flux(&up, &["agents"]).await.ok().stdout;
    assert!(table.contains("container") && !table.contains("container_network_guard"), "{table}");

    // It comes back, and what waited runs.
    docker.restart().await;
    assert_eq!(up.api.outcome(&id, ENDS).await["result"]["n"], json!(4));
    assert!(up.stop().await.success());
    docker.until_empty().await;
    assert_no_processes_left(&up.marker()).await;
}
