//! What a call has returned for is there after `kill -9`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use flux_protocol::{
    ExecutionId, ExecutionRecord, FunctionName, Lane, OutcomeStatus, Phase, PoolName, StatusMessage, Timestamp,
};
use flux_store::{ExecutionFilter, StatusUpdate, Tuning};

use crate::Scratch;

/// Names the database to the child that this test binary starts of itself.
const URL: &str = "FLUX_STORE_TEST_WRITES_TO";
const ME: &str = "durability::writes_until_it_is_killed";
const ACKNOWLEDGED: usize = 3000;

fn now() -> Timestamp {
    flux_protocol::time::now()
}

pub(crate) fn accepted() -> ExecutionRecord {
    ExecutionRecord {
        execution_id: ExecutionId::new(),
        function: FunctionName::parse("f").expect("a name"),
        version: 1,
        attempt: 1,
        lane: Lane::Invoke,
        pool: PoolName::default(),
        phase: Phase::Queued,
        agent_id: None,
        queued_at: now(),
        started_at: None,
        status_at: now(),
        deadline: None,
        traceparent: None,
        outcome: None,
        terminal_seq: None,
        position: None,
        invocation: Some(flux_protocol::Invocation { attempt: 1, ..Default::default() }),
        redrive_of: None,
        notes: Vec::new(),
    }
}

pub(crate) fn ended(id: ExecutionId) -> StatusMessage {
    let outcome = flux_protocol::Outcome {
        status: OutcomeStatus::Success,
        error: None,
        output: flux_protocol::OutputLog {
            chunks: vec![flux_protocol::Chunk {
                seq: 1,
                stream: flux_protocol::Stream::Stdout,
                data: bytes::Bytes::from_static(b"{\"greeting\":\"hello, world\"}\n"),
            }],
            dropped_bytes: 0,
        },
        output_ref: None,
        duration_ms: std::time::Duration::from_micros(1500).into(),
        start: None,
        usage: flux_protocol::Usage::default(),
        will_retry: false,
    };
    StatusMessage {
        execution_id: id,
        function: FunctionName::parse("f").expect("a name"),
        version: 1,
        attempt: 1,
        lane: Lane::Invoke,
        pool: PoolName::default(),
        phase: Phase::Ended,
        agent_id: Some(flux_protocol::AgentId::parse("agent-0123456789ab").expect("an id")),
        queued_at: now(),
        started_at: Some(now()),
        at: now(),
        deadline: None,
        traceparent: None,
        outcome: Some(outcome),
        invocation: None,
        notes: Vec::new(),
    }
}

/// The child: prints each id once its insert, or its status, has returned.
#[test]
#[ignore = "the child of `what_was_acknowledged_survives_kill_9`"]
fn writes_until_it_is_killed() {
    use std::io::Write as _;
    let Some(url) = std::env::vars().find(|(key, _)| key == URL).map(|(_, url)| url) else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = flux_store::open(&url, &Tuning::default()).await.expect("open");
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let store = std::sync::Arc::clone(&store);
            tasks.spawn(async move {
                for sequence in 0.. {
                    let record = accepted();
                    let id = record.execution_id;
                    let told = if writer % 2 == 0 {
                        store.insert_queued(record).await.expect("insert");
                        "queued"
                    } else {
                        let updates = vec![StatusUpdate { status: ended(id), sequence: Some(sequence) }];
                        store.record(updates).await.expect("record");
                        "ended"
                    };
                    // One write, so that a line is whole or not there.
                    let line = format!("{told} {id}\n");
                    std::io::stdout().write_all(line.as_bytes()).expect("the parent reads");
                }
            });
        }
        tasks.join_next().await;
    });
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let scratch = Scratch::new();
    let me = std::env::current_exe().expect("this binary");
    let mut child = Command::new(me)
        .args(["--exact", ME, "--ignored", "--nocapture", "--test-threads=1"])
        .env(URL, &scratch.url)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut acknowledged = Vec::new();
    let take = |line: std::io::Result<String>, into: &mut Vec<(bool, ExecutionId)>| {
        let line = line.expect("a line");
        if let Some((told, id)) = line.split_once(' ')
            && let Ok(id) = id.parse::<ExecutionId>()
        {
            into.push((told == "ended", id));
        }
    };
    while acknowledged.len() < ACKNOWLEDGED {
        take(lines.next().expect("the child writes on"), &mut acknowledged);
    }
    child.kill().expect("kill -9");
    child.wait().expect("it is dead");
    // What it said before it died counts too; its last line may be cut off.
    lines.for_each(|line| take(line, &mut acknowledged));

    let store = crate::open(&scratch.url).await;
    for (ended, id) in &acknowledged {
        let record = store.execution(*id).await.expect("read").unwrap_or_else(|| panic!("{id} is lost"));
        assert_eq!(record.is_terminal(), *ended, "{id}");
    }
    let some = store.executions(&ExecutionFilter { limit: 10, ..ExecutionFilter::default() }).await.expect("list");
    assert_eq!(some.len(), 10);
}

#[tokio::test]
async fn a_store_opened_again_has_everything() {
    let scratch = Scratch::new();
    let first = crate::open(&scratch.url).await;
    let record = accepted();
    first.insert_queued(record.clone()).await.expect("insert");
    let other = crate::open(&scratch.url).await;
    assert_eq!(other.execution(record.execution_id).await.expect("read"), Some(record.clone()), "while it is open");
    other.record(vec![StatusUpdate { status: ended(record.execution_id), sequence: Some(1) }]).await.expect("record");
    assert!(first.execution(record.execution_id).await.expect("read").is_some_and(|record| record.is_terminal()));
    first.close().await;
    other.close().await;
    let again = crate::open(&scratch.url).await;
    assert!(again.execution(record.execution_id).await.expect("read").is_some_and(|record| record.is_terminal()));
}
