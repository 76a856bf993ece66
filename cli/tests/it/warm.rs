//! Python and Node functions as a user has them: deploy, call, look, redeploy, and what a `kill -9` leaves.

use std::time::Duration;

use flux_testkit::{File, FluxUp, Process, assert_no_processes_left, eventually, eventually_some};
use serde_json::{Value, json};

use crate::cluster::flux;

const ENDS: Duration = Duration::from_secs(30);
const ROOM: &str = "resources: { cpu: 1000, memory: 128 }\n";

const PYTHON: &str = r#"
import os, subprocess, sys, time
import vendored

served = 0

def handler(payload, context):
    global served
    served += 1
    what = (payload or {}).get("what")
    if what == "raise":
        raise ValueError("not today")
    if what == "sleep":
        time.sleep(60)
    if what == "leave":
        subprocess.Popen(["sleep", payload["mark"]])
    print("number", served)
    print("and stderr", file=sys.stderr)
    return {"served": served, "vendored": vendored.NAME}
"#;

async fn deploy_python(up: &FluxUp, name: &str, source: &str, more: &str) {
    let yaml = format!("name: {name}\nruntime: python\nhandler: main.handler\n{ROOM}{more}\n");
    // As `pip install -t .` puts it: beside the handler.
    let files = [File::plain("main.py", source), File::plain("vendored/__init__.py", "NAME = 'beside'\n")];
    up.api.deploy(name, &yaml, &files).await;
}

/// The workers of this Flux.
fn workers(up: &FluxUp) -> Vec<Process> {
    let all = flux_testkit::descendants(up.process.pid());
    all.into_iter().filter(|process| process.command.contains("int.from_bytes")).collect()
}

