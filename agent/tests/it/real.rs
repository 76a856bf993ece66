//! With the real launcher: this very binary, started as one.

use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use flux_agent::{
    Executor, LauncherExecutor, Runtimes,
    launch::{Launcher, LauncherPool, Source},
};
use flux_launcher::LauncherConfig;
use flux_protocol::{Digest, ErrorKind, Lane, OutcomeStatus, Stream, limits};
use flux_runtime::{Shutdown, Tasks, settings::AgentSettings};
use flux_testkit::eventually;

use crate::{
    fake::FakeCode,
    world::{SOON, TestAgent, World, invocation, kind, message},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flux-agent");

pub(crate) struct Real {
    pub(crate) world: World,
    pub(crate) agent: TestAgent,
    launcher: Tasks,
    pool: LauncherPool,
    _dirs: [tempfile::TempDir; 2],
}

impl Real {
    /// An agent whose functions are these shell scripts.
    async fn new(scripts: &[(&str, &str)], extra: &str) -> Self {
        Self::with(scripts, extra, World::settings(), |_| {}).await
    }

    pub(crate) async fn with(
        scripts: &[(&str, &str)],
        extra: &str,
        settings: AgentSettings,
        change: impl FnOnce(&mut LauncherConfig),
    ) -> Self {
        let world = World::new().await;
        let (code, work) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        for dir in [&code, &work] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("readable");
        }
        for (name, script) in scripts {
            let path = code.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
            world.deploy(&format!("name: {name}\nhandler: {name}\n{extra}")).await;
        }
        let mut config = LauncherConfig::new(work.path(), 8);
        change(&mut config);
        let source = Source::Direct { program: PROGRAM.into(), config };
        let (pool, driver) = LauncherPool::connect(source).await.expect("a launcher");
        let (executor, follow) = LauncherExecutor::new(pool.clone());
        let found = FakeCode { folder: code.path().to_owned(), error: None };
        let launcher = Tasks::new(Shutdown::new());
        let kill = launcher.shutdown().kill_token();
        launcher.spawn("launcher", async move {
            tokio::select! {
                () = driver => {}
                () = kill.cancelled() => {}
            }
        });
        launcher.spawn("capabilities", follow);
        let executor: Arc<dyn Executor> = Arc::new(executor);
        let runtimes = Runtimes::find(Arc::clone(&executor)).await;
        let agent = world.agent_with_runtimes(executor, Arc::new(found), settings, runtimes).await;
        Self { world, agent, launcher, pool, _dirs: [code, work] }
    }

    pub(crate) fn code(&self) -> &Path {
        self._dirs[0].path()
    }

    pub(crate) async fn launcher(&self) -> Launcher {
        self.pool.launcher().await.expect("a launcher")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.agent.tasks.shutdown().start_kill();
        self.launcher.shutdown().start_kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_run_and_end_as_they_do() {
    let real = Real::new(
        &[
            ("echo", "cat; echo \"to $FLUX_FUNCTION with $*\" >&2"),
            ("exit", "exit 7"),
            ("signal", "kill -SEGV $$"),
            ("path", "cat /dev/stdin > /dev/stdout"),
            ("environment", "env | cut -d= -f1 | sort | tr '\\n' ' '"),
        ],
        "",
    )
    .await;
    let asked = flux_protocol::Invocation { args: vec!["a b".to_owned()], ..invocation("{\"n\":1}") };
    let reply = real.world.call_with("echo", asked).await;
    let log = &reply.outcome.as_ref().expect("an outcome").output;
    assert_eq!(log.bytes_of(Stream::Stdout), "{\"n\":1}", "{reply:?}");
    assert_eq!(log.bytes_of(Stream::Stderr), "to echo with a b\n");
    assert_eq!(log.result(), Some(serde_json::json!({"n": 1})));
    let exit = real.world.call("exit", "").await.outcome.expect("an outcome").error.expect("an error");
    assert_eq!((exit.kind, exit.exit_code), (ErrorKind::Exit, Some(7)));
    let signal = real.world.call("signal", "").await.outcome.expect("an outcome").error.expect("an error");
    assert_eq!((signal.kind, signal.signal), (ErrorKind::Signal, Some(11)));
    // Opened anew by path, as many a script does, though the function may run as another user.
    let path = real.world.call("path", "through the path").await.outcome.expect("an outcome");
    assert_eq!(path.output.to_text(), "through the path");
    let seen = real.world.call("environment", "").await.outcome.expect("an outcome").output.to_text();
    for name in ["FLUX_EXECUTION_ID", "PATH", "TMPDIR", "traceparent"] {
        assert!(seen.contains(name), "{seen}");
    }
    assert!(!seen.contains("CARGO") && !seen.contains("USER "), "of the agent's own: {seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_payload_goes_through_a_process_and_back() {
    let real =
        Real::new(&[("cat", "exec cat"), ("sum", "exec sha256sum")], "resources: { cpu: 2000, memory: 512 }").await;
    for size in [0, 1, 65_536, 65_537, limits::PAYLOAD] {
        let payload = flux_testkit::Seed::new(size as u64).bytes(size);
        let digest = Digest::of(&payload);
        let base = invocation("");
        let key = flux_protocol::subject::payload_blob(base.execution_id.expect("given"));
        let bucket = flux_protocol::subject::BLOB_BUCKET;
        real.world.broker.put_blob(bucket, &key, payload.into()).await.expect("stored");
        let blob = flux_protocol::execution::BlobRef { key, digest, size: size as u64 };
        let asked = flux_protocol::Invocation { payload: flux_protocol::Payload::Blob(blob), ..base };
        let summed = real.world.call_with("sum", asked.clone()).await.outcome.expect("an outcome");
        assert!(summed.output.to_text().starts_with(&digest.hex()), "{size}: {summed:?}");
        let again = flux_protocol::Invocation { execution_id: Some(flux_protocol::ExecutionId::new()), ..asked };
        let back = real.world.call_with("cat", again).await.outcome.expect("an outcome");
        assert_eq!(back.status, OutcomeStatus::Success, "{:?}", back.error);
        let log = match &back.output_ref {
            None => back.output,
            Some(blob) => {
                let stored = real
                    .world
                    .broker
                    .get_blob(flux_protocol::subject::blob_bucket(&blob.key), &blob.key, 2 * limits::PAYLOAD)
                    .await
                    .expect("read");
                flux_protocol::OutputLog::decode(stored.expect("there")).expect("an output")
            }
        };
        assert_eq!(Digest::of(&log.bytes_of(Stream::Stdout)), digest, "{size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_and_a_cancel_leave_no_process() {
    let marker = format!("86400.{:012}", rand_of_this_run());
    let script = format!("sleep {marker} & sleep {marker}");
    let real = Real::new(&[("sleeper", &script)], "timeout: 0.5").await;
    let reply = real.world.call("sleeper", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::Timeout));
    let id = real.world.invoke("sleeper", "").await;
    real.world.until_running(id).await;
    assert!(real.world.cancel(id, SOON).await.expect("an answer").cancelled);
    assert_eq!(real.world.end_of(id).await.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
    eventually(Duration::from_secs(3), "no sleep to be left", || {
        std::future::ready(flux_testkit::processes_matching(&marker).is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_is_not_there_is_the_functions_fault() {
    let real = Real::new(&[("here", "true")], "").await;
    real.world.deploy("name: gone\nhandler: nowhere").await;
    let reply = real.world.call("gone", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::InvalidFunction), "{}", message(&reply));
    assert!(message(&reply).contains("nowhere"), "{}", message(&reply));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passed_memory_is_said_with_its_limit() {
    let script = "exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'";
    let real = Real::new(&[("hungry", script)], "resources: { cpu: 1000, memory: 32 }").await;
    if !real.launcher().await.capabilities().cgroup.memory {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to limit memory");
        eprintln!("not tested: no memory cgroup here");
        return;
    }
    let error = real.world.call("hungry", "").await.outcome.expect("an outcome").error.expect("an error");
    assert_eq!((error.kind, error.limit), (ErrorKind::OutOfMemory, Some(32)), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_launcher_costs_an_attempt_and_no_execution() {
    let flag = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(flag.path(), std::fs::Permissions::from_mode(0o777)).expect("writable");
    // The second attempt ends at once.
    let script = "test \"$FLUX_ATTEMPT\" = 1 && exec sleep 600; echo \"attempt $FLUX_ATTEMPT\"";
    let real = Real::new(&[("f", script)], "").await;
    let id = real.world.invoke("f", "").await;
    real.world.until_running(id).await;
    let launcher = flux_testkit::descendants(i32::try_from(std::process::id()).expect("a pid"))
        .into_iter()
        .find(|process| is_launcher_of(process, real._dirs[1].path()))
        .expect("the launcher runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(launcher.pid), nix::sys::signal::Signal::SIGKILL)
        .expect("killed");
    let status = real.world.end_of(id).await;
    let outcome = status.outcome.as_ref().expect("an outcome");
    assert_eq!(outcome.status, OutcomeStatus::Success, "{:?}", outcome.error);
    assert_eq!((status.attempt, outcome.output.to_text().as_str()), (2, "attempt 2\n"));
    real.world.until_empty(Lane::Invoke, "f").await;
}

fn rand_of_this_run() -> u64 {
    flux_protocol::time::now().as_micros().unsigned_abs() % 1_000_000_000_000
}

fn is_launcher_of(process: &flux_testkit::Process, work_dir: &Path) -> bool {
    process.command.contains("__launcher") && process.command.contains(&work_dir.display().to_string())
}
