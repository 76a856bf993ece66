//! A PostgreSQL that goes away, hangs, or is not to be used as it is.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use flux_protocol::{ExecutionId, Timestamp};
use flux_store::{StatusUpdate, StoreError, Tuning};
use flux_testkit::PostgresServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinSet,
};

use super::{open, url};
use crate::{
    durability::ended,
    server::{Writing, all_there, comes_back, is_unavailable},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_one_that_hangs() {
    let mut server = PostgresServer::start().await;
    let store = open(&server, "faults").await;
    let mut writing = Writing::start(&store);
    writing.go_on(500).await;
    server.kill9();
    writing.until_refused().await;
    server.restart().await;
    writing.go_on(500).await;
    server.pause();
    is_unavailable(&store).await;
    server.resume();
    writing.go_on(500).await;
    let acknowledged = writing.end().await;
    all_there(&store, &acknowledged).await;
    comes_back(&store).await;
}

/// A transaction's number is given again after a crash, where nothing of the first one had come to the server's log: that the number
/// was committed says nothing of ours then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commit_of_another_is_not_taken_for_ours() {
    // Its workers take numbers too, and for standbys it writes to its log now and then which number comes next.
    let alone = "autovacuum = off\nwal_level = minimal\nmax_wal_senders = 0";
    let mut server = PostgresServer::start_with(alone, &[]).await;
    // The schema is there, and the store's connections have used no statement yet.
    drop(open(&server, "reused").await);
    let relay = Relay::start(server.port(), b"INSERT INTO executions").await;
    let store = crate::open(&url(&server, "reused").replace(&server.port().to_string(), &relay.port.to_string())).await;
    let id = ExecutionId::new();
    let mut recording = JoinSet::new();
    recording.spawn({
        let (store, update) = (Arc::clone(&store), StatusUpdate { status: ended(id), sequence: Some(1) });
        async move { store.record(vec![update]).await }
    });
    // It has its number, and has written nothing.
    relay.held.notified().await;
    let ours: u64 = server
        .sql("SELECT backend_xid::text FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND backend_type = 'client backend'")
        .parse()
        .expect("a number");
    // At once: a backend that saw the others die would write to the log that it gave up this number.
    server.pause();
    server.kill9();
    server.restart().await;
    server.sql("CREATE TABLE t_reused.others AS SELECT pg_current_xact_id()::text AS id");
    let anothers = server.sql("SELECT id FROM t_reused.others").parse::<u64>();
    assert_eq!(anothers, Ok(ours), "the number is given again");
    relay.release.notify_one();
    match recording.join_next().await.expect("one").expect("it does not panic") {
        Ok(recorded) => assert!(recorded[0].became_terminal),
        // A restart that took long: whoever records tries again.
        Err(error) => {
            assert!(error.is_retryable(), "{error:?}");
            comes_back(&store).await;
            store.record(vec![StatusUpdate { status: ended(id), sequence: Some(1) }]).await.expect("recorded");
        }
    }
    assert!(store.execution(id).await.expect("read").expect("it is there").is_terminal());
}

/// Between a store and its server: passes everything until a client sends something, which it keeps until it is told to drop that
/// connection. What comes after passes.
struct Relay {
    port: u16,
    held: Arc<Notify>,
    release: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl Relay {
    async fn start(to: u16, holds: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mut tasks = JoinSet::new();
        let shared = (Arc::clone(&held), Arc::clone(&release), Arc::new(AtomicBool::new(false)));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("accepted");
                let (held, release, done) = shared.clone();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let back = tokio::io::copy(&mut from_server, &mut to_client);
                    let forth = async {
                        let mut chunk = vec![0; 64 * 1024];
                        while let Ok(length @ 1..) = from_client.read(&mut chunk).await {
                            let sent = &chunk[..length];
                            if sent.windows(holds.len()).any(|window| window == holds) && !done.swap(true, Ordering::Relaxed) {
                                held.notify_one();
                                release.notified().await;
                                return;
                            }
                            if to_server.write_all(sent).await.is_err() {
                                return;
                            }
                        }
                    };
                    // The held connection outlives its server: its client hears nothing meanwhile.
                    tokio::select! { () = forth => {}, () = async { let _ = back.await; if done.load(Ordering::Relaxed) { std::future::pending().await } } => {} }
                });
            }
        });
        Self { port, held, release, _tasks: tasks }
    }
}

/// The answer to a commit is lost, and so is the connection on which it was found that the commit had come to be: whoever recorded is
/// told all the same that the execution ended by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_commit_did_is_told_however_often_the_server_goes_away() {
    let server = PostgresServer::start().await;
    // The schema is there, and is not made, and committed, through what cuts.
    drop(open(&server, "told").await);
    let (port, cuts, _tasks) = cut_twice(server.port()).await;
    let store = crate::open(&url(&server, "told").replace(&server.port().to_string(), &port.to_string())).await;
    let id = ExecutionId::new();
    let recorded = store.record(vec![StatusUpdate { status: ended(id), sequence: Some(1) }]).await.expect("recorded");
    assert_eq!(cuts.load(Ordering::Relaxed), 2, "connections were cut");
    assert!(recorded[0].became_terminal);
}

