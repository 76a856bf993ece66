//! The gateway behind the listener: the real one, on a queue and a store in memory, with one agent that knows the
//! functions of these tests.

use std::sync::Arc;

use bytes::Bytes;
use flux_gateway::Gateway;
use flux_protocol::OutcomeStatus;
use flux_store::{ExecutionFilter, StatusFilter};
use tokio::sync::Notify;

use crate::{
    fake_agent::{Act, FakeAgent, Job},
    world::{World, deploy, knows},
};

pub(crate) struct Scripted {
    world: World,
    gateway: Gateway,
    agent: FakeAgent,
    step: Arc<Notify>,
}

pub(crate) async fn start() -> Scripted {
    let world = World::new().await;
    let gateway = world.gateway().await;
    for function in ["echo", "answer", "fail", "slow", "lines"] {
        deploy(&gateway, function, "timeout: 60\n").await;
    }
    let step = Arc::new(Notify::new());
    let agent = {
        let step = Arc::clone(&step);
        world.agent("agent-1", move |job| act(job, &step)).await
    };
    knows(&gateway, &[&agent]).await;
    Scripted { world, gateway, agent, step }
}

fn act(job: &Job, step: &Arc<Notify>) -> Act {
    let prints = |stdout: Bytes| Act::Exit { code: 0, stdout, stderr: Bytes::new() };
    match job.queue.function.as_str() {
        "echo" => prints(job.payload.clone()),
        "answer" => {
            let event: serde_json::Value = serde_json::from_slice(&job.payload).expect("an event");
            prints(event["body"].as_str().expect("text").to_owned().into())
        }
        "fail" => Act::Exit { code: 3, stdout: Bytes::new(), stderr: Bytes::from_static(b"oops\n") },
        "slow" => Act::Hold(Arc::clone(step)),
        "lines" => Act::Print(["one\n", "two\n", "three\n"].map(str::to_owned).to_vec(), Arc::clone(step)),
        other => panic!("no script for {other}"),
    }
}

impl Scripted {
    pub(crate) fn gateway(&self) -> Gateway {
        self.gateway.clone()
    }

    /// Another gateway on the same queue and store.
    pub(crate) async fn beside(&self) -> Gateway {
        self.world.gateway().await
    }

    /// Where the origin keeps an archive.
    pub(crate) fn archive_file(&self, digest: flux_protocol::Digest) -> std::path::PathBuf {
        self.world.artifacts.path().join("sha256").join(digest.hex())
    }

    pub(crate) fn store(&self) -> &flux_store::SharedStore {
        &self.world.store
    }

    /// Executions that the agent holds now.
    pub(crate) fn running(&self) -> usize {
        self.agent.running().len()
    }

    /// Lets one `slow` end, or one line of `lines` be written.
    pub(crate) fn let_go(&self) {
        self.step.notify_one();
    }

    /// Executions that are recorded as cancelled.
    pub(crate) async fn cancelled(&self) -> usize {
        let status = Some(StatusFilter::Ended(OutcomeStatus::Cancelled));
        let filter = ExecutionFilter { status, limit: 100, ..ExecutionFilter::default() };
        self.world.store.executions(&filter).await.expect("a store").len()
    }
}
