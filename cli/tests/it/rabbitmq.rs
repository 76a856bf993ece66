//! The whole pipeline over RabbitMQ: a gateway and two agents as processes, on one server for all of it, since one takes
//! seconds to start.

use std::{path::Path, time::Duration};

use flux_testkit::{
    Api, File, FluxCommand, FluxProcess, RabbitServer, assert_no_processes_left, eventually, eventually_some,
    free_port, passable_dir, start_gateway,
};
use lapin::{BasicProperties, types::FieldTable};
use serde_json::{Value, json};

const KEY: &str = "rabbit";
const ENDS: Duration = Duration::from_secs(60);

fn agent(server: &RabbitServer, dir: &Path, id: &str) -> FluxProcess {
    FluxCommand::new("flux-agent")
        .env("FLUX_DISABLE_MTLS", "true")
        .args(["--queue-url", &server.url(), "--id", id, "--tasks", "8"])
        .arg("--work-dir")
        .arg(dir.join(id))
        .spawn()
}

async fn online(api: &Api, id: &str) -> bool {
    let agents = api.get("/agents").await.json;
    agents.as_array().is_some_and(|all| all.iter().any(|agent| agent["id"] == id && agent["status"] == "online"))
}

async fn deploy(api: &Api, name: &str, more: &str, script: &str) {
    let yaml =
        format!("name: {name}\nhandler: run.sh\nresources: {{ cpu: 10, memory: 16 }}\nmax_concurrency: 8\n{more}");
    api.deploy(name, &yaml, &[File::executable("run.sh", format!("#!/bin/sh\n{script}\n"))]).await;
}