/// Between a store and its server: cuts the first connection on which a commit is answered, before the answer, and the next one on which
/// rows are to be locked.
async fn cut_twice(to: u16) -> (u16, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let cuts = Arc::new(AtomicUsize::new(0));
    let shared = Arc::clone(&cuts);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.expect("accepted");
            let cuts = Arc::clone(&shared);
            connections.spawn(async move {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::select! {
                    () = until(from_server, to_client, b"COMMIT\0", &cuts, 0) => {}
                    () = until(from_client, to_server, b"FOR UPDATE", &cuts, 1) => {}
                }
            });
        }
    });
    (port, cuts, tasks)
}

/// Passes everything, until there is `last` in it, after so many cuts; or the end.
async fn until(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, last: &[u8], cuts: &AtomicUsize, after: usize) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let sent = &chunk[..length];
        let is_last = sent.windows(last.len()).any(|window| window == last);
        if is_last && cuts.compare_exchange(after, after + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return;
        }
        if to.write_all(sent).await.is_err() {
            return;
        }
    }
}

/// A mishap of the server's own passes; damaged data does not, and is said to be that.
#[tokio::test]
async fn an_internal_error_is_not_taken_for_damage() {
    let server = PostgresServer::start().await;
    let store = open(&server, "internal").await;
    let refused = async |code: &str| {
        server.sql(&format!(
            "SET search_path = t_internal;
             CREATE OR REPLACE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
                 $f$ BEGIN RAISE EXCEPTION 'cache lookup failed' USING ERRCODE = '{code}'; END $f$;
             CREATE OR REPLACE TRIGGER fails BEFORE INSERT ON executions FOR EACH ROW EXECUTE FUNCTION fails()"
        ));
        let update = StatusUpdate { status: ended(ExecutionId::new()), sequence: Some(1) };
        store.record(vec![update]).await.expect_err("it is refused")
    };
    let error = refused("XX000").await;
    assert!(matches!(error, StoreError::Unavailable { .. }) && error.is_retryable(), "{error:?}");
    for code in ["XX001", "XX002"] {
        let error = refused(code).await;
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }
    server.sql("DROP TRIGGER fails ON t_internal.executions");
    comes_back(&store).await;
}

/// Two gateways record the same executions, each in another order, at once: neither waits for the other for ever, and every
/// execution becomes terminal once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_do_not_deadlock() {
    let server = PostgresServer::start().await;
    let stores = [open(&server, "two").await, open(&server, "two").await];
    for round in 0..20 {
        let ids: Vec<ExecutionId> = (0..60).map(|_| ExecutionId::new()).collect();
        let batch = |reversed: bool| -> Vec<StatusUpdate> {
            let mut batch: Vec<_> =
                ids.iter().map(|id| StatusUpdate { status: ended(*id), sequence: Some(1) }).collect();
            if reversed {
                batch.reverse();
            }
            batch
        };
        let (one, other) = tokio::join!(stores[0].record(batch(false)), stores[1].record(batch(true)));
        let became = |recorded: &[flux_store::Recorded]| recorded.iter().filter(|one| one.became_terminal).count();
        let became = became(&one.expect("record")) + became(&other.expect("record"));
        assert_eq!(became, ids.len(), "round {round}");
    }
    let said = server.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'");
    assert_eq!(said, "0", "the order of locks is what keeps them apart, not the server's search for deadlocks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_is_made_once_and_a_newer_one_refused() {
    let server = PostgresServer::start().await;
    let url = url(&server, "schema");
    let as_it_is = Tuning { migrate: false, ..Tuning::default() };
    let refused = flux_store::open(&url, &as_it_is).await.err().expect("none is made").to_string();
    assert!(refused.contains("there is no store in the schema `t_schema`"), "{refused}");
    let tuning = Tuning::default();
    let opened = futures::future::join_all((0..8).map(|_| flux_store::open(&url, &tuning))).await;
    for store in opened {
        store.expect("open").ping().await.expect("ping");
    }
    assert_eq!(server.sql("SELECT count(*), max(version) FROM t_schema.flux_schema"), "1|1");
    flux_store::open(&url, &as_it_is).await.expect("it is of this release").close().await;
    server.sql("UPDATE t_schema.flux_schema SET version = 0");
    let refused = flux_store::open(&url, &as_it_is).await.err().expect("it is left as it is").to_string();
    assert!(refused.contains("of an earlier release of Flux (schema 0;"), "{refused}");
    server.sql("UPDATE t_schema.flux_schema SET version = 99");
    let Err(error) = flux_store::open(&url, &tuning).await else { panic!("a newer schema was opened") };
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("schema 99") && error.to_string().contains("newer release"), "{error}");
}

