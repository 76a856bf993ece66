//! The binary itself: a process tree, real archives, and what is left when parts of it are killed.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use flux_protocol::{Digest, Lane, OutcomeStatus, subject};
use flux_testkit::{File, FluxCommand, FluxProcess, archive, assert_no_processes_left, eventually};

use crate::world::{SOON, World, text};

struct Node {
    world: World,
    process: FluxProcess,
    /// Every process of this node has it in its arguments, environment or working directory.
    marker: String,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let world = World::new().await;
        let dir = tempfile::Builder::new().prefix("flux-agent-").tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("for the user flux");
        let marker = dir.path().display().to_string();
        let process = FluxCommand::of_program(env!("CARGO_BIN_EXE_flux-agent"))
            .args(["--queue-url", &world.nats.url(), "--id", "node-1", "--tasks", "4"])
            .arg("--work-dir")
            .arg(dir.path().join("agent"))
            .env("FLUX_DISABLE_MTLS", "true")
            .spawn();
        Self { world, process, marker, _dir: dir }
    }

    /// A shell script as a function, deployed as its archive.
    async fn deploy(&self, name: &str, script: &str) {
        let zip = archive(&[File::executable(name, format!("#!/bin/sh\n{script}\n"))]);
        let digest = Digest::of(&zip);
        self.world.broker.put_blob(subject::CODE_BUCKET, &digest.hex(), zip.into()).await.expect("stored");
        self.world.deploy_code(&format!("name: {name}\nhandler: {name}"), 1, digest).await;
    }

    /// A script that stays in its first attempt, and ends at once in later ones.
    async fn run_long(&self) -> flux_protocol::ExecutionId {
        let script = format!("test $FLUX_ATTEMPT = 1 && : '{}' && sleep 86400; echo $FLUX_ATTEMPT", self.marker);
        self.deploy("long", &script).await;
        let id = self.world.invoke("long", "").await;
        self.world.until_running(id).await;
        id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_runs_and_a_sigterm_ends_everything_in_order() {
    let mut node = Node::start().await;
    node.deploy("hello", "echo \"hello $(cat)\"").await;
    assert_eq!(text(&node.world.call("hello", "you").await), "hello you\n");
    node.deploy("slow", "sleep 1; echo done").await;
    let slow = node.world.invoke("slow", "").await;
    node.world.until_running(slow).await;
    node.process.terminate();
    let exit = node.process.wait_exit(SOON).await;
    assert!(exit.success(), "{exit}");
    let log = node.process.log();
    assert!(!log.contains("did not end"), "it waited in vain for a task of its own: {log}");
    let ended = node.world.end_of(slow).await;
    assert_eq!((ended.attempt, text(&ended).as_str()), (1, "done\n"), "it was let finish");
    node.world.until_empty(Lane::Invoke, "slow").await;
    assert_no_processes_left(&node.marker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_leaves_no_process_and_its_work_begins_again_in_three_seconds() {
    let node = Node::start().await;
    let id = node.run_long().await;
    let agent = node.process.descendant("--queue-url");
    let died_at = std::time::Instant::now();
    agent.kill9();
    let ended = node.world.end_of(id).await;
    assert!(died_at.elapsed() < Duration::from_secs(3), "{:?}", died_at.elapsed());
    assert_eq!(ended.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    assert_eq!((ended.attempt, text(&ended).as_str()), (2, "2\n"));
    eventually(Duration::from_secs(3), "the first attempt's processes to be gone", || {
        let left = flux_testkit::processes_matching(&id.to_string());
        std::future::ready(left.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_tree_leaves_nothing() {
    let mut node = Node::start().await;
    node.run_long().await;
    node.process.kill9();
    assert_no_processes_left(&node.marker).await;
}
