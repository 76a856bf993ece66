//! Functions in containers of a real dockerd, by a whole agent: the same pool, the same outcomes as elsewhere.

use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use bollard::query_parameters::{KillContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use flux_agent::{Containers, Tiers};
use flux_containers::DriverConfig;
use flux_protocol::{
    ErrorKind, ExecutionError, FunctionVersion, Lane, Outcome, OutcomeStatus, execution::StartKind, function::Isolation,
};
use flux_runtime::{Shutdown, Tasks, settings::Pull};
use flux_testkit::{Dockerd, eventually, eventually_some};
use serde_json::{Value, json};

use crate::{
    fake::{FakeCode, FakeExecutor},
    sandboxes::{containers, driver_config, until_offered},
    workers::start,
    world::{SOON, TestAgent, World, message},
};

const PYTHON: &str = r#"
import os, subprocess, sys, time

ME = os.urandom(8).hex()

def me(payload, context):
    return ME

def echo(payload, context):
    print("got", payload)
    os.write(1, b"raw\n")
    print("wrong", file=sys.stderr)
    return {"payload": payload, "id": context.execution_id, "cwd": os.getcwd(), "uid": os.getuid()}

def does(payload, context):
    what = payload["what"]
    if what == "raise":
        raise ValueError("no such thing")
    if what == "exit":
        sys.exit(3)
    if what == "sleep":
        print("asleep", flush=True)
        time.sleep(60)
    if what == "nap":
        print("asleep", flush=True)
        time.sleep(payload["s"])
    if what == "memory":
        return len(b"x" * (512 << 20))
    if what == "process":
        subprocess.Popen(["sleep", "300"], start_new_session=True)
    return ME
"#;

/// A world with an agent that has containers.
struct InContainers {
    world: World,
    agent: TestAgent,
    docker: Dockerd,
    _dir: tempfile::TempDir,
}

impl InContainers {
    async fn new(docker: Dockerd, change: impl FnOnce(&mut DriverConfig)) -> Self {
        let world = World::new().await;
        let dir = tempfile::tempdir().expect("a directory");
        let code = dir.path().join("code/f");
        std::fs::create_dir_all(&code).expect("made");
        for (name, content) in [
            ("main.py", PYTHON),
            (
                "main.js",
                "exports.echo = async (payload, context) => { console.log('got', payload); return { payload }; };",
            ),
            ("run.sh", "echo \"bash got $(cat) and $1 in $PWD\""),
            ("native", "#!/bin/sh\necho native $(cat) $1; exit ${CODE:-0}\n"),
        ] {
            std::fs::write(code.join(name), content).expect("written");
            std::fs::set_permissions(code.join(name), std::fs::Permissions::from_mode(0o755)).expect("executable");
        }
        for path in [dir.path(), &dir.path().join("code"), &code] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("readable");
        }
        let mut config = driver_config(&docker, &dir.path().join("containers"), &dir.path().join("code"));
        change(&mut config);
        let found = FakeCode { folder: code, error: None };
        let tiers = |tasks: &Tasks| Tiers::default().with(Isolation::Container, Arc::new(containers(config, tasks)));
        let agent = world
            .agent_with_tiers(FakeExecutor::new(), Arc::new(found), World::settings(), Default::default(), tiers)
            .await;
        Self { world, agent, docker, _dir: dir }
    }

    async fn deploy(&self, name: &str, more: &str) {
        self.deploy_version(name, more, 1).await;
    }

    async fn deploy_version(&self, name: &str, more: &str, version: u32) {
        let image = if more.contains("image:") { String::new() } else { format!("image: {}\n", Dockerd::IMAGE) };
        let network = if more.contains("network:") { "" } else { "network: none\n" };
        let yaml = format!(
            "name: {name}\nisolation: container\n{image}{network}resources: {{ cpu: 1000, memory: 128 }}\n{more}"
        );
        self.world.deploy_version(&yaml, version).await;
    }

    async fn python(&self, name: &str, function: &str, more: &str) {
        self.deploy(name, &format!("runtime: python\nhandler: main.{function}\n{more}")).await;
    }

    async fn outcome(&self, name: &str, payload: &Value) -> Outcome {
        self.world.call(name, payload.to_string()).await.outcome.expect("an outcome")
    }

    async fn result(&self, name: &str, payload: &Value) -> (StartKind, Value) {
        let outcome = self.outcome(name, payload).await;
        assert_eq!(outcome.status, OutcomeStatus::Success, "{:?}", outcome.error);
        (start(&outcome), outcome.output.result().expect("a result"))
    }

    async fn error(&self, name: &str, what: &str) -> (ExecutionError, Outcome) {
        let outcome = self.outcome(name, &json!({ "what": what })).await;
        (outcome.error.clone().unwrap_or_else(|| panic!("no error: {outcome:?}")), outcome)
    }

    /// The one container of a function.
    async fn container_of(&self, function: &str) -> String {
        let prefix = format!("flux-{function}-");
        eventually_some(SOON, format!("a container of {function}"), || async {
            self.docker.containers().await.into_iter().find(|name| name.starts_with(&prefix))
        })
        .await
    }

    async fn until_gone(&self, function: &str) {
        let prefix = format!("flux-{function}-");
        eventually(SOON, format!("no container of {function}"), || async {
            !self.docker.containers().await.iter().any(|name| name.starts_with(&prefix))
        })
        .await;
    }

    async fn kill(&self, container: &str) {
        let kill = KillContainerOptionsBuilder::new().signal("KILL").build();
        self.docker.docker().await.kill_container(container, Some(kill)).await.expect("killed");
    }

    async fn end(self) -> Dockerd {
        self.agent.agent.drain(Duration::from_secs(5)).await;
        self.docker.until_empty().await;
        self.agent.tasks.shutdown().start_kill();
        self.docker
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_of_every_runtime_run_in_containers_and_workers_stay_warm() {
    let all = InContainers::new(Dockerd::start().await, |_| {}).await;
    // Handlers: the second call is warm, and what is printed is whose it is.
    all.python("echo", "echo", "").await;
    all.deploy("node", "runtime: node\nhandler: main.echo").await;
    for n in 0..3 {
        let expected = if n == 0 { StartKind::Cold } else { StartKind::Warm };
        let outcome = all.outcome("echo", &json!({ "n": n })).await;
        assert_eq!((outcome.status, start(&outcome)), (OutcomeStatus::Success, expected), "{:?}", outcome.error);
        assert_eq!(outcome.output.bytes_of(flux_protocol::Stream::Stdout), format!("got {{'n': {n}}}\nraw\n"));
        assert_eq!(outcome.output.bytes_of(flux_protocol::Stream::Stderr), "wrong\n");
        let result = outcome.output.result().expect("a result");
        assert_eq!((&result["payload"], &result["cwd"]), (&json!({ "n": n }), &json!("/function")));
        assert_ne!(result["uid"], json!(0));
        assert!(outcome.usage.memory_peak_mb > 0);
        let (start, result) = all.result("node", &json!({ "n": n })).await;
        assert_eq!((start, &result["payload"]), (expected, &json!({ "n": n })));
    }
    // What has no workers has a fresh container each time.
    all.deploy("native", "handler: native\nenv: { CODE: 7 }").await;
    all.deploy("bash", "runtime: bash\nhandler: run.sh").await;
    let asked = |payload: &str| flux_protocol::Invocation {
        args: vec!["arg".to_owned()],
        ..crate::world::invocation(payload.to_owned())
    };
    let ended = all.world.call_with("native", asked("in")).await.outcome.expect("an outcome");
    let error = ended.error.as_ref().expect("an error");
    assert_eq!(
        (error.kind, error.exit_code, ended.output.to_text().as_str()),
        (ErrorKind::Exit, Some(7), "native in arg\n")
    );
    let ended = all.world.call_with("bash", asked("in")).await.outcome.expect("an outcome");
    assert_eq!(
        (ended.output.to_text().as_str(), start(&ended)),
        ("bash got in and arg in /function\n", StartKind::Cold)
    );
    // An image by itself: no code at all.
    let yaml =
        format!("name: image\nisolation: container\nnetwork: none\nimage: {}\ncommand: [cat, '-']", Dockerd::IMAGE);
    let spec = flux_protocol::function::parse_yaml(&yaml).expect("a function");
    let version = FunctionVersion { version: 1, digest: None, spec, created_at: flux_protocol::time::now() };
    all.world.put_version(&version).await;
    let ended = all.outcome("image", &json!({ "n": 1 })).await;
    assert_eq!(
        (ended.status, ended.output.result()),
        (OutcomeStatus::Success, Some(json!({ "n": 1 }))),
        "{:?}",
        ended.error
    );
    // Each time another one, and those that serve no more are gone.
    all.python("fresh", "me", "keep_warm: 0").await;
    let (first, second) = (all.result("fresh", &json!({})).await, all.result("fresh", &json!({})).await);
    assert_ne!(first, second);
    assert_eq!((first.0, second.0), (StartKind::Cold, StartKind::Cold));
    for function in ["fresh", "native", "bash", "image"] {
        all.until_gone(function).await;
    }
    // Its time is up, or another version is current.
    all.python("short", "me", "keep_warm: 500ms").await;
    all.result("short", &json!({})).await;
    all.until_gone("short").await;
    all.deploy_version("echo", "runtime: python\nhandler: main.me", 2).await;
    all.until_gone("echo").await;
    drop(all.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_ends_a_container_has_its_kind_and_leaves_nothing() {
    let all = InContainers::new(Dockerd::start().await, |_| {}).await;
    all.python("f", "does", "timeout: 5").await;
    let (error, _) = all.error("f", "raise").await;
    assert_eq!((error.kind, error.error_type.as_deref()), (ErrorKind::Exit, Some("ValueError")));
    let (error, outcome) = all.error("f", "exit").await;
    assert_eq!(
        (error.kind, error.exit_code, start(&outcome)),
        (ErrorKind::Exit, Some(3), StartKind::Warm),
        "{error:?}"
    );
    let (error, _) = all.error("f", "memory").await;
    assert_eq!((error.kind, error.limit), (ErrorKind::OutOfMemory, Some(128)), "{error:?}");
    let (error, outcome) = all.error("f", "sleep").await;
    assert_eq!((error.kind, error.limit), (ErrorKind::Timeout, Some(5)), "{error:?}");
    assert_eq!(outcome.output.to_text(), "asleep\n");
    all.until_gone("f").await;
    // One that leaves a process behind serves nobody else.
    let (_, first) = all.result("f", &json!({ "what": "process" })).await;
    let (kind, second) = all.result("f", &json!({ "what": "" })).await;
    assert_eq!(kind, StartKind::Cold);
    assert_ne!(first, second);
    // Cancelled.
    all.python("slow", "does", "").await;
    let id = all.world.invoke("slow", json!({ "what": "sleep" }).to_string()).await;
    all.world.until_running(id).await;
    assert!(all.world.cancel(id, SOON).await.expect("an answer").cancelled);
    assert_eq!(all.world.end_of(id).await.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
    all.until_gone("slow").await;
    // Killed from outside while it serves, and while it waits.
    let id = all.world.invoke("slow", json!({ "what": "sleep" }).to_string()).await;
    all.world.until_running(id).await;
    all.kill(&all.container_of("slow").await).await;
    let error = all.world.end_of(id).await.outcome.expect("an outcome").error.expect("an error");
    assert_eq!((error.kind, error.signal), (ErrorKind::Signal, Some(9)), "{error:?}");
    all.result("slow", &json!({ "what": "" })).await;
    all.kill(&all.container_of("slow").await).await;
    all.until_gone("slow").await;
    assert_eq!(all.result("slow", &json!({ "what": "" })).await.0, StartKind::Cold);
    // What is not in the image, or in the code.
    all.deploy("nothing", "command: [no-such-program]").await;
    all.python("lost", "nowhere", "").await;
    for function in ["nothing", "lost"] {
        let error = all.outcome(function, &json!({})).await.error.expect("an error");
        assert_eq!(error.kind, ErrorKind::InvalidFunction, "{error:?}");
    }
    // No such image, and none is pulled.
    all.deploy("absent", "image: no-such-image:1\ncommand: [cat]").await;
    let status = all.world.call("absent", "").await;
    assert_eq!(status.outcome.as_ref().and_then(|o| o.error.as_ref()).map(|e| e.kind), Some(ErrorKind::Sandbox));
    assert!(message(&status).contains("docker pull no-such-image:1"), "{}", message(&status));
    drop(all.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dockerd_that_dies_costs_no_running_execution_and_comes_back() {
    let mut all = InContainers::new(Dockerd::start().await, |config| config.pull = Pull::Missing).await;
    // No registry is reached.
    all.deploy("absent", "image: 127.0.0.1:9/no-such-image\ncommand: [cat]").await;
    let status = all.world.call("absent", "").await;
    assert_eq!(status.outcome.as_ref().and_then(|o| o.error.as_ref()).map(|e| e.kind), Some(ErrorKind::Sandbox));
    assert!(message(&status).contains("could not be pulled"), "{}", message(&status));
    // One that takes a connection and says nothing keeps nobody who wants another image.
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = registry.local_addr().expect("its address");
    all.deploy("stalled", &format!("image: {address}/no-such-image\ncommand: [cat]")).await;
    let stalled = all.world.invoke("stalled", "").await;
    let connection = registry.accept().await.expect("it is pulled");
    assert!(message(&all.world.call("absent", "").await).contains("could not be pulled"));
    drop((connection, registry));
    assert!(message(&all.world.end_of(stalled).await).contains("could not be pulled"));
    all.python("f", "does", "").await;
    all.result("f", &json!({ "what": "" })).await;
    let id = all.world.invoke("f", json!({ "what": "nap", "s": 3 }).to_string()).await;
    all.world.until_running(id).await;
    all.docker.kill9();
    // It runs on: its stream does not lead through dockerd.
    let ended = all.world.end_of(id).await;
    let outcome = ended.outcome.as_ref().expect("an outcome");
    assert_eq!((outcome.status, ended.attempt), (OutcomeStatus::Success, 1), "{:?}", outcome.error);
    // What needs a new container waits until Docker is there again.
    let waiting = all.world.invoke("absent", "").await;
    all.docker.restart().await;
    assert!(all.world.end_of(waiting).await.outcome.expect("an outcome").error.is_some());
    let (_, first) = all.result("f", &json!({ "what": "" })).await;
    assert_eq!(all.result("f", &json!({ "what": "" })).await, (StartKind::Warm, first));
    // One that dockerd takes with it is lost, and begins again.
    let id = all.world.invoke("f", json!({ "what": "nap", "s": 4 }).to_string()).await;
    all.world.until_running(id).await;
    all.docker.kill9();
    all.docker.restart().await;
    let ended = all.world.end_of(id).await;
    assert_eq!(ended.outcome.as_ref().map(|o| o.status), Some(OutcomeStatus::Success), "{:?}", ended.outcome);
    all.world.until_empty(Lane::Invoke, "f").await;
    drop(all.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_removes_what_its_predecessor_left_and_nothing_else() {
    let docker = Dockerd::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (mine, other) = (dir.path().join("mine"), dir.path().join("other"));
    for work in [&mine, &other] {
        std::fs::create_dir_all(work).expect("made");
    }
    // Somebody else's, who knows nothing of Flux, and another agent's.
    let stranger = labelled(&docker, "stranger", None).await;
    drop(driver(&docker, &other).await);
    let others = labelled(&docker, "others", Some(&owner(&other))).await;
    drop(driver(&docker, &mine).await);
    let left = labelled(&docker, "left", Some(&owner(&mine))).await;
    let (_tier, tasks) = driver(&docker, &mine).await;
    let mut there = docker.containers().await;
    there.sort();
    assert_eq!(there, [others.clone(), stranger.clone()], "{left} is gone");
    tasks.shutdown().start_kill();
    let client = docker.docker().await;
    for name in [others, stranger] {
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        client.remove_container(&name, Some(force)).await.expect("removed");
    }
}

async fn driver(docker: &Dockerd, work: &Path) -> (Containers, Tasks) {
    let tasks = Tasks::new(Shutdown::new());
    let tier = containers(driver_config(docker, work, work), &tasks);
    until_offered(&tier).await;
    (tier, tasks)
}

fn owner(work: &Path) -> String {
    std::fs::read_to_string(work.join("owner")).expect("an owner")
}

/// A container that runs, as somebody left it.
async fn labelled(docker: &Dockerd, name: &str, owner: Option<&str>) -> String {
    let client = docker.docker().await;
    let labels = owner.map(|owner| [("flux.owner".to_owned(), owner.to_owned())].into());
    let body = bollard::models::ContainerCreateBody {
        image: Some(Dockerd::IMAGE.to_owned()),
        cmd: Some(vec!["sleep".to_owned(), "300".to_owned()]),
        labels,
        ..Default::default()
    };
    let options = bollard::query_parameters::CreateContainerOptionsBuilder::new().name(name).build();
    client.create_container(Some(options), body).await.expect("created");
    client.start_container(name, None).await.expect("started");
    name.to_owned()
}
