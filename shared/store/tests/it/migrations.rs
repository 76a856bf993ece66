//! A database of an earlier schema is brought up to date when it is opened, with what is in it.

use flux_protocol::Timestamp;
use flux_store::Tuning;

use crate::durability::accepted;

/// The first schema, as it was released.
const FIRST: &str = include_str!("../../src/sqlite/schema.sql");

#[tokio::test]
async fn the_first_schema_is_brought_up_to_date() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("flux.db");
    let file = rusqlite::Connection::open(&path).expect("a database");
    file.execute_batch(FIRST).expect("the first schema");
    file.pragma_update(None, "user_version", 1).expect("its number");
    file.pragma_update(None, "application_id", 0x464c_5558).expect("whose it is");
    drop(file);

    let url = format!("sqlite://{}", path.display());
    let before = std::fs::read(&path).expect("it");
    let as_it_is = Tuning { migrate: false, ..Tuning::default() };
    let refused = flux_store::open(&url, &as_it_is).await.err().expect("it is to be left as it is").to_string();
    assert!(refused.contains("of an earlier release of Flux (schema 1;"), "{refused}");
    assert!(std::fs::read(&path).expect("it") == before, "and it was");

    let store = flux_store::open(&url, &Tuning::default()).await.expect("a store");
    let record = accepted();
    store.insert_queued(record.clone()).await.expect("insert");
    let open = store.open_executions(Timestamp::from_millis(i64::MAX / 2_000), None, 10).await.expect("list");
    assert_eq!(open.iter().map(|record| record.execution_id).collect::<Vec<_>>(), [record.execution_id]);
    store.close().await;

    let file = rusqlite::Connection::open(&path).expect("a database");
    let plan: String = file
        .query_row(
            "EXPLAIN QUERY PLAN SELECT id FROM executions INDEXED BY executions_open
             WHERE status = 0 AND id > ?1 AND status_at < ?2 ORDER BY id LIMIT ?3",
            rusqlite::params![Vec::<u8>::new(), 1, 1],
            |row| row.get(3),
        )
        .expect("a plan");
    assert!(plan.contains("COVERING INDEX executions_open"), "the reconciler's question reads rows: {plan}");
}