#[tokio::test]
async fn a_handler_from_its_deployment_to_its_record() {
    let up = FluxUp::start().await;
    deploy_python(&up, "greet", PYTHON, "keep_warm: 30").await;
    let cold = up.api.execute("greet", &json!({})).await.expect(200).json;
    assert_eq!((&cold["start"], &cold["result"]), (&json!("cold"), &json!({"served": 1, "vendored": "beside"})));
    assert!(cold["init_ms"].as_f64() > Some(1.0), "{cold:#}");
    let warm = up.api.execute("greet", &json!({})).await.expect(200).json;
    assert_eq!((&warm["start"], &warm["init_ms"], &warm["result"]["served"]), (&json!("warm"), &json!(0.0), &json!(2)));
    assert!(warm["output"].as_str().is_some_and(|text| text.contains("number 2") && !text.contains("number 1")));

    // The record, the list, live output, and how many wait.
    let id = up.api.execute_async("greet", &json!({})).await;
    let record = up.api.outcome(&id, ENDS).await;
    assert_eq!((&record["start"], &record["result"]["served"]), (&json!("warm"), &json!(3)), "{record:#}");
    let listed = flux(&up, &["ps", "--function", "greet"]).await.ok().stdout;
    assert!(listed.contains("warm") && listed.contains("cold, "), "{listed}");
    let followed = flux(&up, &["invoke", "greet", "{}", "--follow"]).await.ok();
    assert!(followed.stdout.contains("number 4\n") && followed.stdout.contains(r#""served":4"#), "{followed:?}");
    assert!(followed.stderr.contains("and stderr"), "{followed:?}");
    eventually(ENDS, "a heartbeat to count it", || async {
        up.api.get("/functions/greet").await.json["warm_workers"] == 1
    })
    .await;
    let agents = flux(&up, &["agents"]).await.ok().stdout;
    assert!(agents.contains("python 3.") && agents.contains("node ") && agents.contains("bash "), "{agents}");

    // An exception, as the API and the command line tell it.
    let failed = up.api.execute("greet", &json!({"what": "raise"})).await.json;
    let error = &failed["error"];
    assert_eq!(
        (&error["kind"], &error["type"], &error["message"]),
        (&json!("exit"), &json!("ValueError"), &json!("not today"))
    );
    assert!(error["stack"].as_str().is_some_and(|stack| stack.contains("main.py")), "{failed:#}");
    let told = flux(&up, &["invoke", "greet", r#"{"what": "raise"}"#]).await;
    assert!(told.code != 0 && told.stderr.contains("ValueError: not today"), "{told:?}");

    // Given up on, its letter says what was raised.
    let id = up.api.execute_async("greet", &json!({"what": "raise"})).await;
    up.api.outcome(&id, ENDS).await;
    eventually(ENDS, "its letter to say why", || async {
        flux(&up, &["dlq", "list", "greet"]).await.stdout.contains("exit: ValueError: not today")
    })
    .await;

    // A new version is served by a new worker; the old one goes.
    let old = workers(&up);
    assert_eq!(old.len(), 1);
    deploy_python(&up, "greet", &PYTHON.replace("served += 1", "served += 100"), "keep_warm: 30").await;
    eventually(ENDS, "the old worker to go", || async { old.iter().all(|process| !process.is_alive()) }).await;
    let new = up.api.execute("greet", &json!({})).await.expect(200).json;
    assert_eq!((&new["start"], &new["result"]["served"]), (&json!("cold"), &json!(100)), "{new:#}");
}

#[tokio::test]
async fn what_cannot_be_a_handler_is_refused_when_it_is_deployed() {
    let up = FluxUp::start().await;
    for (yaml, field) in [
        ("name: f\nruntime: python\nhandler: main\n", "handler"),
        ("name: f\nruntime: node\nhandler: main\n", "handler"),
        ("name: f\nruntime: bash\nhandler: run.sh\nkeep_warm: 60\n", "keep_warm"),
        ("name: f\nruntime: node\nhandler: main.f\nfresh: true\n", "fresh"),
        ("name: f\nruntime: python\nhandler: main.f\nfresh: true\nkeep_warm: 0\n", "fresh"),
    ] {
        let refused = up.api.put("/functions", "application/yaml", yaml).await.expect(422);
        assert_eq!(refused.json["error"]["details"]["field"], field, "{}", refused.text());
    }
    up.api.put("/functions", "application/yaml", "name: f\nruntime: python\nhandler: mian.handler\n").await.expect(201);
    let zip = flux_testkit::archive(&[File::plain("main.py", "def handler(p, c): pass\n")]);
    let refused = up.api.put("/deploy/f", "application/zip", zip).await.expect(422);
    assert!(refused.text().contains("`mian.py`") && refused.text().contains("`main.py`"), "{}", refused.text());
    up.api.put("/functions", "application/yaml", "name: l\nruntime: lambda\nhandler: main.handler\n").await.expect(201);
    for (files, said) in [
        ([File::plain("main.py", "")], "no file `bootstrap`"),
        ([File::plain("bootstrap", "no program")], "`bootstrap` cannot be executed"),
    ] {
        let refused = up.api.put("/deploy/l", "application/zip", flux_testkit::archive(&files)).await.expect(422);
        assert!(refused.text().contains(said), "{}", refused.text());
    }
}

#[tokio::test]
async fn kill_9_of_a_worker_of_the_agent_and_of_everything_leaves_nothing() {
    let mut up = FluxUp::start().await;
    deploy_python(&up, "f", PYTHON, "keep_warm: 600").await;
    up.api.execute("f", &json!({})).await.expect(200);

    // The worker, in the midst of a call.
    let id = up.api.execute_async("f", &json!({"what": "sleep"})).await;
    eventually(ENDS, "it to run", || async {
        up.api.get(&format!("/executions/{id}")).await.json["phase"] == "running"
    })
    .await;
    workers(&up).first().expect("it serves").kill9();
    let record = up.api.outcome(&id, ENDS).await;
    assert_eq!((&record["error"]["kind"], &record["error"]["signal"]), (&json!("signal"), &json!(9)), "{record:#}");

    // What a call leaves behind ends with it.
    let mark = format!("77{}", up.api.base().rsplit(':').next().expect("a port").repeat(2));
    let left = up.api.execute("f", &json!({"what": "leave", "mark": mark})).await.expect(200).json;
    let gone = || async { flux_testkit::processes_matching(&mark).is_empty() };
    eventually(ENDS, "what it left to be gone", gone).await;
    let next = up.api.execute("f", &json!({})).await.expect(200).json;
    assert_eq!(next["start"], "cold", "{left:#}");

    // The agent: its workers go with its launcher, and the next one serves.
    let before = workers(&up);
    assert!(!before.is_empty());
    up.process.descendant("__serve").kill9();
    eventually(ENDS, "the workers to go", || async { before.iter().all(|process| !process.is_alive()) }).await;
    let again = eventually_some(ENDS, "a call to succeed", || async {
        let reply = flux_testkit::Api::try_send(
            up.api.request(reqwest::Method::POST, "/execute/f").json(&json!({"payload": {}})),
        )
        .await
        .ok()?;
        (reply.status == 200).then_some(reply.json)
    })
    .await;
    assert_eq!((&again["start"], &again["result"]["served"]), (&json!("cold"), &json!(1)), "{again:#}");

    // Everything.
    assert!(!workers(&up).is_empty());
    up.process.kill9();
    assert_no_processes_left(&up.marker()).await;
    let nothing: Vec<Value> = before.iter().filter(|process| process.is_alive()).map(|p| json!(p.pid)).collect();
    assert_eq!(nothing, Vec::<Value>::new());
}
