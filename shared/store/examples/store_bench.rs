//! The engines beside each other, in one run: `cargo run --release -p flux-store --example store_bench`.
//!
//! Servers are started for it, with commits that wait for the disk: PostgreSQL as Debian sets it, Redis with
//! `appendfsync everysec` and `always`. One round on whatever machine this is: ratios travel, figures do not.
//! With `--rows 10000000` it also fills a PostgreSQL with that many executions and pages through them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use flux_protocol::{
    AgentId, Chunk, ExecutionId, ExecutionRecord, FunctionName, Invocation, Lane, Outcome, OutcomeStatus, OutputLog,
    Phase, PoolName, StatusMessage, Stream, time::now,
};
use flux_store::{Durability, ExecutionFilter, SharedStore, StatusFilter, StatusUpdate, Tuning};
use flux_testkit::{PostgresServer, RedisServer};
use tokio::task::JoinSet;

const BATCH: usize = 256;
const BATCHES: usize = 80;
const ALONE: usize = 2000;
const CALLERS: usize = 64;
const EACH: usize = 300;
const PAGES: usize = 400;

fn queued() -> ExecutionRecord {
    ExecutionRecord {
        execution_id: ExecutionId::new(),
        function: FunctionName::parse("echo").expect("a name"),
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
        invocation: Some(Invocation { attempt: 1, ..Invocation::default() }),
        redrive_of: None,
        notes: Vec::new(),
    }
}

fn ended(id: ExecutionId, sequence: u64) -> StatusUpdate {
    let data = bytes::Bytes::from_static(b"{\"greeting\":\"hello, world\"}\n");
    let output = OutputLog { chunks: vec![Chunk { seq: 1, stream: Stream::Stdout, data }], dropped_bytes: 0 };
    let outcome = Outcome {
        status: OutcomeStatus::Success,
        error: None,
        output,
        output_ref: None,
        duration_ms: Duration::from_micros(1500).into(),
        start: None,
        usage: flux_protocol::Usage::default(),
        will_retry: false,
    };
    let status = StatusMessage {
        execution_id: id,
        function: FunctionName::parse("echo").expect("a name"),
        version: 1,
        attempt: 1,
        lane: Lane::Invoke,
        pool: PoolName::default(),
        phase: Phase::Ended,
        agent_id: Some(AgentId::parse("agent-0123456789ab").expect("an id")),
        queued_at: now(),
        started_at: Some(now()),
        at: now(),
        deadline: None,
        traceparent: None,
        outcome: Some(outcome),
        invocation: None,
        notes: Vec::new(),
    };
    StatusUpdate { status, sequence: Some(sequence) }
}

struct Times(Vec<Duration>);

