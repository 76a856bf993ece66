//! What Node's own ways make of a worker: streams that write later.

use flux_protocol::Stream;
use serde_json::json;

use crate::workers::Workers;

const NODE: &str = r#"
const fs = require('fs');
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
  return null;
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
    workers.deploy("f", "node", "own.prints", "max_concurrency: 1").await;
    for (bytes, how) in
        [(1_000_000, "at once"), (5_000_000, "at once"), (500_000, "lines"), (1_000_000, "sync"), (1_000_000, "corked")]
    {
        for end in ["return", "throw", "exit", "uncaught"] {
            if (how, end) == ("corked", "exit") {
                // As in any process: nothing has written it.
                continue;
            }
            kept(&workers, bytes, how, end).await;
        }
    }
    for end in ["return", "throw", "uncaught"] {
        kept(&workers, 5_000_000, "not blocking", end).await;
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
