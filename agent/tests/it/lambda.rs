//! Packages made for AWS Lambda, with AWS's own clients of its Runtime API: `awslambdaric` (which `scripts/setup.sh test` installs)
//! and `lambda_runtime` (`examples/lambda_bootstrap.rs`).

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use flux_launcher::LauncherConfig;
use flux_protocol::{ErrorKind, Outcome, OutcomeStatus, Stream, execution::StartKind};
use flux_testkit::eventually;
use serde_json::{Value, json};

use crate::{
    real::Real,
    workers::{Workers, start},
    world::{SOON, World},
};

const HANDLERS: &str = r#"
import os, subprocess, sys, time
served = 0

def handler(event, context):
    global served
    served += 1
    what = event.get("what")
    print("number", served)
    print("to stderr", file=sys.stderr)
    if what == "raise":
        raise ValueError("no such thing")
    if what == "exit":
        sys.exit(4)
    if what == "sleep":
        time.sleep(60)
    if what == "leave":
        subprocess.Popen(["sleep", "600"])
    if what == "large":
        return "x" * (3 << 20)
    return {"served": served, "event": event, "id": context.aws_request_id, "arn": context.invoked_function_arn,
            "function": context.function_name, "version": context.function_version, "log": context.log_group_name,
            "memory": context.memory_limit_in_mb, "remaining": context.get_remaining_time_in_millis(),
            "trace": os.environ["_X_AMZN_TRACE_ID"], "root": os.environ["LAMBDA_TASK_ROOT"], "zone": os.environ["TZ"],
            "region": os.environ["AWS_REGION"], "handler": os.environ["_HANDLER"], "level": os.environ.get("LEVEL"),
            "here": os.getcwd(), "pid": os.getpid()}
"#;

const PYTHON: &str = "#!/bin/sh\nexec /usr/bin/python3 -m awslambdaric \"$_HANDLER\"\n";