impl Times {
    fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort_unstable();
        let at = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

#[allow(clippy::cast_precision_loss)] // figures to read
fn per_second(count: usize, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

async fn measure(store: &SharedStore) -> [f64; 6] {
    let mut alone = Times(Vec::with_capacity(ALONE));
    for _ in 0..ALONE {
        let record = queued();
        let began = Instant::now();
        store.insert_queued(record).await.expect("insert");
        alone.0.push(began.elapsed());
    }

    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let store = Arc::clone(store);
        callers.spawn(async move {
            let mut ids = Vec::with_capacity(EACH);
            for _ in 0..EACH {
                let record = queued();
                ids.push(record.execution_id);
                store.insert_queued(record).await.expect("insert");
            }
            ids
        });
    }
    let ids: Vec<ExecutionId> = callers.join_all().await.into_iter().flatten().collect();
    let accepted = per_second(ids.len(), began);

    let began = Instant::now();
    for (number, batch) in ids.chunks(BATCH).take(BATCHES).enumerate() {
        let updates = batch.iter().map(|id| ended(*id, number as u64)).collect();
        store.record(updates).await.expect("record");
    }
    let recorded = per_second(ids.len().min(BATCH * BATCHES), began);

    let mut pages = Times(Vec::with_capacity(PAGES));
    let mut cursor = None;
    let filter = ExecutionFilter {
        function: Some(FunctionName::parse("echo").expect("a name")),
        status: Some(StatusFilter::Ended(OutcomeStatus::Success)),
        limit: 50,
        ..ExecutionFilter::default()
    };
    for _ in 0..PAGES {
        let began = Instant::now();
        let page = store.executions(&ExecutionFilter { cursor, ..filter.clone() }).await.expect("list");
        pages.0.push(began.elapsed());
        cursor = page.last().map(|record| record.execution_id);
    }
    [alone.percentile(50), alone.percentile(99), accepted, recorded, pages.percentile(50), pages.percentile(99)]
}

async fn open(url: &str, durability: Durability) -> SharedStore {
    flux_store::open(url, &Tuning { durability, ..Tuning::default() }).await.expect("open")
}

/// Pages through a history of so many executions.
#[allow(clippy::print_stdout)]
async fn many(rows: u64) {
    let server = PostgresServer::start_with("shared_buffers = 512MB\nmax_wal_size = 8GB", &[]).await;
    let store = open(&server.url(), Durability::Process).await;
    let template = queued();
    store.record(vec![ended(template.execution_id, 1)]).await.expect("record");
    let id = template.execution_id;
    let step = 500_000;
    for from in (0..rows).step_by(step) {
        let to = (from + step as u64).min(rows);
        server.sql(&format!(
            "SET search_path = flux;
             INSERT INTO executions
             SELECT n.id, 'f' || i % 100, CASE WHEN i % 500 = 0 THEN 0 WHEN i % 97 = 0 THEN 2 ELSE 1 END, at * 1000, at * 1000,
                    replace(record, '{id}', 'exc-' || n.id), output, invocation
             FROM executions, generate_series({from} + 1, {to}) AS i, LATERAL (SELECT 1700000000000 + i * 10 AS at) AS t,
                  LATERAL (SELECT (lpad(to_hex(at), 12, '0') || '7000' || lpad(to_hex(i), 16, '8'))::uuid AS id) AS n
             WHERE executions.id = '{}'::uuid",
            id.to_string().trim_start_matches("exc-"),
        ));
    }
    server.sql("SET statement_timeout = 0; ANALYZE flux.executions");
    println!(
        "\n{rows} executions of 100 functions in PostgreSQL, a page of 50, µs:\n\n| list | p50 | p99 |\n|---|---:|---:|"
    );
    let f7 = Some(FunctionName::parse("f7").expect("a name"));
    let failed = Some(StatusFilter::Ended(OutcomeStatus::Failed));
    for (what, function, status) in [
        ("all", None, None),
        ("of a function", f7.clone(), None),
        ("of a function, failed", f7, failed),
        ("failed", None, failed),
        ("running", None, Some(StatusFilter::Running)),
    ] {
        let mut times = Times(Vec::new());
        let mut cursor = None;
        for _ in 0..PAGES {
            let began = Instant::now();
            let filter = ExecutionFilter { function: function.clone(), status, cursor, since: None, limit: 50 };
            let page = store.executions(&filter).await.expect("list");
            times.0.push(began.elapsed());
            cursor = page.last().map(|record| record.execution_id);
        }
        println!("| {what} | {:.0} | {:.0} |", times.percentile(50), times.percentile(99));
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout)] // the figures are what it is for
async fn main() {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("--rows") {
        let rows = words.next().and_then(|rows| rows.parse().ok()).expect("--rows is a number");
        return many(rows).await;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let postgres = PostgresServer::start_with("fsync = on", &[]).await;
    let everysec = RedisServer::start().await;
    let always = RedisServer::start_with("appendfsync always").await;
    let file = |name: &str| format!("sqlite://{}", scratch.path().join(name).display());
    let engines = [
        ("SQLite, `process`", file("process.db"), Durability::Process),
        ("SQLite, `fsync`", file("fsync.db"), Durability::Power),
        ("PostgreSQL", postgres.url(), Durability::Power),
        ("Redis, `everysec`", everysec.url(), Durability::Process),
        ("Redis, `always`", always.url(), Durability::Power),
    ];
    println!(
        "| | accept alone, p50 µs | p99 µs | accepted/s, {CALLERS} callers | statuses recorded/s, batches of {BATCH} | page of 50, p50 µs | p99 µs |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (name, url, durability) in engines {
        let store = open(&url, durability).await;
        let [p50, p99, accepted, recorded, page50, page99] = measure(&store).await;
        println!("| {name} | {p50:.0} | {p99:.0} | {accepted:.0} | {recorded:.0} | {page50:.0} | {page99:.0} |");
        store.close().await;
    }
}