/// What the API lists is found by an index, however much there is: the server counts how often it reads a table from end to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_list_reads_a_table_from_end_to_end() {
    use flux_protocol::{FunctionName, OutcomeStatus};
    use flux_store::{ExecutionFilter, StatusFilter};

    const ROWS: usize = 120_000;
    let server = PostgresServer::start().await;
    let store = open(&server, "plans").await;
    let id = ExecutionId::new();
    store.record(vec![StatusUpdate { status: ended(id), sequence: Some(1) }]).await.expect("record");
    // Ids as gateways make them, one each 10 ms; a hundred functions; one in fifty is open and some failed.
    server.sql(&format!(
        "SET search_path = t_plans;
         INSERT INTO executions
         SELECT n.id, 'f' || i % 100, CASE WHEN i % 50 = 0 THEN 0 WHEN i % 97 = 0 THEN 2 ELSE 1 END, at * 1000, at * 1000,
                replace(record, '{}', 'exc-' || n.id), output, invocation
         FROM executions, generate_series(1, {ROWS}) AS i, LATERAL (SELECT 1700000000000 + i * 10 AS at) AS t,
              LATERAL (SELECT (lpad(to_hex(at), 12, '0') || '7000' || lpad(to_hex(i), 16, '8'))::uuid AS id) AS n;
         INSERT INTO functions SELECT 'g' || i, 1, 1 FROM generate_series(1, 20000) AS i;
         INSERT INTO versions SELECT 'g' || i, 1, NULL, '{{\"name\":\"g' || i || '\",\"handler\":\"x\"}}', 0
             FROM generate_series(1, 20000) AS i;
         INSERT INTO audit (at, entry) SELECT i, '{{}}' FROM generate_series(1, 20000) AS i;
         INSERT INTO idempotency SELECT 'f', 'k' || i, gen_random_uuid(), '', i, i FROM generate_series(1, 20000) AS i;
         INSERT INTO secret_claims SELECT gen_random_uuid(), 1, 'a', '', i FROM generate_series(1, 20000) AS i;
         ANALYZE",
        id
    ));
    let counted = "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE schemaname = 't_plans' AND relname IN
                   ('executions', 'functions', 'versions', 'audit', 'idempotency', 'secret_claims')";
    // A connection tells what it counted when it ends.
    let settled = async || {
        let connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flux'";
        flux_testkit::eventually(crate::server::GENEROUS, "connections to end", || {
            std::future::ready(server.sql(connected) == "0")
        })
        .await;
        server.sql(counted)
    };
    store.close().await;
    drop(store);
    let before = settled().await;

    let store = open(&server, "plans").await;
    let name = |text: &str| Some(FunctionName::parse(text).expect("a name"));
    let failed = Some(StatusFilter::Ended(OutcomeStatus::Failed));
    let some = ExecutionFilter { limit: 50, ..ExecutionFilter::default() };
    let since = Some(Timestamp::from_millis(1_700_000_000_000 + 600_000));
    let mut filters = Vec::new();
    for function in [None, name("f7"), name("f50"), name("nobody")] {
        for status in [None, Some(StatusFilter::Running), Some(StatusFilter::Ended(OutcomeStatus::Success)), failed] {
            for since in [None, since] {
                filters.push(ExecutionFilter { function: function.clone(), status, since, ..some.clone() });
            }
        }
    }
    // More often than the server makes a plan for the values at hand.
    for _ in 0..8 {
        for filter in &filters {
            let first = store.executions(filter).await.expect("list");
            let cursor = first.last().map(|record| record.execution_id);
            store.executions(&ExecutionFilter { cursor, ..filter.clone() }).await.expect("list");
        }
        let stale = Timestamp::from_millis(1_700_000_000_000 + 900_000);
        let open = store.open_executions(stale, None, 100).await.expect("list");
        assert_eq!(open.len(), 100);
        store.functions("g1", name("g17").as_ref(), 50).await.expect("list");
        store.expire(Timestamp::from_millis(1_700_000_000_000), 100).await.expect("expire");
    }
    store.close().await;
    drop(store);
    assert_eq!(settled().await, before, "a list read a whole table");
}

#[tokio::test]
async fn what_cannot_be_opened_is_said_without_its_password() {
    let server = PostgresServer::start().await;
    let port = server.port();
    let mut refused = Vec::new();
    for (url, said) in [
        (format!("postgres://flux:hunter2@127.0.0.1:{port}/nothere"), "does not exist"),
        (format!("postgres://nobody:hunter2@127.0.0.1:{port}/postgres"), "role"),
        ("postgres://flux:hunter2@127.0.0.1:1/postgres".to_owned(), "out of reach"),
        (format!("postgres://flux:hunter2@127.0.0.1:{port}/postgres?sslmode=maybe"), "`sslmode`"),
        (format!("postgres://flux:hunter2@127.0.0.1:{port}/postgres?schema=A-b"), "`schema`"),
        (format!("postgres://flux:hunter2@127.0.0.1:{port}/postgres?pool=0"), "`pool`"),
        (format!("postgres://flux:hunter2@127.0.0.1:{port}/postgres?hunter2=1"), "of parameters it knows"),
        (format!("postgres://flux:hunter2@127.0.0.1:{port}/postgres?sslmode=require"), "TLS"),
    ] {
        refused.push((url, said));
    }
    crate::server::are_refused(refused, "hunter2").await;
}