async fn executions(api: &Api, function: &str) -> Vec<Value> {
    let list = api.get(&format!("/executions?function={function}")).await.json;
    list["executions"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn the_whole_pipeline_goes_over_rabbitmq() {
    let mut server = RabbitServer::start().await;
    let dir = passable_dir("flux-rabbit-");
    let listen = format!("127.0.0.1:{}", free_port());
    let _gateway = start_gateway(&server.url(), dir.path(), &listen, KEY);
    let api = Api::new(format!("http://{listen}"), KEY);
    api.ready(ENDS).await;
    let mut first = agent(&server, dir.path(), "first");
    eventually(ENDS, "the first agent", || async { online(&api, "first").await }).await;

    sync_and_redeployed(&api).await;
    async_retried_and_buried(&api).await;
    large_both_ways(&api).await;
    followed_and_cancelled(&api).await;
    published_directly(&api, &server).await;

    let _second = killed_agent(&api, &server, &mut first, dir.path()).await;
    killed_server(&api, &mut server).await;
}

async fn sync_and_redeployed(api: &Api) {
    deploy(api, "hello", "", "cat").await;
    let answer = api.execute("hello", &json!({"n": 1})).await.expect(200).json;
    assert_eq!(answer["output"], "{\"n\":1}", "{answer:#}");
    deploy(api, "hello", "", "echo second").await;
    eventually(ENDS, "the new version", || async {
        api.execute("hello", &Value::Null).await.json["output"] == "second\n"
    })
    .await;
}

async fn async_retried_and_buried(api: &Api) {
    deploy(api, "fails", "retry: { max_attempts: 2, backoff: 1s }\n", "echo tried; exit 3").await;
    let id = api.execute_async("fails", &Value::Null).await;
    let record = api.outcome(&id, ENDS).await;
    assert_eq!((&record["status"], &record["attempt"]), (&json!("failed"), &json!(2)), "{record:#}");
    let letters = eventually_some(ENDS, "its dead letter", || async {
        let letters = api.get("/dlq/fails").await.json;
        (letters["letters"].as_array().map(Vec::len) == Some(1)).then_some(letters)
    })
    .await;
    assert_eq!(letters["letters"][0]["execution_id"], id, "{letters:#}");
}

async fn large_both_ways(api: &Api) {
    deploy(api, "count", "", "wc -c").await;
    let payload = json!("x".repeat(3 << 20));
    let answer = api.execute("count", &payload).await.expect(200).json;
    assert_eq!(answer["output"].as_str().map(str::trim), Some((payload.to_string().len()).to_string().as_str()));
    deploy(api, "prints", "", "head -c 1500000 /dev/zero | tr '\\0' y").await;
    let answer = api.execute("prints", &Value::Null).await.expect(200).json;
    assert_eq!(answer["output"].as_str().map(str::len), Some(1_500_000));
}

async fn followed_and_cancelled(api: &Api) {
    let mark = format!("300.0{}", free_port().to_string().repeat(2));
    deploy(api, "slow", "", &format!("echo begun; sleep {mark}")).await;
    let id = api.execute_async("slow", &Value::Null).await;
    eventually(ENDS, "what it printed while it runs", || async {
        api.get(&format!("/executions/{id}")).await.json["output"] == "begun\n"
    })
    .await;
    let mut stream =
        api.request(reqwest::Method::GET, &format!("/executions/{id}/stream")).send().await.expect("a stream");
    let told = async {
        let mut told = String::new();
        while let Some(chunk) = stream.chunk().await.expect("a chunk") {
            told.push_str(&String::from_utf8_lossy(&chunk));
            if told.contains("event: end") || told.contains("event:end") {
                break;
            }
        }
        told
    };
    let cancel = async {
        let answer =
            api.request(reqwest::Method::DELETE, &format!("/executions/{id}")).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
    };
    let (told, ()) = tokio::time::timeout(ENDS, async { tokio::join!(told, cancel) }).await.expect("the stream's end");
    assert!(told.contains("begun"), "{told}");
    assert_eq!(api.outcome(&id, ENDS).await["status"], "cancelled");
    assert_no_processes_left(&mark).await;
}

async fn published_directly(api: &Api, server: &RabbitServer) {
    let named = |id: &str| BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
    let sent = || named("order-1").with_timestamp(1).with_headers(FieldTable::default());
    let now = u64::try_from(flux_protocol::time::now().as_millis() / 1000).expect("after 1970");
    // A function that was never invoked has no queue yet.
    deploy(api, "direct", "", "cat").await;
    server.publish("flux.invoke", "direct", sent().with_timestamp(now), b"{\"order\":1}").await;
    // The same again is the same execution.
    server.publish("flux.invoke", "direct", sent().with_timestamp(now), b"{\"order\":1}").await;
    let done = eventually_some(ENDS, "the execution of a direct publish", || async {
        let all = executions(api, "direct").await;
        all.iter().find(|one| one["status"] == "success").cloned()
    })
    .await;
    let record = api.outcome(done["execution_id"].as_str().expect("an id"), ENDS).await;
    assert_eq!(record["output"], "{\"order\":1}", "{record:#}");
    assert_eq!(executions(api, "direct").await.len(), 1);
    // One that does not say who it is would be another each time it is delivered.
    server.publish("flux.invoke", "direct", BasicProperties::default(), b"nobody").await;
    let refused = eventually_some(ENDS, "the refused message", || server.take("flux.refused")).await;
    assert_eq!(refused.delivery.data, b"nobody");
    // And one for a function that does not exist ends as a record that says so.
    server.publish("flux.invoke", "nothing", named("order-2").with_timestamp(now), b"x").await;
    let done = eventually_some(ENDS, "the end of what is for no function", || async {
        executions(api, "nothing").await.first().filter(|one| one["status"] == "failed").cloned()
    })
    .await;
    let record = api.outcome(done["execution_id"].as_str().expect("an id"), ENDS).await;
    assert_eq!(record["error"]["kind"], "invalid_function", "{record:#}");
}

/// The agent that goes on.
async fn killed_agent(api: &Api, server: &RabbitServer, first: &mut FluxProcess, dir: &Path) -> FluxProcess {
    let mark = format!("9.0{}", free_port().to_string().repeat(2));
    deploy(api, "nap", "timeout: 60\n", &format!("sleep {mark}; echo rested")).await;
    // Before they run, since it may take longer to come than they do; and it takes nothing yet.
    let second = agent(server, dir, "second");
    eventually(ENDS, "the second agent", || async { online(api, "second").await }).await;
    eventually(ENDS, "the second agent to be cordoned", || async {
        api.post("/agents/second/cordon", &json!({})).await.status == 200
    })
    .await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(api.execute_async("nap", &json!({"n": n})).await);
    }
    eventually(ENDS, "all to run on the first", || async {
        let all = executions(api, "nap").await;
        all.iter().filter(|one| one["agent_id"] == "first" && one["phase"] == "running").count() == ids.len()
    })
    .await;
    let begun = std::time::Instant::now();
    first.kill9();
    api.post("/agents/second/uncordon", &json!({})).await.expect(200);
    eventually(ENDS, "the next attempts to run on the second", || async {
        let all = executions(api, "nap").await;
        all.iter().all(|one| one["agent_id"] == "second" && one["attempt"].as_u64() >= Some(2))
    })
    .await;
    println!("agent: its executions ran on the other after {:?}", begun.elapsed());
    for id in &ids {
        let record = api.outcome(id, ENDS).await;
        assert_eq!((&record["status"], &record["output"]), (&json!("success"), &json!("rested\n")), "{record:#}");
    }
    assert_no_processes_left(&mark).await;
    second
}

async fn killed_server(api: &Api, server: &mut RabbitServer) {
    // Longer than the server is waited for, so that some run and some wait when it dies.
    deploy(api, "short", "", "sleep 3; echo done").await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(api.execute_async("short", &json!({"n": n})).await);
    }
    server.until_it_remembers(&["flux.invoke.short"]).await;
    server.kill9();
    // What is not accepted is said so, and nothing hangs.
    let refused = api.request(reqwest::Method::POST, "/execute/short/async").json(&json!({})).send().await;
    assert_eq!(refused.expect("an answer").status().as_u16(), 503);
    server.restart().await;
    for id in &ids {
        let record = api.outcome(id, ENDS).await;
        assert_eq!((&record["status"], &record["output"]), (&json!("success"), &json!("done\n")), "{record:#}");
    }
    eventually(ENDS, "calls to work again", || async { api.execute("hello", &Value::Null).await.status == 200 }).await;
}
