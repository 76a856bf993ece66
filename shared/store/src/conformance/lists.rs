//! Lists of executions.

use std::collections::BTreeSet;

use flux_protocol::{ExecutionId, OutcomeStatus, Phase, limits};

use super::{at, at_once, ended, failed_for_now, id, name, position, queued, status, update};
use crate::{ExecutionFilter, StatusFilter, Store};

async fn listed(store: &dyn Store, filter: ExecutionFilter) -> Vec<ExecutionId> {
    let records = store.executions(&filter).await.expect("list");
    records.iter().map(|record| record.execution_id).collect()
}

fn all() -> ExecutionFilter {
    ExecutionFilter { limit: 100, ..ExecutionFilter::default() }
}

pub async fn lists_are_newest_first_and_filtered(store: &dyn Store) {
    let ids: Vec<ExecutionId> = (0..8).map(|n| id(n * 10, 0)).collect();
    for (n, id) in ids.iter().enumerate() {
        let function = ["even", "odd"][n % 2];
        store.insert_queued(queued(*id, function, i64::try_from(n).expect("small") * 10)).await.expect("insert");
    }
    let of = |n: usize| ids[n];
    let end = |n: usize, result| update(ended(of(n), ["even", "odd"][n % 2], 1, result, 100), 1);
    let batch = vec![
        end(1, OutcomeStatus::Success),
        end(2, OutcomeStatus::Success),
        end(3, OutcomeStatus::Failed),
        end(4, OutcomeStatus::Cancelled),
        update(status(of(5), "odd", 1, Phase::Running, 60), 2),
        update(failed_for_now(of(6), "even", 1, 70), 3),
    ];
    store.record(batch).await.expect("record");
    let function = |function: &str| ExecutionFilter { function: Some(name(function)), ..all() };
    let running = Some(StatusFilter::Running);
    let ended = |result| Some(StatusFilter::Ended(result));
    let pick = |wanted: &[usize]| wanted.iter().map(|n| of(*n)).collect::<Vec<_>>();

    assert_eq!(listed(store, all()).await, pick(&[7, 6, 5, 4, 3, 2, 1, 0]));
    assert_eq!(listed(store, function("odd")).await, pick(&[7, 5, 3, 1]));
    assert_eq!(listed(store, function("nobody")).await, []);
    assert_eq!(listed(store, ExecutionFilter { status: running, ..all() }).await, pick(&[7, 6, 5, 0]));
    let success = ended(OutcomeStatus::Success);
    assert_eq!(listed(store, ExecutionFilter { status: success, ..all() }).await, pick(&[2, 1]));
    let failed = ended(OutcomeStatus::Failed);
    assert_eq!(listed(store, ExecutionFilter { status: failed, ..all() }).await, pick(&[3]));
    let cancelled = ended(OutcomeStatus::Cancelled);
    assert_eq!(listed(store, ExecutionFilter { status: cancelled, ..all() }).await, pick(&[4]));
    assert_eq!(listed(store, ExecutionFilter { status: running, ..function("odd") }).await, pick(&[7, 5]));
    assert_eq!(listed(store, ExecutionFilter { status: success, ..function("even") }).await, pick(&[2]));
    // `ended` statuses say `queued_at` 0, and the earliest counts: 5, 6 too, whose statuses said so.
    assert_eq!(listed(store, ExecutionFilter { since: Some(at(70)), ..all() }).await, pick(&[7]));
    assert_eq!(listed(store, ExecutionFilter { since: Some(at(71)), ..all() }).await, []);
    let since = ExecutionFilter { since: Some(at(0)), status: running, ..function("even") };
    assert_eq!(listed(store, since).await, pick(&[6, 0]));
    assert_eq!(listed(store, ExecutionFilter { cursor: Some(of(5)), limit: 2, ..all() }).await, pick(&[4, 3]));
    let cursor = ExecutionFilter { cursor: Some(of(5)), status: running, ..function("odd") };
    assert_eq!(listed(store, cursor).await, []);
}

