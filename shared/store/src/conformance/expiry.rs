//! What goes, and closing.

use flux_protocol::{OutcomeStatus, Phase, execution::BlobRef};

use super::{at, digest, ended, failed_for_now, id, load, queued, status, update};
use crate::{ExecutionFilter, Store, StoreError};

pub async fn old_outcomes_go_and_nothing_else(store: &dyn Store) {
    let mut with_blob = ended(id(1, 1), "f", 1, OutcomeStatus::Success, 10);
    let blob = BlobRef { key: "output-x".to_owned(), digest: digest("x"), size: 3 };
    if let Some(outcome) = &mut with_blob.outcome {
        outcome.output_ref = Some(blob.clone());
    }
    let batch = vec![
        update(with_blob, 1),
        update(ended(id(1, 2), "f", 1, OutcomeStatus::Failed, 50), 2),
        update(status(id(1, 3), "f", 1, Phase::Running, 5), 3),
        update(failed_for_now(id(1, 4), "f", 1, 5), 4),
    ];
    store.record(batch).await.expect("record");
    store.insert_queued(queued(id(1, 5), "f", 1)).await.expect("insert");
    assert_eq!(store.expire(at(10), 100).await.expect("expire"), []);
    let removed = store.expire(at(50), 100).await.expect("expire");
    assert_eq!(removed.iter().map(|record| record.execution_id).collect::<Vec<_>>(), [id(1, 1)]);
    let outcome = removed[0].outcome.as_ref().expect("an outcome");
    assert_eq!(outcome.output_ref, Some(blob), "so that its blob can go too");
    assert_eq!(store.execution(id(1, 1)).await.expect("read"), None);
    for n in 2..=5 {
        load(store, id(1, n)).await;
    }
    assert_eq!(store.expire(at(51), 100).await.expect("expire").len(), 1);
    assert_eq!(store.expire(at(9999), 100).await.expect("expire"), [], "what is open stays");
}

pub async fn no_more_than_the_limit_goes(store: &dyn Store) {
    let batch: Vec<_> = (0..1300)
        .map(|n| update(ended(id(1, n), "f", 1, OutcomeStatus::Success, i64::try_from(n).expect("small")), n))
        .collect();
    store.record(batch).await.expect("record");
    assert_eq!(store.expire(at(2000), 0).await.expect("expire"), []);
    let removed = store.expire(at(2000), 1100).await.expect("expire");
    assert_eq!(removed.len(), 1100);
    assert!(removed.iter().all(|record| record.status_at < at(1100)), "the oldest first");
    let left = store.executions(&ExecutionFilter { limit: 1000, ..ExecutionFilter::default() }).await.expect("list");
    assert_eq!(left.len(), 200);
    assert_eq!(store.expire(at(2000), 1100).await.expect("expire").len(), 200);
}

pub async fn a_closed_store_says_so(store: &dyn Store) {
    store.insert_queued(queued(id(1, 1), "f", 1)).await.expect("insert");
    store.close().await;
    store.close().await;
    let written = store.insert_queued(queued(id(1, 2), "f", 1)).await;
    assert!(matches!(written, Err(StoreError::Closed)), "{written:?}");
    let read = store.execution(id(1, 1)).await;
    assert!(matches!(read, Err(StoreError::Closed)), "{read:?}");
}