/// As in AWS's own tutorial of a custom runtime, but for curl: Python speaks for it, a process for each request.
const SHELL: &str = r#"#!/bin/bash
ask() { /usr/bin/python3 -I -c '
import os, sys, urllib.request
request = urllib.request.Request("http://%s/2018-06-01/runtime/%s" % (os.environ["AWS_LAMBDA_RUNTIME_API"], sys.argv[1]),
    data=sys.argv[2].encode() if len(sys.argv) > 2 else None)
answer = urllib.request.urlopen(request, timeout=600)
print(answer.headers.get("Lambda-Runtime-Aws-Request-Id"))
print(answer.read().decode())' "$@"; }
while :; do
  { read -r id; read -r event; } < <(ask invocation/next)
  ask "invocation/$id/response" "Echo: $event" > /dev/null
done
"#;

struct Packages(Workers);

impl Packages {
    async fn new() -> Self {
        let packages = Self(Workers::new().await);
        packages.executable("bootstrap", PYTHON);
        std::fs::write(packages.code().join("main.py"), HANDLERS).expect("written");
        std::fs::write(packages.code().join("broken.py"), "raise RuntimeError('not today')").expect("written");
        copy(&client(), packages.code());
        packages
    }

    /// Of one program.
    async fn of(bootstrap: &str) -> Self {
        let packages = Self(Workers::new().await);
        packages.executable("bootstrap", bootstrap);
        packages
    }

    fn code(&self) -> &Path {
        self.0.0.code()
    }

    fn executable(&self, name: &str, content: &str) {
        let path = self.code().join(name);
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    }

    async fn deploy(&self, name: &str, handler: &str, more: &str) {
        self.0.deploy(name, "lambda", handler, more).await;
    }

    async fn outcome(&self, name: &str, payload: &Value) -> Outcome {
        self.0.outcome(name, payload).await
    }

    async fn result(&self, name: &str, payload: &Value) -> (Value, StartKind) {
        let outcome = self.outcome(name, payload).await;
        assert_eq!(outcome.status, OutcomeStatus::Success, "{:?}", outcome.error);
        let start = start(&outcome);
        (self.0.whole_output(&outcome).await.result().expect("a result"), start)
    }
}

/// Where the client lies.
fn client() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/lambda/python");
    assert!(path.join("awslambdaric").is_dir(), "awslambdaric is missing: `scripts/setup.sh test` installs it");
    path
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            std::fs::create_dir_all(&target).expect("made");
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copied");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmodified_python_package_is_served_and_then_warm() {
    let packages = Packages::new().await;
    let networks: &[&str] = match packages.0.0.launcher().await.capabilities().net_namespace {
        true => &["host", "none"],
        false => &["host"],
    };
    for network in networks {
        let name = format!("on-{network}");
        packages
            .deploy(
                &name,
                "main.handler",
                &format!("network: {network}\nenv: {{ LEVEL: info, AWS_REGION: eu-west-1 }}"),
            )
            .await;
        for (nth, kind) in [(1, StartKind::Cold), (2, StartKind::Warm), (3, StartKind::Warm)] {
            let asked = crate::world::invocation(json!({ "nth": nth }).to_string());
            let id = asked.execution_id.expect("given").to_string();
            let outcome = packages.0.0.world.call_with(&name, asked).await.outcome.expect("an outcome");
            assert_eq!(outcome.status, OutcomeStatus::Success, "{:?} {}", outcome.error, outcome.output.to_text());
            assert_eq!(start(&outcome), kind, "{network} {nth}");
            assert_eq!(outcome.start.expect("said").init_ms.micros > 0, kind == StartKind::Cold);
            let result = outcome.output.result().expect("a result");
            assert_eq!((&result["served"], &result["event"]), (&json!(nth), &json!({ "nth": nth })));
            assert_eq!(result["id"], json!(id.strip_prefix("exc-").expect("a prefix")));
            assert_eq!(result["arn"], json!(format!("arn:aws:lambda:eu-west-1:000000000000:function:{name}:1")));
            assert_eq!((&result["function"], &result["version"]), (&json!(name), &json!("1")));
            assert_eq!((&result["memory"], &result["log"]), (&json!("256"), &json!(format!("/aws/lambda/{name}"))));
            assert!(result["remaining"].as_i64().is_some_and(|ms| (1..=30_000).contains(&ms)), "{result}");
            assert!(result["trace"].as_str().is_some_and(|trace| trace.starts_with("Root=1-")), "{result}");
            assert_eq!((&result["zone"], &result["region"]), (&json!(":UTC"), &json!("eu-west-1")));
            assert_eq!((&result["handler"], &result["level"]), (&json!("main.handler"), &json!("info")));
            assert_eq!(result["root"], result["here"]);
            assert_eq!(outcome.output.bytes_of(Stream::Stdout), format!("number {nth}\n"));
            assert_eq!(outcome.output.bytes_of(Stream::Stderr), "to stderr\n");
            assert!(outcome.usage.memory_peak_mb > 5 && outcome.usage.cpu_ms.micros > 0, "{:?}", outcome.usage);
        }
    }
    let (large, _) = packages.result("on-host", &json!({ "what": "large" })).await;
    assert_eq!(large.as_str().map(str::len), Some(3 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_said_and_the_next_call_is_served() {
    let packages = Packages::new().await;
    packages.deploy("f", "main.handler", "timeout: 3").await;
    let error = packages.outcome("f", &json!({ "what": "raise" })).await.error.expect("an error");
    assert_eq!((error.kind, error.error_type.as_deref()), (ErrorKind::Exit, Some("ValueError")));
    assert_eq!(error.message, "no such thing");
    assert!(error.stack.is_some_and(|stack| stack.contains("main.py")));
    let (after, kind) = packages.result("f", &json!({})).await;
    assert_eq!((&after["served"], kind), (&json!(2), StartKind::Warm), "an exception costs no worker");

    let exited = packages.outcome("f", &json!({ "what": "exit" })).await.error.expect("an error");
    assert!(exited.exit_code == Some(4) || exited.error_type.as_deref() == Some("Runtime.ExitError"), "{exited:?}");
    let timed_out = packages.outcome("f", &json!({ "what": "sleep" })).await.error.expect("an error");
    assert_eq!(timed_out.kind, ErrorKind::Timeout);
    let (after, kind) = packages.result("f", &json!({})).await;
    assert_eq!((&after["served"], kind), (&json!(1), StartKind::Cold));

    // What a call leaves running ends its worker.
    let left = packages.outcome("f", &json!({ "what": "leave" })).await;
    assert_eq!((left.status, start(&left)), (OutcomeStatus::Success, StartKind::Warm), "{:?}", left.error);
    assert_eq!(start(&packages.outcome("f", &json!({})).await), StartKind::Cold);

    packages.deploy("broken", "broken.handler", "").await;
    let error = packages.outcome("broken", &json!({})).await.error.expect("an error");
    assert_eq!(error.kind, ErrorKind::Exit);
    assert!(error.message.contains("could not be initialised") && error.message.contains("not today"), "{error:?}");
    packages.deploy("missing", "nothing.handler", "").await;
    let error = packages.outcome("missing", &json!({})).await.error.expect("an error");
    assert!(error.message.contains("could not be initialised") && error.message.contains("nothing"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_a_crash_and_no_keeping_warm() {
    let packages = Packages::new().await;
    packages.deploy("f", "main.handler", "timeout: 60").await;
    let world = &packages.0.0.world;
    let (first, _) = packages.result("f", &json!({})).await;
    let id = world.invoke("f", json!({ "what": "sleep" }).to_string()).await;
    world.until_running(id).await;
    assert!(world.cancel(id, SOON).await.expect("an answer").cancelled);
    assert_eq!(world.end_of(id).await.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
    let (second, kind) = packages.result("f", &json!({})).await;
    assert_eq!((&second["served"], kind), (&first["served"], StartKind::Cold));

    // One that is killed while it waits is noticed, and another serves.
    let workers = || {
        let all = flux_testkit::descendants(i32::try_from(std::process::id()).expect("a pid"));
        all.into_iter().filter(|process| process.command.contains("awslambdaric")).collect::<Vec<_>>()
    };
    assert_eq!(workers().len(), 1);
    workers().first().expect("it waits").kill9();
    eventually(Duration::from_secs(5), "it to be gone", || std::future::ready(workers().is_empty())).await;
    assert_eq!(packages.result("f", &json!({})).await.1, StartKind::Cold);

    packages.deploy("cold", "main.handler", "keep_warm: 0").await;
    for _ in 0..2 {
        assert_eq!(packages.result("cold", &json!({})).await.1, StartKind::Cold);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rust_package_answers_streams_and_fails() {
    let packages = Packages(Workers::new().await);
    let built = Path::new(env!("CARGO_BIN_EXE_flux-agent")).with_file_name("examples").join("lambda_bootstrap");
    std::fs::copy(&built, packages.code().join("bootstrap")).expect("cargo builds examples with the tests");
    packages.deploy("rust", "bootstrap", "").await;
    let (first, kind) = packages.result("rust", &json!({ "n": 1 })).await;
    assert_eq!((&first["payload"], kind), (&json!({ "n": 1 }), StartKind::Cold));
    assert_eq!((&first["function"], &first["memory"]), (&json!("rust"), &json!(256)));
    let error = packages.outcome("rust", &json!({ "what": "fail" })).await.error.expect("an error");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Exit, "no such thing"));
    let error = packages.outcome("rust", &json!({ "what": "panic" })).await.error.expect("an error");
    assert!(error.message.contains("it panicked"), "{error:?}");
    let (again, kind) = packages.result("rust", &json!({})).await;
    assert_eq!((&again["pid"], kind), (&first["pid"], StartKind::Warm), "errors cost no worker");
    let error = packages.outcome("rust", &json!({ "what": "exit" })).await.error.expect("an error");
    assert_eq!((error.kind, error.exit_code), (ErrorKind::Exit, Some(3)), "{error:?}");

    packages.deploy("streaming", "streams", "timeout: 2").await;
    for kind in [StartKind::Cold, StartKind::Warm] {
        let (result, start) = packages.result("streaming", &json!({})).await;
        assert_eq!((&result["statusCode"], &result["body"]), (&json!(200), &json!("{\"streamed\": true}")), "{result}");
        assert_eq!((&result["isBase64Encoded"], start), (&json!(false), kind));
    }
    let error = packages.outcome("streaming", &json!({ "what": "fail" })).await.error.expect("half an answer is none");
    assert_eq!((error.kind, error.error_type.as_deref()), (ErrorKind::Exit, Some("Runtime.StreamError")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_that_asks_with_children_is_kept_warm() {
    let packages = Packages::of(SHELL).await;
    packages.deploy("f", "anything", "").await;
    for kind in [StartKind::Cold, StartKind::Warm, StartKind::Warm] {
        assert_eq!(packages.result("f", &json!({ "n": 1 })).await, (json!("Echo: {\"n\":1}"), kind));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_none_says_why() {
    let packages = Packages::of("#!/bin/sh\necho 'it did not like it' >&2\nexit 7\n").await;
    packages.deploy("exits", "main.handler", "").await;
    let outcome = packages.outcome("exits", &json!({})).await;
    let error = outcome.error.expect("an error");
    assert_eq!((error.kind, error.exit_code), (ErrorKind::Exit, Some(7)));
    assert!(error.message.contains("ended before it asked for an invocation"), "{}", error.message);
    assert_eq!(outcome.output.to_text(), "it did not like it\n");
    std::fs::remove_file(packages.code().join("bootstrap")).expect("removed");
    packages.deploy("gone", "main.handler", "").await;
    let error = packages.outcome("gone", &json!({})).await.error.expect("an error");
    assert_eq!(error.kind, ErrorKind::InvalidFunction);
    assert!(error.message.contains("`bootstrap`"), "{}", error.message);
}

/// Without slots, and so without a network or a view of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_without_slots() {
    let without_slots = |config: &mut LauncherConfig| config.slots = false;
    let real = Real::with(&[], "", World::settings(), without_slots).await;
    let packages = Packages(Workers(real));
    packages.executable("bootstrap", PYTHON);
    std::fs::write(packages.code().join("main.py"), HANDLERS).expect("written");
    copy(&client(), packages.code());
    packages.deploy("f", "main.handler", "").await;
    for (served, kind) in [(1, StartKind::Cold), (2, StartKind::Warm)] {
        let (result, start) = packages.result("f", &json!({})).await;
        assert_eq!((&result["served"], start), (&json!(served), kind));
        assert_eq!(result["root"], result["here"]);
    }
}

/// Says what the API answers to requests that make no sense, then the address that it is at.
const CURIOUS: &str = r#"#!/usr/bin/python3 -I
import http.client, json, os
at = os.environ["AWS_LAMBDA_RUNTIME_API"]
def ask(method, path, body=None, connection=None):
    connection = connection or http.client.HTTPConnection(at, timeout=30)
    connection.request(method, path, body)
    answer = connection.getresponse()
    text = answer.read()
    return answer, json.loads(text) if text else None
ROOT = "/2018-06-01/runtime/"
early = ask("POST", ROOT + "invocation/unknown/response", "{}")[0].status
while True:
    answer, event = ask("GET", ROOT + "invocation/next")
    id = answer.headers["Lambda-Runtime-Aws-Request-Id"]
    said = {"early": early, "at": at}
    for name, method, path, body in [
        ("other id", "POST", "invocation/unknown/response", "{}"),
        ("next", "GET", "invocation/next", None),
        ("init", "POST", "init/error", "{}"),
        ("path", "GET", "nothing", None),
    ]:
        answer, refused = ask(method, ROOT + path, body)
        said[name] = [answer.status, refused["errorType"]]
    said["extension"] = ask("POST", "/2020-01-01/extension/register", "{}")[0].status
    if event.get("large"):
        answer, refused = ask("POST", ROOT + "invocation/%s/response" % id, "x" * (16 * 1024 * 1024 + 1))
        assert answer.status == 413, answer.status
        continue
    assert ask("POST", ROOT + "invocation/%s/response" % id, json.dumps(said))[0].status == 202
    again = ask("POST", ROOT + "invocation/%s/response" % id, "\"another\"")[0].status
    assert again == 400, again
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_nobody_else_is_served() {
    let packages = Packages::of(CURIOUS).await;
    packages.deploy("f", "anything", "").await;
    let (said, _) = packages.result("f", &json!({})).await;
    assert_eq!((&said["early"], &said["other id"]), (&json!(400), &json!([400, "InvalidRequestID"])), "{said}");
    assert_eq!(said["next"], json!([403, "InvalidStateTransition"]));
    assert_eq!(said["init"], json!([403, "InvalidStateTransition"]));
    assert_eq!((&said["path"], &said["extension"]), (&json!([404, "InvalidPath"]), &json!(404)));
    let error = packages.outcome("f", &json!({ "large": true })).await.error.expect("an error");
    assert_eq!(error.error_type.as_deref(), Some("Function.ResponseSizeTooLarge"), "{error:?}");

    // This process is another user where there is a user for functions.
    let address = said["at"].as_str().expect("an address").to_owned();
    let capabilities = packages.0.0.launcher().await.capabilities().clone();
    if !capabilities.root {
        return;
    }
    let mut stranger = tokio::net::TcpStream::connect(&address).await.expect("it listens");
    let asked = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stranger, asked).await.expect("sent");
    let (again, kind) = packages.result("f", &json!({})).await;
    assert_eq!((&again["at"], kind), (&json!(address), StartKind::Warm));
    let mut heard = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut stranger, &mut heard).await;
    assert!(ended.is_err() || heard.is_empty(), "{}", String::from_utf8_lossy(&heard));
}
