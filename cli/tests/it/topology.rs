//! The same pieces apart: a gateway and two agents on one queue.

use std::{path::Path, time::Duration};

use flux_testkit::{
    Api, File, FluxCommand, FluxProcess, NatsServer, assert_no_processes_left, eventually, free_port, passable_dir,
    start_gateway,
};
use serde_json::{Value, json};

const KEY: &str = "topology";
const ENDS: Duration = Duration::from_secs(40);
/// The promise is 3 s; the rest is for a machine that does other things.
const AGAIN_WITHIN: Duration = Duration::from_secs(15);

fn agent(nats: &NatsServer, dir: &Path, id: &str) -> FluxProcess {
    FluxCommand::new("flux-agent")
        .env("FLUX_DISABLE_MTLS", "true")
        .args(["--queue-url", &nats.url(), "--id", id, "--tasks", "8"])
        .arg("--work-dir")
        .arg(dir.join(id))
        .spawn()
}

async fn online(api: &Api, id: &str) -> bool {
    let agents = api.get("/agents").await.json;
    agents.as_array().is_some_and(|all| all.iter().any(|agent| agent["id"] == id && agent["status"] == "online"))
}

async fn nap(api: &Api, seconds: &str) {
    let yaml = "name: nap\nhandler: run.sh\nresources: { cpu: 10, memory: 16 }\nmax_concurrency: 4\ntimeout: 60\n";
    let script = format!("#!/bin/sh\nsleep {seconds}; echo rested\n");
    api.deploy("nap", yaml, &[File::executable("run.sh", script)]).await;
}

#[tokio::test]
async fn a_killed_agent_s_executions_run_again_on_the_other() {
    let nats = NatsServer::start().await;
    let dir = passable_dir("flux-apart-");
    let listen = format!("127.0.0.1:{}", free_port());
    let _gateway = start_gateway(&nats.url(), dir.path(), &listen, KEY);
    let api = Api::new(format!("http://{listen}"), KEY);
    api.ready(ENDS).await;
    let mut first = agent(&nats, dir.path(), "first");
    eventually(ENDS, "the first agent", || async { online(&api, "first").await }).await;
    let mark = format!("2.0{}", free_port().to_string().repeat(2));
    nap(&api, &mark).await;

    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(api.execute_async("nap", &json!({"n": n})).await);
    }
    eventually(ENDS, "all to run on the first", || async {
        api.get("/executions?function=nap").await.text().matches("\"phase\":\"running\"").count() == 4
    })
    .await;
    let _second = agent(&nats, dir.path(), "second");
    eventually(ENDS, "the second agent", || async { online(&api, "second").await }).await;

    let begun = std::time::Instant::now();
    first.kill9();
    eventually(AGAIN_WITHIN, "the next attempts to run on the second", || async {
        let list = api.get("/executions?function=nap").await.json;
        let moved = |one: &Value| one["agent_id"] == "second" && one["attempt"] == 2;
        list["executions"].as_array().is_some_and(|all| all.iter().all(moved))
    })
    .await;
    println!("agent: its executions ran on the other after {:?}", begun.elapsed());
    for id in &ids {
        let record = api.outcome(id, ENDS).await;
        assert_eq!((&record["status"], &record["output"]), (&json!("success"), &json!("rested\n")), "{record:#}");
    }
    eventually(ENDS, "the first to be offline or forgotten", || async { !online(&api, "first").await }).await;
    assert_no_processes_left(&mark).await;
    // What the killed agent was in the middle of ended with it.
    assert_no_processes_left(&dir.path().join("first").to_string_lossy()).await;
}

#[tokio::test]
async fn a_killed_gateway_s_executions_end_and_the_next_gateway_answers_for_them() {
    let nats = NatsServer::start().await;
    let dir = passable_dir("flux-apart-");
    let listen = format!("127.0.0.1:{}", free_port());
    let mut first = start_gateway(&nats.url(), dir.path(), &listen, KEY);
    let api = Api::new(format!("http://{listen}"), KEY);
    api.ready(ENDS).await;
    let _agent = agent(&nats, dir.path(), "only");
    eventually(ENDS, "the agent", || async { online(&api, "only").await }).await;
    nap(&api, "1").await;
    let mut ids = Vec::new();
    for n in 0..8 {
        ids.push(api.execute_async("nap", &json!({"n": n})).await);
    }
    let begun = std::time::Instant::now();
    first.kill9();
    let _next = start_gateway(&nats.url(), dir.path(), &listen, KEY);
    api.ready(ENDS).await;
    println!("gateway: the next one was ready after {:?}", begun.elapsed());
    eventually(AGAIN_WITHIN, "a call to succeed", || async { api.execute("nap", &Value::Null).await.status == 200 })
        .await;
    for id in &ids {
        let record = api.outcome(id, ENDS).await;
        assert_eq!((&record["status"], &record["attempt"]), (&json!("success"), &json!(1)), "{record:#}");
    }
    println!("gateway: everything had ended after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_remote_agent_joins_a_flux_up() {
    let up = flux_testkit::FluxUp::start().await;
    let dir = passable_dir("flux-apart-");
    let mut remote = crate::pki::joined(&up, dir.path(), "remote").await;
    eventually(ENDS, "both agents", || async {
        online(&up.api, "remote").await && up.api.get("/agents").await.json.as_array().map(Vec::len) == Some(2)
    })
    .await;
    // Full at one a piece, so that a second call has to go to the other.
    let yaml = "name: one\nhandler: run.sh\nmax_concurrency: 1\n";
    up.api.deploy("one", yaml, &[File::executable("run.sh", "#!/bin/sh\nsleep 1\n")]).await;
    let (a, b) = tokio::join!(up.api.execute("one", &Value::Null), up.api.execute("one", &Value::Null));
    let (a, b) = (a.expect(200).json, b.expect(200).json);
    assert_ne!(a["agent_id"], b["agent_id"], "{a} {b}");
    remote.terminate();
    assert_eq!(remote.wait_exit(ENDS).await.code(), Some(0), "{}", remote.log());
    eventually(ENDS, "it to be gone", || async { !online(&up.api, "remote").await }).await;
    up.api.execute("one", &Value::Null).await.expect(200);
}
