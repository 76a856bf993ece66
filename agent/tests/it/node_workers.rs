//! What Node's own ways make of a worker: streams that write later, callbacks that fail later, threads.

use flux_protocol::{OutcomeStatus, Stream, execution::StartKind};
use serde_json::json;

use crate::workers::{Workers, start};

const NODE: &str = r#"
const fs = require('fs');
const me = require('crypto').randomUUID();
exports.prints = async ({ bytes, how, end }) => {
  for (const [stream, fd] of [[process.stdout, 1], [process.stderr, 2]]) {
    if (how === 'at once') stream.write('z'.repeat(bytes));
    if (how === 'lines') for (let n = 0; n < bytes / 100; n++) (fd === 1 ? console.log : console.error)('z'.repeat(99));
    if (how === 'sync') for (let at = 0; at < bytes; ) at += fs.writeSync(fd, 'z'.repeat(bytes - at));
    if (how === 'corked') { stream.cork(); stream.write('z'.repeat(bytes)); }
    if (how === 'not blocking') { stream._handle.setBlocking(false); stream.write('z'.repeat(bytes)); }
  }
  if (end === 'throw') throw new RangeError('after it');
  if (end === 'exit') process.exit(3);
  if (end === 'uncaught') { setImmediate(() => { throw new TypeError('nobody caught it'); }); await new Promise(() => {}); }
  return me;
};
let calls = 0;
exports.late = async ({ what }) => {
  const mine = ++calls;
  const late = (then) => {
    const looks = setInterval(() => {
      if (calls === mine) return;
      clearInterval(looks);
      then();
    }, 1);
  };
  if (what === 'throw') late(() => { throw new Error('LATE'); });
  if (what === 'reject') late(() => { Promise.reject(new Error('LATE')); });
  if (what === 'exit') late(() => process.exit(0));
  if (what === 'emit') late(() => new (require('events'))().emit('error', new Error('LATE')));
  if (what === 'own') { setImmediate(() => { throw new TypeError('OWN'); }); await new Promise(() => {}); }
  if (what === 'wait') await new Promise((done) => setTimeout(done, 200));
  return me;
};
const { Worker } = require('worker_threads');
const idle = new Worker('require("worker_threads").parentPort.on("message", () => {})', { eval: true });
exports.threads = async ({ what }) => {
  const run = (code) => new Worker(code, { eval: true });
  const noise = 'setInterval(() => require("fs").writeSync(1, "LATE\\n"), 5)';
  if (what === 'left') await new Promise((done) => run(noise).once('online', done));
  if (what === 'left at once') run(noise);
  if (what === 'unref') run(noise).unref();
  if (what === 'ends') await new Promise((done) => run('require("worker_threads").parentPort.postMessage(1)').once('exit', done));
  if (what === 'prints') await new Promise((done) => run('console.log("mine")').once('exit', done));
  if (what === 'stopped') await run(noise).terminate();
  if (what === 'wait') await new Promise((done) => setTimeout(done, 100));
  return me;
};
"#;

async fn workers() -> Workers {
    let workers = Workers::new().await;
    std::fs::write(workers.0.code().join("own.js"), NODE).expect("written");
    workers
}

/// Far more than a pipe holds, so that an answer that overtakes it would lose it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_node_prints_before_it_answers_is_kept_to_its_end() {
    let workers = workers().await;
    workers.deploy("f", "node", "own.prints", "").await;
    // What is corked, or waits for a pipe that does not block, is lost at an exit, as in any process.
    for (bytes, how, ends) in [
        (1_000_000, "at once", &["return", "throw", "uncaught", "exit"][..]),
        (5_000_000, "at once", &["return", "throw"]),
        (500_000, "lines", &["return", "throw", "uncaught", "exit"]),
        (1_000_000, "sync", &["return", "exit"]),
        (1_000_000, "corked", &["return", "throw", "uncaught"]),
        (5_000_000, "not blocking", &["return", "throw"]),
    ] {
        for end in ends {
            kept(&workers, bytes, how, end).await;
        }
    }
}

