//! `fresh: true`: each call in a process forked for it, with the real launcher and this machine's Python.

use flux_launcher::LauncherConfig;
use flux_protocol::{
    ErrorKind, ExecutionError, Lane, Outcome, OutcomeStatus, Stream, agent::OutputMessage, execution::StartKind,
    subject,
};
use flux_testkit::eventually;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::{
    real::Real,
    secrets::Giver,
    workers::{Workers, start},
    world::{SOON, World, invocation},
};

/// What a process has of its own, and what it finds of those before it.
const MODULE: &str = r#"
import os, subprocess, sys, threading, time

BORN_IN = os.getpid()
SERVED = []
TMP = os.environ["TMPDIR"]
LINES = open(__file__)
LINES.readline()

def state(payload, context):
    found = {"served": len(SERVED), "files": os.listdir(TMP), "env": os.environ.get("LEFT"), "line": LINES.readline(),
             "here": os.getcwd(), "threads": len(sys._current_frames()), "parent": os.getppid(), "me": os.getpid(),
             "blocking": os.get_blocking(1)}
    SERVED.append(payload)
    os.environ["LEFT"] = "behind"
    os.chdir("/")
    os.set_blocking(1, False)
    with open(TMP + "/left", "w") as file:
        file.write("behind")
    return {**found, "born_in": BORN_IN}

def leaves(payload, context):
    what = payload["what"]
    loud = "while :; do echo LATE; sleep 0.01; done"
    if what == "process":
        subprocess.Popen(["/bin/sh", "-c", loud], start_new_session=True)
    if what == "daemon" and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv("/bin/sh", ["/bin/sh", "-c", "trap '' TERM; " + loud])
        os._exit(0)
    if what == "thread":
        def late():
            while True:
                print("LATE", flush=True)
        threading.Thread(target=late).start()
    if what == "fork" and os.fork() == 0:
        return "child"
    if what == "wait":
        time.sleep(0.1)
    return os.getppid()

def fails(payload, context):
    what = payload["what"]
    print("before")
    if what == "raise":
        raise ValueError("no such thing")
    if what == "not json":
        return {1, 2}
    if what == "exit":
        sys.exit(3)
    if what == "exit 0":
        sys.exit()
    if what == "_exit":
        os._exit(4)
    if what == "segv":
        os.kill(os.getpid(), 11)
    if what == "sleep":
        time.sleep(600)
    if what == "memory":
        return len(b"x" * (512 << 20))
    return os.getppid()

def polite(payload, context):
    import signal
    def asked(number, frame):
        print("asked", flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, asked)
    if payload["what"] == "sleep":
        print("sleeps", flush=True)
        time.sleep(600)
    return os.getppid()

async def later(payload, context):
    import asyncio
    await asyncio.sleep(0.001)
    return [payload, os.getpid()]

def says(payload, context):
    print("first", flush=True)
    time.sleep(600 if payload["what"] == "wait" else 0)
    return os.environ.get("DB")

def large(payload, context):
    return payload
"#;

const DRAWS: &str = r#"
import numpy, random, secrets, ssl, uuid
random.seed(7)
numpy.random.seed(7)

def handler(payload, context):
    return [random.random(), str(uuid.uuid4()), str(uuid.uuid1()), secrets.token_hex(8), ssl.RAND_bytes(8).hex(),
            float(numpy.random.random())]
"#;

/// Where this machine's Python has no numpy: what is asked of its global generator, by another one that repeats itself.
const NUMPY: &str = r#"
from random import Random
random = Random(7)
"#;

struct Fresh(Workers);

impl Fresh {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut LauncherConfig)) -> Self {
        let fresh = Self(Workers::with(World::settings(), change).await);
        fresh.module("fresh", MODULE);
        fresh
    }

    fn real(&self) -> &Real {
        &self.0.0
    }

    fn module(&self, name: &str, content: &str) {
        std::fs::write(self.real().code().join(format!("{name}.py")), content).expect("written");
    }

    async fn deploy(&self, name: &str, handler: &str, more: &str) {
        self.0.deploy(name, "python", handler, &format!("fresh: true\n{more}")).await;
    }

    async fn outcome(&self, name: &str, payload: &Value) -> Outcome {
        self.0.outcome(name, payload).await
    }

    async fn result(&self, name: &str, what: &str) -> Value {
        let outcome = self.outcome(name, &json!({ "what": what })).await;
        assert_eq!(outcome.status, OutcomeStatus::Success, "{:?}", outcome.error);
        outcome.output.result().expect("a result")
    }

    async fn error(&self, name: &str, what: &str) -> (ExecutionError, Outcome) {
        let outcome = self.outcome(name, &json!({ "what": what })).await;
        (outcome.error.clone().expect("an error"), outcome)
    }
}