pub async fn lists_leave_output_out(store: &dyn Store) {
    let id = id(1, 1);
    store.insert_queued(queued(id, "f", 1)).await.expect("insert");
    let open = store.executions(&all()).await.expect("list").remove(0);
    assert_eq!((open.invocation, open.position), (None, Some(position(7))));
    store.record(vec![update(ended(id, "f", 1, OutcomeStatus::Failed, 3), 1)]).await.expect("record");
    let listed = store.executions(&all()).await.expect("list").remove(0);
    let outcome = listed.outcome.expect("an outcome");
    assert!(outcome.output.is_empty());
    assert_eq!(outcome.status, OutcomeStatus::Failed);
    assert!(outcome.error.is_some() && outcome.duration_ms.micros == 1234);
}

pub async fn a_page_has_at_least_one_and_at_most_the_limit(store: &dyn Store) {
    let batch: Vec<_> =
        (0..limits::PAGE as u64 + 5).map(|n| update(ended(id(1, n), "f", 1, OutcomeStatus::Success, 3), n)).collect();
    store.record(batch).await.expect("record");
    assert_eq!(listed(store, ExecutionFilter { limit: 0, ..all() }).await.len(), 1);
    assert_eq!(listed(store, ExecutionFilter { limit: usize::MAX, ..all() }).await.len(), limits::PAGE);
}

pub async fn paging_visits_each_once_while_writes_go_on(store: &dyn Store) {
    let before: BTreeSet<ExecutionId> = (0..100).map(|n| id(i64::try_from(n).expect("small"), n)).collect();
    for id in &before {
        store.insert_queued(queued(*id, "f", 1)).await.expect("insert");
    }
    let mut seen = BTreeSet::new();
    let mut cursor = None;
    let mut page = 0_u64;
    loop {
        let ids = listed(store, ExecutionFilter { cursor, limit: 7, ..all() }).await;
        let Some(last) = ids.last() else { break };
        cursor = Some(*last);
        for id in ids {
            assert!(seen.insert(id), "{id} twice");
        }
        page += 1;
        // New ones come in at the front, and some end meanwhile.
        let newer = queued(id(200, page), "f", 200);
        let ends = before.iter().skip(usize::try_from(page).expect("small") * 3).take(5);
        let ends = ends.map(|id| update(ended(*id, "f", 1, OutcomeStatus::Success, 300), page)).collect();
        let (inserted, recorded) = tokio::join!(store.insert_queued(newer), store.record(ends));
        inserted.expect("insert");
        recorded.expect("record");
    }
    assert!(before.is_subset(&seen), "{} of {}", seen.len(), before.len());
}

pub async fn open_executions_are_the_stale_ones_oldest_first(store: &dyn Store) {
    let ids: Vec<ExecutionId> = (0..6).map(|n| id(n, 0)).collect();
    at_once(
        ids.iter().enumerate().map(|(n, id)| store.insert_queued(queued(*id, "f", i64::try_from(n).expect("small")))),
    )
    .await;
    let batch = vec![
        update(ended(ids[1], "f", 1, OutcomeStatus::Success, 3), 1),
        update(failed_for_now(ids[2], "f", 1, 3), 2),
        update(status(ids[3], "f", 1, Phase::Running, 500), 3),
    ];
    store.record(batch).await.expect("record");
    let open = async |before, after: Option<usize>, limit| -> Vec<ExecutionId> {
        let records = store.open_executions(at(before), after.map(|n| ids[n]), limit).await.expect("list");
        assert!(records.iter().all(|record| record.invocation.is_some()), "what they are published again from");
        records.iter().map(|record| record.execution_id).collect()
    };
    assert_eq!(open(100, None, 10).await, [ids[0], ids[2], ids[4], ids[5]]);
    assert_eq!(open(501, None, 10).await, [ids[0], ids[2], ids[3], ids[4], ids[5]]);
    assert_eq!(open(5, None, 10).await, [ids[0], ids[2], ids[4]], "`before` itself is not before");
    assert_eq!(open(100, Some(2), 10).await, [ids[4], ids[5]]);
    assert_eq!(open(100, None, 2).await, [ids[0], ids[2]]);
    assert_eq!(open(0, None, 2).await, []);
}
