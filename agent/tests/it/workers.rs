//! Python and Node handlers in warm workers, with the real launcher and this machine's interpreters.

use std::time::Duration;

use flux_launcher::LauncherConfig;
use flux_protocol::{
    ErrorKind, ExecutionError, Outcome, OutcomeStatus, StatusMessage, Stream, execution::StartKind, limits,
};
use flux_runtime::settings::AgentSettings;
use flux_testkit::eventually;
use serde_json::{Value, json};

use crate::{
    real::Real,
    world::{SOON, World, kind, message, text},
};

const PYTHON: &str = r#"
import asyncio, os, subprocess, sys, threading, time

ME = os.urandom(8).hex()

def me(payload, context):
    return ME

def echo(payload, context):
    print("got", payload)
    os.write(1, b"raw\n")
    print("wrong", file=sys.stderr)
    return {"payload": payload, "id": context.execution_id, "attempt": context.attempt, "args": context.args,
            "function": context.function, "remaining": context.remaining_ms() > 0, "tmp": os.environ["TMPDIR"],
            "env": sorted(name for name in os.environ if name.startswith("CARGO"))}

async def later(payload, context):
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().create_task(asyncio.sleep(60))
    return [payload]

async def timers(payload, context):
    loop = asyncio.get_running_loop()
    if payload["what"] == "leave":
        def late():
            print("LATE", flush=True)
            sys.stdout.buffer.write(b"LATE\n")
            os.write(2, b"LATE\n")
        def raises():
            raise ValueError("LATE")
        loop.call_later(0.02, late)
        loop.call_later(0.02, raises)
        read, write = os.pipe()
        os.write(write, b"x")
        loop.add_reader(read, late)
        return ME
    print("mine", end="")
    loop.call_later(0.05, print, " and mine later")
    await asyncio.sleep(0.1)
    return ME

def fails(payload, context):
    what = payload["what"]
    if what == "raise":
        print("before")
        raise ValueError("no such thing")
    if what == "not json":
        return {1, 2}
    if what == "nan":
        return float("nan")
    if what == "too large":
        return "x" * (16 * 1024 * 1024)
    if what == "exit":
        sys.exit(3)
    if what == "exit 0":
        sys.exit()
    if what == "abort":
        os.abort()
    if what == "sleep":
        time.sleep(60)
    if what == "memory":
        return len(b"x" * (512 << 20))

def leaves(payload, context):
    what = payload["what"]
    if what == "process":
        subprocess.Popen(["/bin/sh", "-c", "while :; do echo LATE; sleep 0.01; done"], start_new_session=True)
    if what == "thread":
        def late():
            while True:
                print("LATE", flush=True)
                time.sleep(0.01)
        threading.Thread(target=late, daemon=True).start()
    if what == "fork" and os.fork() == 0:
        return "child"
    if what == "wait":
        time.sleep(0.2)
    return ME

def stubborn(payload, context):
    import signal
    class Asked(Exception):
        pass
    def asked(number, frame):
        raise Asked
    signal.signal(signal.SIGTERM, asked)
    if payload["what"] == "sleep":
        try:
            time.sleep(60)
        except Asked:
            print("asked")
    return ME

def changes(payload, context):
    import signal
    what = payload["what"]
    here = os.getcwd()
    if what == "stdout":
        os.close(1)
    if what == "stderr":
        sys.stderr.close()
    if what == "elsewhere":
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    if what == "folder":
        os.chdir("/tmp")
    if what == "alarm":
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    if what == "wait":
        time.sleep(0.1)
    if what in ("", "wait"):
        print("printed")
    return {"me": ME, "here": here}

POOL = None

def pools(payload, context):
    global POOL
    from concurrent.futures import ThreadPoolExecutor
    POOL = POOL or ThreadPoolExecutor(2)
    assert list(POOL.map(abs, [-1, -2])) == [1, 2]
    return ME
"#;

/// Its thread ends, and its number is the next one's.
const THREADS: &str = r#"
import threading, time

stop = threading.Event()
early = threading.Thread(target=stop.wait, daemon=True)
early.start()
number = early.ident

