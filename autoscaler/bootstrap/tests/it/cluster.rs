//! From a bare machine to the first executed function.

use std::process::Command;

use async_trait::async_trait;
use flux_bootstrap::{AgentFiles, Heartbeats, Install};
use flux_pki::Certs;
use flux_protocol::{AgentId, PoolName};
use flux_testkit::{Api, File, FluxBin, FluxUp, eventually, in_own_network};

use crate::node::{Node, SOON};

/// An agent as a gateway hears of it.
struct Listed<'a>(&'a Api);

#[async_trait]
impl Heartbeats for Listed<'_> {
    async fn first_of(&self, agent: &AgentId) {
        eventually(SOON, "the agent to be online", || async {
            let all = self.0.get("/agents").await.json;
            let mut agents = all.as_array().into_iter().flatten();
            agents.any(|listed| listed["id"] == agent.as_str() && listed["status"] == "online")
        })
        .await;
    }
}

#[test]
fn a_bare_machine_joins_and_executes_a_function() {
    in_own_network(async {
        let config = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(config.path(), "gateway: { pools: [far] }\n").expect("written");
        let up = FluxUp::start_with(&["--config", config.path().to_str().expect("a path")]).await;
        let node = Node::start().await;
        let program = node.path("flux-agent");
        std::fs::copy(FluxBin::locate("flux-agent"), &program).expect("copied");
        // Without symbols it is a fifth.
        assert!(Command::new("strip").arg(&program).status().expect("strip").success());
        let mut recipe = node.recipe();
        recipe.install = Install::Upload(program);
        recipe.timing.heartbeat = SOON;
        let (agent, pool) = (AgentId::parse("far-1").expect("an id"), PoolName::parse("far").expect("a pool"));
        // The directory is the platform's, as whom the autoscaler runs.
        let certs = Certs::at(up.path("certs"));
        let settings = serde_json::json!({ "queue": { "url": up.queue_url() }, "agent": { "tasks": 2 } });
        let files = AgentFiles::mint(&certs, agent.clone(), &pool, &recipe, settings).expect("minted");
        give_to_owner(certs.dir());

        let finished = flux_bootstrap::bootstrap(&recipe, &node.pinned(), &files, &Listed(&up.api)).await;
        let finished = finished.unwrap_or_else(|failed| panic!("{failed}\n{}", failed.output));
        eprintln!("{:#?}", finished.steps);

        let yaml = "name: far-away\nhandler: run.sh\npool: far\nresources: { cpu: 10, memory: 16 }\n";
        up.api
            .deploy("far-away", yaml, &[File::executable("run.sh", "#!/bin/sh\necho \"hello from $FLUX_AGENT_ID\"\n")])
            .await;
        let began = tokio::time::Instant::now();
        let outcome = up.api.execute("far-away", &serde_json::json!({})).await.expect(200).json;
        eprintln!("first execution after {:?}: {outcome}", began.elapsed());
        assert_eq!(outcome["agent_id"].as_str().unwrap_or("far-1"), "far-1", "{outcome}");
        assert!(outcome.to_string().contains("hello from"), "{outcome}");

        // The same machine again: the agent is started anew, under the same identity, and still serves.
        let again = flux_bootstrap::bootstrap(&recipe, &node.pinned(), &files, &Listed(&up.api)).await;
        again.unwrap_or_else(|failed| panic!("{failed}\n{}", failed.output));
        up.api.execute("far-away", &serde_json::json!({})).await.expect(200);
    });
}

/// As root the gateway runs as another user, who owns the directory of certificates.
fn give_to_owner(dir: &std::path::Path) {
    let args = ["-R", &format!("--reference={}", dir.display())];
    assert!(Command::new("chown").args(args).arg(dir).status().expect("chown").success());
    // What is new is looked at when this changes.
    assert!(Command::new("touch").arg(dir.join("changed")).status().expect("touch").success());
}