async fn sees_what_importing_left_and_nothing_else(fresh: &Fresh) {
    fresh.deploy("f", "fresh.state", "").await;
    let mut first = Value::Null;
    for nth in 0..5 {
        let outcome = fresh.outcome("f", &json!({ "n": nth })).await;
        assert_eq!(outcome.status, OutcomeStatus::Success, "{:?}", outcome.error);
        assert_eq!(start(&outcome), if nth == 0 { StartKind::Cold } else { StartKind::Warm }, "{nth}");
        assert_eq!(outcome.start.expect("said").init_ms.micros > 0, nth == 0);
        assert!(outcome.usage.memory_peak_mb > 0 && outcome.duration_ms.micros > 0);
        let mut found = outcome.output.result().expect("a result");
        let me = found["me"].take();
        assert_ne!(me, found["born_in"], "the process that loaded it serves nobody");
        assert_eq!((&found["parent"], &found["served"]), (&found["born_in"], &json!(0)));
        assert_eq!((&found["files"], &found["env"], &found["threads"]), (&json!([]), &Value::Null, &json!(1)));
        if nth == 0 {
            first = found;
        } else {
            assert_eq!(found, first, "the same parent, and the same found: {nth}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_sees_what_importing_left_and_nothing_else() {
    let fresh = Fresh::new().await;
    sees_what_importing_left_and_nothing_else(&fresh).await;
    fresh.deploy("later", "fresh.later", "").await;
    let (first, second) = (fresh.result("later", "a").await, fresh.result("later", "b").await);
    assert_eq!((&first[0]["what"], &second[0]["what"]), (&json!("a"), &json!("b")));
    assert_ne!(first[1], second[1], "an `async def` too has a process for each call");
    // Larger than any buffer on its way, both ways.
    fresh.deploy("large", "fresh.large", "").await;
    let large = "x".repeat(3 << 20);
    for _ in 0..2 {
        let said = fresh.outcome("large", &json!(large)).await;
        assert_eq!(said.status, OutcomeStatus::Success, "{:?}", said.error);
        assert_eq!(fresh.0.whole_output(&said).await.result(), Some(json!(large)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_without_slots_and_without_a_network() {
    let fresh = Fresh::with(|config| config.slots = false).await;
    sees_what_importing_left_and_nothing_else(&fresh).await;
    fresh.deploy("leaves", "fresh.leaves", "").await;
    leaves_nothing(&fresh, &["process", "thread"]).await;
    eventually(SOON, "nothing to be left", || {
        std::future::ready(flux_testkit::processes_matching("echo LATE").is_empty())
    })
    .await;
    let fresh = Fresh::new().await;
    fresh.deploy("f", "fresh.later", "network: none").await;
    for kind in [StartKind::Cold, StartKind::Warm, StartKind::Warm] {
        let outcome = fresh.outcome("f", &json!({})).await;
        if !fresh.real().launcher().await.capabilities().net_namespace {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to make network namespaces");
            eprintln!("not tested: no network namespace here");
            return;
        }
        assert_eq!((outcome.status, start(&outcome)), (OutcomeStatus::Success, kind), "{:?}", outcome.error);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_draw_numbers_of_their_own() {
    let fresh = Fresh::new().await;
    fresh.module("draws", DRAWS);
    // The folder of a function comes before what is installed.
    fresh.module("asks", "import importlib.util\ndef handler(payload, context):\n    return importlib.util.find_spec('numpy') is not None\n");
    fresh.deploy("asks", "asks.handler", "").await;
    if fresh.result("asks", "").await == json!(false) {
        fresh.module("numpy", NUMPY);
    }
    fresh.deploy("f", "draws.handler", "").await;
    let mut seen: Vec<Value> = Vec::new();
    for _ in 0..6 {
        let drawn = fresh.result("f", "").await;
        for draw in drawn.as_array().expect("a list") {
            assert!(!seen.contains(draw), "{draw} was drawn before: {seen:?}");
            seen.push(draw.clone());
        }
    }
}

/// What a call leaves behind is dead before the next one begins, which has the same parent and hears nothing of it.
async fn leaves_nothing(fresh: &Fresh, all: &[&str]) {
    let parent = fresh.result("leaves", "").await;
    for what in all {
        assert_eq!(fresh.result("leaves", what).await, parent, "{what}");
        let after = fresh.0.call("leaves", &json!({ "what": "wait" })).await;
        assert!(after.notes.is_empty(), "{what}: {:?}", after.notes);
        let after = after.outcome.expect("an outcome");
        assert_eq!((start(&after), after.output.to_text().as_str()), (StartKind::Warm, ""), "{what}");
        assert_eq!(after.output.result(), Some(parent.clone()), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_leaves_running_is_ended_and_its_parent_stays() {
    let fresh = Fresh::new().await;
    fresh.deploy("leaves", "fresh.leaves", "").await;
    leaves_nothing(&fresh, &["process", "daemon", "thread", "fork"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_end_ends_that_call_alone() {
    let fresh = Fresh::new().await;
    fresh.deploy("f", "fresh.fails", "").await;
    let parent = fresh.result("f", "").await;
    let (error, outcome) = fresh.error("f", "raise").await;
    assert_eq!((error.kind, error.error_type.as_deref()), (ErrorKind::Exit, Some("ValueError")));
    assert_eq!((error.message.as_str(), outcome.output.to_text().as_str()), ("no such thing", "before\n"));
    let stack = error.stack.expect("a stack");
    assert!(stack.contains("fresh.py") && stack.contains("in fails") && !stack.contains("<flux>"), "{stack}");
    let mut ends = vec![
        ("not json", ErrorKind::Exit, None, None),
        ("exit", ErrorKind::Exit, Some(3), None),
        ("exit 0", ErrorKind::Exit, Some(0), None),
        ("_exit", ErrorKind::Exit, Some(4), None),
        ("segv", ErrorKind::Signal, None, Some(11)),
    ];
    if fresh.real().launcher().await.capabilities().cgroup.memory {
        ends.push(("memory", ErrorKind::OutOfMemory, None, None));
    }
    for (what, kind, code, signal) in ends {
        let (error, outcome) = fresh.error("f", what).await;
        assert_eq!((error.kind, error.exit_code, error.signal), (kind, code, signal), "{what}: {}", error.message);
        assert_eq!((start(&outcome), outcome.output.to_text().as_str()), (StartKind::Warm, "before\n"), "{what}");
        assert_eq!(fresh.result("f", "").await, parent, "{what}: the parent stays");
    }
    // The limit holds for a cold start as well, which takes longer on a machine that has much to do.
    fresh.deploy("slow", "fresh.fails", "timeout: 2").await;
    eventually(SOON, "a worker that waits", || async {
        fresh.outcome("slow", &json!({ "what": "" })).await.status == OutcomeStatus::Success
    })
    .await;
    let parent = fresh.result("slow", "").await;
    let (error, outcome) = fresh.error("slow", "sleep").await;
    assert_eq!((error.kind, outcome.output.to_text().as_str()), (ErrorKind::Timeout, "before\n"), "{}", error.message);
    assert_eq!(start(&outcome), StartKind::Warm);
    assert_eq!(fresh.result("slow", "").await, parent, "the parent stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_a_call_and_what_it_forked_and_the_parent_stays() {
    let fresh = Fresh::new().await;
    fresh.deploy("f", "fresh.fails", "").await;
    fresh.deploy("polite", "fresh.polite", "stop_grace: 20").await;
    for name in ["f", "polite"] {
        let parent = fresh.result(name, "").await;
        let id = fresh.real().world.invoke(name, json!({ "what": "sleep" }).to_string()).await;
        fresh.real().world.until_running(id).await;
        assert!(fresh.real().world.cancel(id, SOON).await.expect("an answer").cancelled);
        let ended = fresh.real().world.end_of(id).await.outcome.expect("an outcome");
        assert_eq!((ended.status, start(&ended)), (OutcomeStatus::Cancelled, StartKind::Warm), "{ended:?}");
        assert_eq!(ended.output.to_text().contains("asked"), name == "polite", "{ended:?}");
        assert_eq!(fresh.result(name, "").await, parent, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_live_and_a_killed_parent_is_replaced() {
    let fresh = Fresh::new().await;
    fresh.deploy("f", "fresh.says", "").await;
    let parent = || {
        let all = flux_testkit::descendants(std::process::id().cast_signed());
        let workers = all.into_iter().filter(|process| process.command.contains("int.from_bytes"));
        workers.min_by_key(|process| process.pid)
    };
    fresh.result("f", "").await;
    let asked = invocation(json!({ "what": "wait" }).to_string());
    let id = asked.execution_id.expect("given");
    let world = &fresh.real().world;
    let mut live = world.broker.listen(&subject::outputs_of(id)).await.expect("a subscription");
    world.publish(&World::queue(Lane::Invoke, "f"), &asked).await;
    let heard = tokio::time::timeout(SOON, live.next()).await.expect("in time").expect("output");
    let heard: OutputMessage = serde_json::from_slice(&heard.body).expect("a chunk");
    assert_eq!((heard.chunk.data.as_ref(), heard.chunk.stream), (&b"first\n"[..], Stream::Stdout), "while it runs");
    parent().expect("it serves").kill9();
    let ended = fresh.real().world.end_of(id).await.outcome.expect("an outcome");
    assert_eq!(ended.error.as_ref().and_then(|error| error.signal), Some(9), "{ended:?}");
    let outcome = fresh.outcome("f", &json!({ "what": "" })).await;
    assert_eq!((outcome.status, start(&outcome)), (OutcomeStatus::Success, StartKind::Cold));
    // While it waits: nobody hears of it but in the start.
    parent().expect("it waits").kill9();
    eventually(SOON, "it to be gone", || std::future::ready(parent().is_none())).await;
    let outcome = fresh.outcome("f", &json!({ "what": "" })).await;
    assert_eq!((outcome.status, start(&outcome)), (OutcomeStatus::Success, StartKind::Cold));
}

/// Four at a time: an agent without gateways listens to no more functions than it has tasks.
async fn cannot_be_forked(modules: [(&str, &str, &str); 4]) {
    let fresh = Fresh::new().await;
    for (name, module, why) in modules {
        let served = "SERVED = []\ndef handler(payload, context):\n    SERVED.append(1)\n    return len(SERVED)\n";
        fresh.module(&format!("cannot_{name}"), &format!("{module}\n{served}"));
        fresh.deploy(name, &format!("cannot_{name}.handler"), "").await;
        for _ in 0..2 {
            let reply = fresh.0.call(name, &json!({})).await;
            let said = |note: &String| note.starts_with("`fresh: true`") && note.contains(why);
            assert!(reply.notes.iter().any(said), "{name}: {:?}", reply.notes);
            let outcome = reply.outcome.expect("an outcome");
            assert_eq!((start(&outcome), outcome.output.result()), (StartKind::Cold, Some(json!(1))), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_or_listens_cannot_be_forked_and_that_is_said() {
    let thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()";
    cannot_be_forked([
        ("thread", thread, "1 thread that it began runs"),
        ("process", "import subprocess\nPROCESS = subprocess.Popen(['/bin/sleep', '600'])", "a process that it began"),
        ("socket", "import socket\nSOCKET = socket.socket()", "a socket is open"),
        ("loop", "import asyncio\nLOOP = asyncio.new_event_loop()", "is open"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_calls_would_share_cannot_be_forked_and_that_is_said() {
    cannot_be_forked([
        ("pipe", "PIPE = __import__('os').pipe()", "pipe:"),
        ("memory", "import mmap\nMEMORY = mmap.mmap(-1, 4096)", "memory that processes share"),
        ("file", "import os\nopen(os.environ['TMPDIR'] + '/x', 'w').close()", "there are files in"),
        ("written", "import tempfile\nFILE = tempfile.TemporaryFile()", "open for writing"),
    ])
    .await;
}

/// What is mounted anew would else stay, for all calls, where a descriptor or the place that the parent stands at holds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_emptied_between_calls_is_held_by_nothing() {
    cannot_be_forked([
        ("tmp", "import os\nHELD = os.open(os.environ['TMPDIR'], os.O_RDONLY)", "each call is to find empty"),
        ("path", "import os\nHELD = os.open(os.environ['TMPDIR'], os.O_PATH)", "each call is to find empty"),
        ("shm", "import os\nHELD = os.open('/dev/shm', os.O_PATH)", "`/dev/shm` is open"),
        (
            "gone",
            "import os\nNAME = os.environ['TMPDIR'] + '/x'\nopen(NAME, 'w').close()\nHELD = open(NAME)\nos.remove(NAME)",
            "each call is to find empty",
        ),
    ])
    .await;
    for slots in [true, false] {
        let fresh = Fresh::with(|config| config.slots = slots).await;
        let module = "import os\nos.chdir(os.environ['TMPDIR'])\ndef handler(payload, context):\n    found = os.listdir('.')\n    \
                      open('left', 'w').close()\n    return [os.getcwd() == os.environ['TMPDIR'], found, os.listdir(os.environ['TMPDIR'])]\n";
        fresh.module("stands", module);
        fresh.deploy("stands", "stands.handler", "").await;
        for kind in [StartKind::Cold, StartKind::Warm, StartKind::Warm, StartKind::Warm] {
            let outcome = fresh.outcome("stands", &json!({})).await;
            let found = outcome.output.result();
            assert_eq!((start(&outcome), found), (kind, Some(json!([true, [], ["left"]]))), "slots: {slots}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_it_cannot_be_forked_is_said_without_its_secrets() {
    let fresh = Fresh::new().await;
    Giver::default().listen(&fresh.real().world).await;
    let module = "import os\nHELD = open(os.environ['TMPDIR'] + '/' + os.environ['DB'], 'w')\ndef handler(payload, context):\n    pass\n";
    fresh.module("tells", module);
    fresh.deploy("tells", "tells.handler", "secrets: [DB]").await;
    let reply = fresh.0.call("tells", &json!({})).await;
    let notes = reply.notes.join("\n");
    assert!(notes.contains("open for writing") && notes.contains("***") && !notes.contains("hunter2"), "{notes}");
}

/// The handler is loaded, and the process for the call is not there yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_before_the_fork_ends_the_call_that_is_to_come() {
    let fresh = Fresh::new().await;
    let module = "import gc, time\ndef slow(phase, info):\n    if phase == 'start' and info['generation'] == 2:\n        \
                  print('collects', flush=True)\n        time.sleep(8)\ngc.callbacks.append(slow)\n\
                  def handler(payload, context):\n    print('begins', flush=True)\n    time.sleep(600)\n";
    fresh.module("slow", module);
    fresh.deploy("f", "slow.handler", "timeout: 1").await;
    let outcome = fresh.outcome("f", &json!({})).await;
    assert_eq!(outcome.error.map(|error| error.kind), Some(ErrorKind::Timeout));
    assert!(!outcome.output.to_text().contains("begins"), "{}", outcome.output.to_text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_waits_as_long_as_others_do() {
    let fresh = Fresh::new().await;
    fresh.deploy("short", "fresh.later", "keep_warm: 0.3").await;
    fresh.result("short", "").await;
    let left = || flux_testkit::descendants(std::process::id().cast_signed());
    let interpreters = || left().into_iter().filter(|process| process.command.contains("int.from_bytes")).count();
    eventually(SOON, "it and its child to be gone", || std::future::ready(interpreters() == 0)).await;
    assert_eq!(start(&fresh.outcome("short", &json!({})).await), StartKind::Cold);
    // Another version has another parent, and so has one whose module cannot be loaded.
    fresh.deploy("broken", "broken.handler", "").await;
    for _ in 0..2 {
        let (error, _) = fresh.error("broken", "").await;
        assert_eq!(error.error_type.as_deref(), Some("ModuleNotFoundError"), "{}", error.message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_each_hear_their_own() {
    let fresh = Fresh::new().await;
    fresh.deploy("f", "main.echo", "max_concurrency: 4").await;
    let rounds = (0..40).map(|n| {
        let fresh = &fresh;
        async move {
            let payload = json!({ "n": format!("f-{n}-") });
            let outcome = fresh.outcome("f", &payload).await;
            let printed = outcome.output.to_text();
            assert_eq!(printed.matches(&format!("f-{n}-")).count(), 1, "{printed}");
            assert_eq!(outcome.output.bytes_of(Stream::Stderr), "wrong\n");
            assert_eq!(outcome.output.result().expect("a result")["payload"], payload);
        }
    });
    futures::future::join_all(rounds).await;
}