def handler(payload, context):
    if payload["what"] == "wait":
        time.sleep(0.2)
        return
    stop.set()
    early.join()
    # The next thread's stack is the one that was freed last: the others are held until it is the early one's.
    others = []
    for _ in range(50):
        end = threading.Event()
        def late(end=end):
            while not end.wait(0.01):
                print("LATE", flush=True)
        thread = threading.Thread(target=late, daemon=True)
        thread.start()
        if thread.ident == number:
            break
        others.append((end, thread))
    for other, _ in others:
        other.set()
    for _, other in others:
        other.join()
    return thread.ident == number
"#;

const NODE: &str = r#"
const fs = require('fs');
const me = require('crypto').randomUUID();
exports.echo = async (payload, context) => {
  console.log('got', payload);
  fs.writeSync(1, 'raw\n');
  console.error('wrong');
  return { payload, id: context.executionId, attempt: context.attempt, args: context.args,
           function: context.function, remaining: context.remainingMs() > 0 };
};
exports.fails = async ({ what }) => {
  if (what === 'raise') throw new RangeError('no such thing');
  if (what === 'not json') return 10n;
  if (what === 'exit') process.exit(3);
  if (what === 'uncaught') { setTimeout(() => { throw new TypeError('nobody caught it'); }, 10); await new Promise(() => {}); }
};
exports.changes = async ({ what }) => {
  const here = process.cwd();
  if (what === 'stdout') fs.closeSync(1);
  if (what === 'folder') process.chdir('/tmp');
  if (what === '' || what === 'wait') console.log('printed');
  return { me, here };
};
exports.leaves = async ({ what }) => {
  if (what === 'timer') setInterval(() => { console.log('LATE'); fs.writeSync(1, 'LATE\n'); process.stderr.write('LATE\n'); }, 10);
  if (what === 'wait') await new Promise((done) => setTimeout(done, 200));
  return me;
};
"#;

pub(crate) struct Workers(pub(crate) Real);

impl Workers {
    pub(crate) async fn new() -> Self {
        Self::with(World::settings(), |_| {}).await
    }

    pub(crate) async fn with(settings: AgentSettings, change: impl FnOnce(&mut LauncherConfig)) -> Self {
        let real =
            Real::with(&[("native", "echo native")], "resources: { cpu: 1000, memory: 2100 }", settings, change).await;
        for (name, content) in [
            ("main.py", PYTHON),
            ("main.js", NODE),
            ("threads.py", THREADS),
            ("broken.py", "import nothing_of_this_name"),
            ("default.mjs", "export default (payload) => ({ esm: payload });"),
            ("run.sh", "echo \"bash got $(cat) and $1\""),
        ] {
            std::fs::write(real.code().join(name), content).expect("written");
        }
        Self(real)
    }

    pub(crate) async fn deploy(&self, name: &str, runtime: &str, handler: &str, more: &str) {
        self.deploy_version(name, runtime, handler, more, 1).await;
    }

    async fn deploy_version(&self, name: &str, runtime: &str, handler: &str, more: &str, version: u32) {
        let resources = if more.contains("resources") { "" } else { "\nresources: { cpu: 1000, memory: 256 }" };
        let yaml = format!("name: {name}\nruntime: {runtime}\nhandler: {handler}{resources}\n{more}");
        self.0.world.deploy_version(&yaml, version).await;
    }

    pub(crate) async fn call(&self, name: &str, payload: &Value) -> StatusMessage {
        self.0.world.call(name, payload.to_string()).await
    }

    pub(crate) async fn outcome(&self, name: &str, payload: &Value) -> Outcome {
        self.call(name, payload).await.outcome.expect("an outcome")
    }

    async fn result(&self, name: &str, payload: &Value) -> Value {
        let outcome = self.outcome(name, payload).await;
        assert_eq!(outcome.status, OutcomeStatus::Success, "{:?}", outcome.error);
        outcome.output.result().expect("a result")
    }

