//! The processes: a Flux, and an autoscaler whose nodes are agents of this machine.

use std::{path::Path, time::Duration};

use flux_pki::Certs;
use flux_protocol::{identity::Grant, subject};
use flux_testkit::{
    Api, File, FluxCommand, FluxProcess, FluxUp, assert_no_processes_left, eventually, passable_dir, processes_matching,
};
use tempfile::TempDir;

use super::{FUNCTION, Node, PATIENT, ScaleOut, TARGET_QUEUE, WITHIN};

const ENDS_WITHIN: Duration = Duration::from_secs(60);

pub(super) struct Elastic {
    up: FluxUp,
    autoscaler: FluxProcess,
    nodes: LocalNodes,
    dir: TempDir,
}

/// Agents outlive the autoscaler, as they are to: but not a run that failed.
struct LocalNodes(String);

impl Drop for LocalNodes {
    fn drop(&mut self) {
        for process in processes_matching(&self.0) {
            process.kill9();
        }
    }
}

impl Elastic {
    /// With no node yet. Functions of the pool `cloud` run on nodes alone: the agent of `flux up` is in another.
    pub(super) async fn start(size: &ScaleOut) -> Self {
        flux_runtime::install_tls_provider();
        let dir = passable_dir("flux-scale-out-");
        let nodes = LocalNodes(dir.path().join("nodes").to_string_lossy().into_owned());
        let gateway = dir.path().join("flux.yaml");
        std::fs::write(&gateway, "gateway: { pools: [cloud] }\n").expect("a configuration");
        let up = FluxUp::start_with(&["--config", &gateway.to_string_lossy()]).await;
        let file = dir.path().join("autoscaler.yaml");
        std::fs::write(&file, config(size, &up, Path::new(&nodes.0))).expect("a configuration");
        let autoscaler = FluxCommand::new("flux-autoscaler").arg("--config").arg(&file).spawn();
        for (name, further) in
            [(FUNCTION, ""), (PATIENT, "resource_pressure_behavior: wait\nmax_concurrency_behavior: wait\n")]
        {
            let yaml = format!(
                "name: {name}\nhandler: run.sh\npool: cloud\nresources: {{ cpu: 10, memory: 16 }}\ntimeout: 60\n{further}"
            );
            let script = format!("#!/bin/sh\nsleep {}\n", size.nap.as_secs_f64());
            up.api.deploy(name, &yaml, &[File::executable("run.sh", script)]).await;
        }
        eventually(WITHIN, "the autoscaler", || async { up.api.get("/autoscaler").await.status == 200 }).await;
        Self { up, autoscaler, nodes, dir }
    }

    pub(super) fn api(&self) -> &Api {
        &self.up.api
    }

    pub(super) async fn heartbeats(&self) -> async_nats::Subscriber {
        let client = self.up.queue().await;
        let beats = client.subscribe(subject::heartbeats()).await.expect("a subscription");
        client.flush().await.expect("it is the server's");
        beats
    }

    /// Of these nodes, the ones whose identity was not revoked.
    pub(super) fn let_in(&self, nodes: &[Node]) -> Vec<String> {
        let grants = Certs::at(self.up.path("certs")).grants().expect("the identities");
        let agents = grants.iter().filter_map(|grant| match grant {
            Grant::Agent { id, .. } => Some(id.to_string()),
            Grant::Producer { .. } => None,
        });
        agents.filter(|id| nodes.iter().any(|node| node.id == *id)).collect()
    }

    /// In order, with nothing left behind.
    pub(super) async fn end(&mut self) {
        assert_no_processes_left(&self.nodes.0).await;
        let left: Vec<_> = std::fs::read_dir(&self.nodes.0).expect("the nodes' directory").flatten().collect();
        assert!(left.is_empty(), "{left:?} in {}", self.dir.path().display());
        self.autoscaler.terminate();
        let ended = self.autoscaler.wait_exit(ENDS_WITHIN).await;
        assert!(ended.success(), "{ended}: {}", self.autoscaler.log());
        let ended = self.up.stop().await;
        assert!(ended.success(), "{ended}: {}", self.up.process.log());
    }
}

/// Times are short, so that minutes are seconds; but for the thresholds' window: the CPU of this machine is everybody's.
fn config(size: &ScaleOut, up: &FluxUp, nodes: &Path) -> String {
    format!(
        "certs_dir: {certs:?}\nqueue: {{ url: {queue:?} }}\nautoscaler:\n  pool: cloud\n  gateway_url: {url:?}\n  api_key: {key:?}\n  dir: {dir:?}\n  \
         poll_interval_sec: 0.5\n  evaluation_window_sec: 3600\n  target_queue_seconds: {target}\n  load_window_sec: 4\n  \
         panic_window_sec: 1\n  scale_down_delay_sec: 2\n  recurring_gap_sec: 0\n  expected_boot_sec: 2\n  drain_timeout_sec: 60\n  providers:\n    \
         - kind: local\n      min_nodes: 0\n      max_nodes: {most}\n      node_types: [{{ name: small, tasks: {tasks} }}]\n",
        certs = up.path("certs").display().to_string(),
        queue = up.queue_url(),
        url = up.api.base(),
        key = up.api.key(),
        dir = nodes.display().to_string(),
        target = TARGET_QUEUE.as_secs(),
        most = size.nodes,
        tasks = size.tasks,
    )
}