async fn kept(workers: &Workers, bytes: usize, how: &str, end: &str) {
    let reply = workers.call("f", &json!({ "bytes": bytes, "how": how, "end": end })).await;
    let outcome = reply.outcome.expect("an outcome");
    let error_type = outcome.error.as_ref().and_then(|error| error.error_type.as_deref());
    let expected = match end {
        "throw" => Some("RangeError"),
        "uncaught" => Some("TypeError"),
        _ => None,
    };
    assert_eq!(error_type, expected, "{bytes} {how} {end}: {:?}", outcome.error);
    let output = workers.whole_output(&outcome).await;
    for stream in [Stream::Stdout, Stream::Stderr] {
        assert_eq!(output.bytes_of(stream).len(), bytes, "{stream:?} of {bytes} {how} {end}");
    }
}

/// In the course of the next call, which has nothing to do with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_later_is_not_the_next_calls_failure() {
    let workers = workers().await;
    workers.deploy("f", "node", "own.late", "").await;
    for what in ["throw", "reject", "exit", "emit"] {
        let first = workers.outcome("f", &json!({ "what": what })).await;
        let reply = workers.call("f", &json!({ "what": "wait" })).await;
        let next = reply.outcome.expect("an outcome");
        assert_eq!(next.status, OutcomeStatus::Success, "{what}: {:?}", next.error);
        assert_eq!((start(&next), next.output.to_text().as_str()), (StartKind::Warm, ""), "{what}");
        assert_eq!(next.output.result(), first.output.result(), "{what}");
        assert!(reply.notes.iter().any(|note| note.contains("an earlier call began had failed")), "{:?}", reply.notes);
        let after = workers.call("f", &json!({ "what": "wait" })).await;
        assert!(after.notes.is_empty(), "{what}: {:?}", after.notes);
        let after = after.outcome.expect("an outcome");
        assert_eq!((start(&after), after.status), (StartKind::Cold, OutcomeStatus::Success), "{what}");
    }
    let own = workers.outcome("f", &json!({ "what": "own" })).await;
    assert_eq!(own.error.expect("an error").error_type.as_deref(), Some("TypeError"));
}

/// The kernel knows: what was sent lies unread in a socket that is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_its_worker_had_not_read_is_begun_by_another() {
    let workers = workers().await;
    workers.deploy("f", "node", "own.late", "").await;
    let first = workers.outcome("f", &json!({ "what": "" })).await;
    let worker = flux_testkit::descendants(std::process::id().cast_signed())
        .into_iter()
        .find(|process| process.command.contains("readUInt32BE"))
        .expect("it waits");
    let pid = nix::unistd::Pid::from_raw(worker.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
    let id = workers.0.world.invoke("f", json!({ "what": "" }).to_string()).await;
    workers.0.world.until_running(id).await;
    worker.kill9();
    let said = workers.0.world.end_of(id).await;
    assert_eq!(said.attempt, 1, "no attempt failed: {said:?}");
    let ended = said.outcome.expect("an outcome");
    assert_eq!((ended.status, start(&ended)), (OutcomeStatus::Success, StartKind::Cold), "{ended:?}");
    assert_ne!(ended.output.result(), first.output.result());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_a_call_leaves_end_the_worker() {
    let workers = workers().await;
    workers.deploy("f", "node", "own.threads", "").await;
    for what in ["left", "left at once", "unref"] {
        let first = workers.call("f", &json!({ "what": what })).await;
        assert!(
            first.notes.iter().any(|note| note.contains("1 of its threads still ran")),
            "{what}: {:?}",
            first.notes
        );
        let next = workers.call("f", &json!({ "what": "wait" })).await;
        assert!(next.notes.is_empty(), "{what}: {:?}", next.notes);
        let next = next.outcome.expect("an outcome");
        assert_eq!((start(&next), next.output.to_text().as_str()), (StartKind::Cold, ""), "{what}");
    }
    // Neither the module's own thread nor one that is over.
    for (what, printed) in [("ends", ""), ("prints", "mine\n"), ("wait", "")] {
        let reply = workers.call("f", &json!({ "what": what })).await;
        assert!(reply.notes.is_empty(), "{what}: {:?}", reply.notes);
        let outcome = reply.outcome.expect("an outcome");
        assert_eq!((start(&outcome), outcome.output.to_text().as_str()), (StartKind::Warm, printed), "{what}");
    }
    workers.call("f", &json!({ "what": "stopped" })).await;
    assert_eq!(start(&workers.outcome("f", &json!({ "what": "wait" })).await), StartKind::Warm);
}