    /// Also of one that is too large for a message.
    pub(crate) async fn whole_output(&self, outcome: &Outcome) -> flux_protocol::OutputLog {
        let Some(blob) = &outcome.output_ref else { return outcome.output.clone() };
        let bucket = flux_protocol::subject::blob_bucket(&blob.key);
        let stored = self.0.world.broker.get_blob(bucket, &blob.key, limits::OUTPUT).await.expect("read");
        flux_protocol::OutputLog::decode(stored.expect("there")).expect("an output")
    }

    async fn error(&self, name: &str, what: &str) -> (ExecutionError, Outcome) {
        let outcome = self.outcome(name, &json!({ "what": what })).await;
        (outcome.error.clone().expect("an error"), outcome)
    }
}

pub(crate) fn start(outcome: &Outcome) -> StartKind {
    outcome.start.expect("it started").kind
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_are_called_and_the_second_time_they_are_warm() {
    let workers = Workers::new().await;
    for (runtime, handler) in [("python", "main.echo"), ("node", "main.echo")] {
        let name = format!("echo-{runtime}");
        workers.deploy(&name, runtime, handler, "").await;
        for (nth, kind) in [(1, StartKind::Cold), (2, StartKind::Warm), (3, StartKind::Warm)] {
            let mut asked = crate::world::invocation(json!({ "n": nth }).to_string());
            asked.args = vec!["a b".to_owned()];
            let id = asked.execution_id.expect("given").to_string();
            let outcome = workers.0.world.call_with(&name, asked).await.outcome.expect("an outcome");
            assert_eq!(outcome.status, OutcomeStatus::Success, "{:?}", outcome.error);
            assert_eq!(start(&outcome), kind, "{runtime} {nth}");
            let init = outcome.start.expect("said").init_ms;
            assert_eq!(init.micros > 0, kind == StartKind::Cold, "{init:?}");
            let result = outcome.output.result().expect("a result");
            assert_eq!(result["payload"], json!({ "n": nth }));
            assert_eq!(
                (&result["id"], &result["attempt"], &result["remaining"]),
                (&json!(id), &json!(1), &json!(true))
            );
            assert_eq!((&result["args"], &result["function"]), (&json!(["a b"]), &json!(name)));
            let stdout = String::from_utf8(outcome.output.bytes_of(Stream::Stdout).to_vec()).expect("text");
            assert!(stdout.starts_with("got ") && stdout.ends_with("raw\n"), "{stdout}");
            assert_eq!(outcome.output.bytes_of(Stream::Stderr), "wrong\n");
            assert!(outcome.usage.memory_peak_mb > 0 && outcome.duration_ms.micros > 0);
        }
    }
    let native = workers.outcome("native", &json!({})).await;
    assert_eq!(start(&native), StartKind::Cold);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_forms_of_handlers() {
    let workers = Workers::new().await;
    workers.deploy("later", "python", "main.later", "").await;
    assert_eq!(workers.result("later", &json!("x")).await, json!(["x"]));
    assert_eq!(workers.result("later", &json!("y")).await, json!(["y"]));
    workers.deploy("esm", "node", "default.mjs", "").await;
    assert_eq!(workers.result("esm", &json!(1)).await, json!({ "esm": 1 }));
    workers.deploy("bash", "bash", "run.sh", "").await;
    let asked = flux_protocol::Invocation { args: vec!["one".to_owned()], ..crate::world::invocation("you") };
    assert_eq!(text(&workers.0.world.call_with("bash", asked).await), "bash got you and one\n");
    // What is no JSON is text, and nothing is nothing.
    workers.deploy("echo", "python", "main.echo", "").await;
    let said = workers.0.world.call("echo", "plain text").await.outcome.expect("an outcome");
    assert_eq!(said.output.result().expect("a result")["payload"], json!("plain text"));
    let said = workers.0.world.call("echo", "").await.outcome.expect("an outcome");
    assert_eq!(said.output.result().expect("a result")["payload"], Value::Null);
    // Larger than any buffer on its way.
    let large = "x".repeat(3 << 20);
    let said = workers.0.world.call("esm", json!(large).to_string()).await.outcome.expect("an outcome");
    assert_eq!(said.status, OutcomeStatus::Success, "{:?}", said.error);
    assert!(said.output_ref.is_some(), "too large for a message");
    assert_eq!(workers.whole_output(&said).await.result(), Some(json!({ "esm": large })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_said_and_the_next_call_is_served() {
    let workers = Workers::new().await;
    workers.deploy("python", "python", "main.fails", "timeout: 1").await;
    workers.deploy("node", "node", "main.fails", "timeout: 1").await;
    let (error, outcome) = workers.error("python", "raise").await;
    assert_eq!((error.kind, error.error_type.as_deref()), (ErrorKind::Exit, Some("ValueError")));
    assert_eq!((error.message.as_str(), outcome.output.to_text().as_str()), ("no such thing", "before\n"));
    let stack = error.stack.expect("a stack");
    assert!(stack.contains("main.py") && stack.contains("in fails") && !stack.contains("<flux>"), "{stack}");
    let (error, outcome) = workers.error("node", "raise").await;
    assert_eq!((error.kind, error.error_type.as_deref()), (ErrorKind::Exit, Some("RangeError")));
    assert!(error.stack.expect("a stack").contains("main.js"));
    assert_eq!((error.message.as_str(), start(&outcome)), ("no such thing", StartKind::Cold));
    for (name, what, said) in [
        ("python", "not json", "not JSON"),
        ("python", "nan", "not JSON"),
        ("node", "not json", "not JSON"),
        ("python", "too large", "at most"),
    ] {
        let (error, outcome) = workers.error(name, what).await;
        assert_eq!(error.kind, ErrorKind::Exit);
        assert!(error.message.contains(said), "{name} {what}: {}", error.message);
        assert_eq!(start(&outcome), StartKind::Warm, "an exception costs no worker: {name} {what}");
    }
    for name in ["python", "node"] {
        assert_eq!(workers.error(name, "exit").await.0.exit_code, Some(3), "{name}");
        assert_eq!(start(&workers.outcome(name, &json!({ "what": "" })).await), StartKind::Cold);
    }
    let (error, _) = workers.error("python", "exit 0").await;
    assert_eq!((error.kind, error.exit_code), (ErrorKind::Exit, Some(0)), "{}", error.message);
    let (error, _) = workers.error("python", "abort").await;
    assert_eq!((error.kind, error.signal), (ErrorKind::Signal, Some(6)));
    let (error, _) = workers.error("python", "sleep").await;
    assert_eq!((error.kind, error.limit), (ErrorKind::Timeout, Some(1)));
    let (error, _) = workers.error("node", "uncaught").await;
    assert_eq!((error.kind, error.error_type.as_deref()), (ErrorKind::Exit, Some("TypeError")));
    if workers.0.launcher().await.capabilities().cgroup.memory {
        let (error, _) = workers.error("python", "memory").await;
        assert_eq!((error.kind, error.limit), (ErrorKind::OutOfMemory, Some(256)), "{}", error.message);
    }
    for name in ["python", "node"] {
        assert_eq!(workers.result(name, &json!({ "what": "" })).await, Value::Null, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_cannot_be_loaded_says_why() {
    let workers = Workers::new().await;
    for (name, runtime, handler, expected, said) in [
        ("gone", "python", "nowhere.handler", ErrorKind::InvalidFunction, "nowhere.py"),
        ("nofun", "python", "main.nowhere", ErrorKind::InvalidFunction, "no function `nowhere`"),
        ("nojs", "node", "main.nowhere", ErrorKind::InvalidFunction, "exports.nowhere"),
        ("broken", "python", "broken.handler", ErrorKind::Exit, "nothing_of_this_name"),
    ] {
        workers.deploy(name, runtime, handler, "").await;
        let reply = workers.call(name, &json!({})).await;
        assert_eq!(kind(&reply), Some(expected), "{name}: {}", message(&reply));
        assert!(message(&reply).contains(said), "{name}: {}", message(&reply));
    }
    let reply = workers.call("broken", &json!({})).await;
    let error = reply.outcome.expect("an outcome").error.expect("an error");
    assert_eq!(error.error_type.as_deref(), Some("ModuleNotFoundError"));
    assert!(error.stack.expect("a stack").contains("broken.py"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_invocation_leaves_is_ended_and_never_heard_in_the_next() {
    let workers = Workers::new().await;
    workers.deploy("python", "python", "main.leaves", "").await;
    workers.deploy("node", "node", "main.leaves", "").await;
    let wait = json!({ "what": "wait" });
    for what in ["process", "thread"] {
        let before = workers.call("python", &json!({ "what": what })).await;
        assert!(before.notes.iter().any(|note| note.contains("still ran")), "{what}: {:?}", before.notes);
        let after = workers.outcome("python", &wait).await;
        assert_eq!((start(&after), after.output.to_text().as_str()), (StartKind::Cold, ""), "{what}");
        assert_ne!(
            before.outcome.expect("an outcome").output.result(),
            after.output.result(),
            "another worker: {what}"
        );
    }
    // The child of a fork in the handler comes out of it too, and is not heard.
    let first = workers.result("python", &json!({ "what": "fork" })).await;
    assert_ne!(first, json!("child"));
    // A timer does not end the worker, and does not print any more.
    let before = workers.result("node", &json!({ "what": "timer" })).await;
    for _ in 0..2 {
        let reply = workers.call("node", &wait).await;
        let after = reply.outcome.expect("an outcome");
        assert_eq!((start(&after), after.output.to_text().as_str()), (StartKind::Warm, ""));
        assert!(reply.notes.iter().any(|note| note.contains("of output were dropped")), "{:?}", reply.notes);
        assert_eq!(after.output.result(), Some(before.clone()));
    }
    // What an event loop still calls is not heard either, even where it raises; what the next one began is.
    workers.deploy("timers", "python", "main.timers", "").await;
    let before = workers.result("timers", &json!({ "what": "leave" })).await;
    for _ in 0..2 {
        let reply = workers.call("timers", &wait).await;
        let after = reply.outcome.expect("an outcome");
        assert_eq!((start(&after), after.output.to_text().as_str()), (StartKind::Warm, "mine and mine later\n"));
        assert!(reply.notes.iter().any(|note| note.contains("of output were dropped")), "{:?}", reply.notes);
        assert_eq!(after.output.result(), Some(before.clone()));
    }
    // A thread with the number of one that was there at first is another one.
    workers.deploy("threads", "python", "threads.handler", "").await;
    let before = workers.call("threads", &json!({ "what": "start" })).await;
    assert_eq!(before.outcome.expect("an outcome").output.result(), Some(json!(true)), "a number came again");
    assert!(before.notes.iter().any(|note| note.contains("1 of its threads")), "{:?}", before.notes);
    let after = workers.outcome("threads", &wait).await;
    assert_eq!((start(&after), after.output.to_text().as_str()), (StartKind::Cold, ""));
    // Idle threads of a pool are no leftovers.
    workers.deploy("pools", "python", "main.pools", "").await;
    let first = workers.result("pools", &json!({})).await;
    for _ in 0..3 {
        assert_eq!(workers.result("pools", &json!({})).await, first);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_without_slots() {
    let workers = Workers::with(World::settings(), |config| config.slots = false).await;
    workers.deploy("python", "python", "main.leaves", "").await;
    let first = workers.result("python", &json!({ "what": "" })).await;
    assert_eq!(workers.result("python", &json!({ "what": "" })).await, first);
    workers.result("python", &json!({ "what": "process" })).await;
    let after = workers.outcome("python", &json!({ "what": "wait" })).await;
    assert_eq!((start(&after), after.output.to_text().as_str()), (StartKind::Cold, ""));
    eventually(SOON, "nothing to be left", || {
        std::future::ready(flux_testkit::processes_matching("echo LATE").is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_waits_as_long_as_it_is_told() {
    let workers = Workers::new().await;
    workers.deploy("short", "python", "main.me", "keep_warm: 0.3").await;
    workers.deploy("fresh", "python", "main.me", "keep_warm: 0").await;
    workers.deploy("long", "python", "main.me", "").await;
    for _ in 0..3 {
        assert_eq!(start(&workers.outcome("fresh", &json!({})).await), StartKind::Cold);
    }
    let short = workers.call("short", &json!({})).await;
    assert_eq!(start(&workers.outcome("short", &json!({})).await), StartKind::Warm);
    assert_eq!(start(&workers.outcome("long", &json!({})).await), StartKind::Cold);
    let left = || flux_testkit::descendants(std::process::id().cast_signed());
    let interpreters = || left().into_iter().filter(|process| process.command.contains("int.from_bytes")).count();
    eventually(SOON, "only the long one to be left", || std::future::ready(interpreters() == 1)).await;
    assert_eq!(start(&workers.outcome("short", &json!({})).await), StartKind::Cold, "{short:?}");
    assert_eq!(start(&workers.outcome("long", &json!({})).await), StartKind::Warm);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_wait_make_room_before_anything_is_refused() {
    // The native function needs 2100 of 4000 MB.
    let workers = Workers::new().await;
    for name in ["first", "second"] {
        workers.deploy(name, "python", "main.me", "resources: { cpu: 1000, memory: 1500 }").await;
        workers.result(name, &json!({})).await;
    }
    assert_eq!(workers.outcome("native", &json!({})).await.status, OutcomeStatus::Success);
    assert_eq!(start(&workers.outcome("second", &json!({})).await), StartKind::Warm, "used last, it stayed");
    assert_eq!(start(&workers.outcome("first", &json!({})).await), StartKind::Cold, "it made room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_has_other_workers() {
    let workers = Workers::new().await;
    workers.deploy("f", "python", "main.me", "").await;
    let first = workers.result("f", &json!({})).await;
    assert_eq!(workers.result("f", &json!({})).await, first);
    workers.deploy_version("f", "python", "main.echo", "", 2).await;
    let interpreters = || {
        let all = flux_testkit::descendants(std::process::id().cast_signed());
        all.into_iter().filter(|process| process.command.contains("int.from_bytes")).count()
    };
    eventually(SOON, "the old version's worker to go", || std::future::ready(interpreters() == 0)).await;
    let asked = flux_protocol::Invocation { version: Some(2), ..crate::world::invocation("{}") };
    let outcome = workers.0.world.call_with("f", asked).await.outcome.expect("an outcome");
    assert_eq!((start(&outcome), outcome.status), (StartKind::Cold, OutcomeStatus::Success));
    // A version that is not current is served, and its worker does not stay.
    for _ in 0..2 {
        assert_eq!(start(&workers.outcome("f", &json!({})).await), StartKind::Cold);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_and_a_cancelled_one_are_replaced() {
    let workers = Workers::new().await;
    workers.deploy("f", "python", "main.fails", "").await;
    let worker = || {
        let all = flux_testkit::descendants(std::process::id().cast_signed());
        all.into_iter().find(|process| process.command.contains("int.from_bytes"))
    };
    workers.result("f", &json!({ "what": "" })).await;
    // While it waits: nobody hears of it but in the start.
    worker().expect("it waits").kill9();
    eventually(SOON, "it to be gone", || std::future::ready(worker().is_none())).await;
    let outcome = workers.outcome("f", &json!({ "what": "" })).await;
    assert_eq!((outcome.status, start(&outcome)), (OutcomeStatus::Success, StartKind::Cold));
    // While it serves.
    let id = workers.0.world.invoke("f", json!({ "what": "sleep" }).to_string()).await;
    workers.0.world.until_running(id).await;
    worker().expect("it serves").kill9();
    let ended = workers.0.world.end_of(id).await.outcome.expect("an outcome");
    assert_eq!((ended.error.as_ref().and_then(|e| e.signal), start(&ended)), (Some(9), StartKind::Warm), "{ended:?}");
    // Cancelled.
    let id = workers.0.world.invoke("f", json!({ "what": "sleep" }).to_string()).await;
    workers.0.world.until_running(id).await;
    assert!(workers.0.world.cancel(id, SOON).await.expect("an answer").cancelled);
    assert_eq!(workers.0.world.end_of(id).await.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
    eventually(SOON, "its worker to be gone", || std::future::ready(worker().is_none())).await;
    assert_eq!(start(&workers.outcome("f", &json!({ "what": "" })).await), StartKind::Cold);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_asked_to_end_and_answers_serves_nobody_else() {
    let workers = Workers::new().await;
    workers.deploy("f", "python", "main.stubborn", "timeout: 1\nstop_grace: 5").await;
    workers.deploy("g", "python", "main.stubborn", "stop_grace: 5").await;
    let first = workers.result("f", &json!({ "what": "" })).await;
    let late = workers.outcome("f", &json!({ "what": "sleep" })).await;
    let error = late.error.as_ref().expect("an error");
    assert_eq!(
        (late.status, error.kind, error.limit),
        (OutcomeStatus::Failed, ErrorKind::Timeout, Some(1)),
        "{late:?}"
    );
    assert_eq!((start(&late), late.output.to_text().as_str()), (StartKind::Warm, "asked\n"));
    assert_eq!(late.output.result(), None);
    let next = workers.outcome("f", &json!({ "what": "" })).await;
    assert_eq!((start(&next), next.status), (StartKind::Cold, OutcomeStatus::Success), "{next:?}");
    assert_ne!(next.output.result(), Some(first), "another worker");
    // Cancelled.
    workers.result("g", &json!({ "what": "" })).await;
    let id = workers.0.world.invoke("g", json!({ "what": "sleep" }).to_string()).await;
    workers.0.world.until_running(id).await;
    assert!(workers.0.world.cancel(id, SOON).await.expect("an answer").cancelled);
    let ended = workers.0.world.end_of(id).await.outcome.expect("an outcome");
    let error = ended.error.as_ref().expect("an error");
    assert_eq!((ended.status, error.kind), (OutcomeStatus::Cancelled, ErrorKind::Cancelled), "{ended:?}");
    assert_eq!(start(&workers.outcome("g", &json!({ "what": "" })).await), StartKind::Cold);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_each_hear_their_own() {
    let workers = Workers::new().await;
    workers.deploy("f", "python", "main.echo", "max_concurrency: 4").await;
    workers.deploy("g", "node", "main.echo", "max_concurrency: 4").await;
    let rounds = (0..40).map(|n| {
        let workers = &workers;
        async move {
            for name in ["f", "g"] {
                let payload = json!({ "n": format!("{name}-{n}-") });
                let outcome = workers.outcome(name, &payload).await;
                let printed = outcome.output.to_text();
                assert_eq!(printed.matches(&format!("{name}-{n}-")).count(), 1, "{printed}");
                assert_eq!((printed.matches("got").count(), printed.matches("raw").count()), (1, 1), "{printed}");
                assert_eq!(outcome.output.result().expect("a result")["payload"], payload);
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(rounds)).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_changes_of_its_process_is_not_the_next_ones() {
    let workers = Workers::new().await;
    for (runtime, closing, restored) in [
        ("python", &["stdout", "stderr", "elsewhere"][..], &["folder", "alarm"][..]),
        ("node", &["stdout"], &["folder"]),
    ] {
        workers.deploy(runtime, runtime, "main.changes", "").await;
        let first = workers.result(runtime, &json!({ "what": "" })).await;
        for what in restored {
            workers.result(runtime, &json!({ "what": what })).await;
            let next = workers.outcome(runtime, &json!({ "what": "wait" })).await;
            assert_eq!(next.status, OutcomeStatus::Success, "{runtime} {what}: {:?}", next.error);
            assert_eq!(
                (next.output.result(), start(&next)),
                (Some(first.clone()), StartKind::Warm),
                "{runtime} {what}"
            );
        }
        for what in closing {
            let closed = workers.outcome(runtime, &json!({ "what": what })).await;
            assert_eq!(closed.status, OutcomeStatus::Success, "{runtime} {what}: {:?}", closed.error);
            let next = workers.outcome(runtime, &json!({ "what": "" })).await;
            assert_eq!(start(&next), StartKind::Cold, "{runtime} {what}");
            assert_eq!(next.output.bytes_of(Stream::Stdout), "printed\n", "{runtime} {what}");
        }
    }
}
