//! Records of executions, however the news of them come.

use bytes::Bytes;
use flux_protocol::{
    Chunk, ExecutionId, ExecutionRecord, Invocation, Lane, OutcomeStatus, OutputLog, Phase, Stream,
    execution::QueuePosition, limits,
};

use super::{at, at_once, ended, failed_for_now, id, load, position, queued, status, unplaced, update};
use crate::{StatusUpdate, Store};

/// All orders of a few things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    shorter
        .iter()
        .flat_map(|order| {
            (0..count).map(|at| {
                let mut order = order.clone();
                order.insert(at, count - 1);
                order
            })
        })
        .collect()
}

/// The news of an execution in this order, where 5 is that it was accepted. Returns its record, without its id.
async fn told_in(store: &dyn Store, id: ExecutionId, order: &[usize]) -> ExecutionRecord {
    let mut late = ended(id, "f", 2, OutcomeStatus::Success, 9);
    late.notes = vec!["b".to_owned(), "a".to_owned()];
    let news = [
        update(status(id, "f", 1, Phase::Running, 2), 1),
        update(failed_for_now(id, "f", 1, 3), 2),
        update(status(id, "f", 2, Phase::Running, 5), 3),
        update(late, 5),
        update(ended(id, "f", 2, OutcomeStatus::Cancelled, 7), 4),
    ];
    for at in order {
        match news.get(*at) {
            Some(update) => drop(store.record(vec![update.clone()]).await.expect("record")),
            None => store.insert_queued(queued(id, "f", 0)).await.expect("insert"),
        }
    }
    let mut record = load(store, id).await;
    record.execution_id = super::id(0, 0);
    record
}

pub async fn statuses_converge_in_every_order(store: &dyn Store) {
    let orders = orders(6);
    let mut first: Option<ExecutionRecord> = None;
    // Several executions beside each other, since servers take far longer for one call after the other: six for each order.
    for (chunk, some) in orders.chunks(16).enumerate() {
        let told = some.iter().enumerate().map(|(at, order)| told_in(store, id(1, (chunk * 16 + at) as u64), order));
        for (record, order) in at_once(told).await.into_iter().zip(some) {
            assert_eq!(record.status_text(), "cancelled", "{order:?}");
            assert_eq!((record.terminal_seq, record.attempt), (Some(4), 2), "{order:?}");
            assert_eq!(record.position, Some(position(7)), "{order:?}");
            assert_eq!(record.notes, ["a", "b"], "{order:?}");
            match &first {
                None => first = Some(record),
                Some(first) => assert_eq!(&record, first, "{order:?}"),
            }
        }
    }
}

pub async fn a_duplicate_changes_nothing(store: &dyn Store) {
    let id = id(1, 1);
    store.insert_queued(queued(id, "f", 1)).await.expect("insert");
    let news =
        vec![update(status(id, "f", 1, Phase::Running, 2), 1), update(ended(id, "f", 1, OutcomeStatus::Failed, 3), 2)];
    store.record(news.clone()).await.expect("record");
    let before = load(store, id).await;
    let again = store.record(news.clone()).await.expect("record");
    assert!(again.iter().all(|recorded| !recorded.became_terminal && !recorded.retry_wanted), "{again:?}");
    store.insert_queued(queued(id, "f", 1)).await.expect("insert");
    store.record([&news[..], &news[..]].concat()).await.expect("record");
    assert_eq!(load(store, id).await, before);
}

pub async fn a_late_attempt_cannot_overwrite_an_outcome(store: &dyn Store) {
    let id = id(1, 1);
    store.record(vec![update(ended(id, "f", 1, OutcomeStatus::Success, 3), 5)]).await.expect("record");
    let before = load(store, id).await;
    let late =
        vec![update(status(id, "f", 2, Phase::Running, 4), 6), update(ended(id, "f", 2, OutcomeStatus::Failed, 5), 7)];
    let recorded = store.record(late).await.expect("record");
    assert!(recorded.iter().all(|recorded| !recorded.became_terminal));
    assert_eq!(load(store, id).await, before);
}

pub async fn the_first_outcome_of_the_log_wins(store: &dyn Store) {
    let id = id(1, 1);
    store.record(vec![update(ended(id, "f", 2, OutcomeStatus::Success, 9), 8)]).await.expect("record");
    let earlier = update(ended(id, "f", 1, OutcomeStatus::Failed, 3), 3);
    let recorded = store.record(vec![earlier]).await.expect("record");
    assert!(!recorded[0].became_terminal, "it was terminal already");
    let record = load(store, id).await;
    assert_eq!((record.status_text(), record.terminal_seq, record.attempt), ("failed", Some(3), 1));
    let output = record.outcome.expect("an outcome").output;
    assert_eq!(output.to_text(), "attempt 1\n", "the output is the outcome's own");
}

pub async fn an_outcome_stays_where_the_log_has_no_order(store: &dyn Store) {
    // As a gateway on RabbitMQ has them: a later attempt's outcome comes in the same batch, and later.
    let both = id(1, 1);
    let batch = vec![
        unplaced(ended(both, "f", 1, OutcomeStatus::Success, 3)),
        unplaced(ended(both, "f", 2, OutcomeStatus::Failed, 2)),
    ];
    let recorded = store.record(batch).await.expect("record");
    assert_eq!(recorded.iter().map(|r| r.became_terminal).collect::<Vec<_>>(), [true, false]);
    let before = load(store, both).await;
    assert_eq!((before.status_text(), before.terminal_seq, before.attempt), ("success", None, 1));
    for late in [
        unplaced(ended(both, "f", 3, OutcomeStatus::Cancelled, 1)),
        unplaced(ended(both, "f", 1, OutcomeStatus::Failed, 1)),
        // Of another queue, to which Flux was moved meanwhile.
        update(ended(both, "f", 2, OutcomeStatus::Failed, 2), 1),
    ] {
        let recorded = store.record(vec![late]).await.expect("record");
        assert!(!recorded[0].became_terminal && !recorded[0].retry_wanted);
        assert_eq!(load(store, both).await, before);
    }
    // What the later attempt told before it ended is no outcome: its attempt leads until one is recorded.
    let earlier = id(1, 2);
    store.insert_queued(queued(earlier, "f", 1)).await.expect("insert");
    let news = vec![
        unplaced(status(earlier, "f", 2, Phase::Running, 5)),
        unplaced(ended(earlier, "f", 1, OutcomeStatus::Success, 4)),
        unplaced(ended(earlier, "f", 2, OutcomeStatus::Failed, 6)),
    ];
    store.record(news).await.expect("record");
    let record = load(store, earlier).await;
    assert_eq!((record.status_text(), record.attempt), ("success", 1));
    // An outcome that has a place gives way only to what has one too.
    let placed = id(1, 3);
    store.record(vec![update(ended(placed, "f", 1, OutcomeStatus::Success, 3), 5)]).await.expect("record");
    store.record(vec![unplaced(ended(placed, "f", 2, OutcomeStatus::Failed, 4))]).await.expect("record");
    let record = load(store, placed).await;
    assert_eq!((record.status_text(), record.terminal_seq, record.attempt), ("success", Some(5), 1));
}

pub async fn of_outcomes_recorded_at_once_one_stays(store: &dyn Store) {
    // Gateways that record an attempt's outcome each, and look at once: what one of them saw, all see for good. The first ten were
    // accepted, of the others nothing was known.
    const EXECUTIONS: u64 = 20;
    at_once((0..EXECUTIONS / 2).map(|n| store.insert_queued(queued(id(1, n), "f", 1)))).await;
    let gateway = async |attempt: u32| {
        let ends = (0..EXECUTIONS).map(|n| unplaced(ended(id(1, n), "f", attempt, OutcomeStatus::Success, 90)));
        let recorded = store.record(ends.collect()).await.expect("record");
        let seen = at_once((0..EXECUTIONS).map(|n| load(store, id(1, n)))).await;
        (recorded.into_iter().map(|recorded| recorded.became_terminal).collect::<Vec<_>>(), seen)
    };
    let gateways = at_once((1..=8).map(gateway)).await;
    for (n, at) in (0..EXECUTIONS).zip(0_usize..) {
        let last = load(store, id(1, n)).await;
        for (number, (became, seen)) in (1..).zip(&gateways) {
            assert_eq!(seen[at], last, "execution {n} as gateway {number} saw it");
            assert_eq!(became[at], last.attempt == number, "execution {n}, gateway {number}");
        }
    }
}

pub async fn an_accepted_record_may_come_after_its_outcome(store: &dyn Store) {
    let id = id(1, 1);
    store.record(vec![update(ended(id, "f", 1, OutcomeStatus::Success, 3), 5)]).await.expect("record");
    let deadline = at(77);
    let accepted = ExecutionRecord { deadline: Some(deadline), ..queued(id, "f", 1) };
    store.insert_queued(accepted).await.expect("insert");
    let record = load(store, id).await;
    assert_eq!(record.status_text(), "success");
    assert_eq!((record.position, record.deadline), (Some(position(7)), Some(deadline)));
    assert_eq!(record.invocation, None, "nothing is published again for it");
}

/// Two gateways that accept one execution by its key, and do not agree on the queue.
pub async fn an_accepted_record_of_another_queue_replaces_neither_an_outcome_nor_a_place(store: &dyn Store) {
    let told = |number| update(ended(id(1, number), "f", 1, OutcomeStatus::Success, 3), 5);
    let elsewhere = |number| ExecutionRecord { lane: Lane::Call, position: None, ..queued(id(1, number), "f", 1) };
    // It ended, as nobody knew that it had been accepted.
    store.record(vec![told(1)]).await.expect("record");
    // It was accepted, and ended.
    store.insert_queued(queued(id(1, 2), "f", 1)).await.expect("insert");
    store.record(vec![told(2)]).await.expect("record");
    // It was accepted, and waits.
    store.insert_queued(queued(id(1, 3), "f", 1)).await.expect("insert");
    for number in 1..=3 {
        let before = load(store, id(1, number)).await;
        store.insert_queued(elsewhere(number)).await.expect("insert");
        assert_eq!(load(store, id(1, number)).await, before);
    }
    // What somebody says who knows no place is nothing against who accepted it.
    store.record(vec![update(status(id(1, 4), "f", 1, Phase::Running, 2), 1)]).await.expect("record");
    store.insert_queued(elsewhere(4)).await.expect("insert");
    let record = load(store, id(1, 4)).await;
    assert_eq!((record.lane, record.phase), (Lane::Call, Phase::Queued));
}

pub async fn one_update_makes_an_execution_terminal(store: &dyn Store) {
    let (a, b) = (id(1, 1), id(1, 2));
    let batch = vec![
        update(status(a, "f", 1, Phase::Running, 2), 1),
        update(ended(a, "f", 1, OutcomeStatus::Success, 3), 2),
        update(ended(b, "f", 1, OutcomeStatus::Failed, 3), 3),
        update(ended(a, "f", 1, OutcomeStatus::Success, 3), 4),
    ];
    let recorded = store.record(batch.clone()).await.expect("record");
    assert_eq!(recorded.iter().map(|r| r.execution_id).collect::<Vec<_>>(), [a, a, b, a], "in the order given");
    assert_eq!(recorded.iter().map(|r| r.became_terminal).collect::<Vec<_>>(), [false, true, true, false]);
    let again = store.record(batch).await.expect("record");
    assert!(again.iter().all(|recorded| !recorded.became_terminal));
}

pub async fn a_failure_that_is_retried_asks_for_its_next_attempt(store: &dyn Store) {
    let id = id(1, 1);
    store.insert_queued(queued(id, "f", 1)).await.expect("insert");
    let failed = update(failed_for_now(id, "f", 1, 3), 1);
    let recorded = store.record(vec![failed.clone()]).await.expect("record");
    assert!(recorded[0].retry_wanted && !recorded[0].became_terminal);
    let record = load(store, id).await;
    assert_eq!((record.phase, record.status_text()), (Phase::Ended, "running"));
    // The gateway died before it published: it must hear it again.
    let recorded = store.record(vec![failed.clone()]).await.expect("record");
    assert!(recorded[0].retry_wanted);
    store.requeued(id, 2, position(20), at(4)).await.expect("requeue");
    let recorded = store.record(vec![failed.clone()]).await.expect("record");
    assert!(!recorded[0].retry_wanted, "the next attempt is queued");
    let record = load(store, id).await;
    assert_eq!((record.phase, record.attempt, record.status_at), (Phase::Queued, 2, at(4)));
    assert_eq!(record.position, Some(position(20)));
    let kept = record.outcome.expect("the last failure is shown while the next attempt is queued");
    assert_eq!(kept.output.to_text(), "attempt 1\n");
    assert_eq!(record.invocation.map(|invocation| invocation.failures), Some(1), "what a lost message is made from");

    store.record(vec![update(status(id, "f", 2, Phase::Running, 5), 2)]).await.expect("record");
    assert_eq!(load(store, id).await.outcome, None);
    let last = update(ended(id, "f", 2, OutcomeStatus::Failed, 6), 3);
    let recorded = store.record(vec![last, failed]).await.expect("record");
    assert!(recorded[0].became_terminal && !recorded[0].retry_wanted && !recorded[1].retry_wanted);
}

pub async fn a_message_published_again_waits_anew(store: &dyn Store) {
    let id = id(1, 1);
    store.insert_queued(queued(id, "f", 1)).await.expect("insert");
    store.requeued(id, 1, position(30), at(50)).await.expect("requeue");
    let record = load(store, id).await;
    assert_eq!((record.phase, record.attempt, record.status_at), (Phase::Queued, 1, at(50)));
    assert_eq!((record.queued_at, record.position), (at(1), Some(position(30))));
    assert!(record.invocation.is_some());
    // A stream that was made anew counts from 1 again.
    let anew = QueuePosition { epoch: at(60), ..position(1) };
    store.requeued(id, 1, anew.clone(), at(61)).await.expect("requeue");
    assert_eq!(load(store, id).await.position, Some(anew.clone()));
    // It runs already: it does not wait, wherever its message lies.
    store.record(vec![update(status(id, "f", 1, Phase::Running, 62), 1)]).await.expect("record");
    store.requeued(id, 1, QueuePosition { sequence: 2, ..anew }, at(63)).await.expect("requeue");
    let record = load(store, id).await;
    assert_eq!((record.phase, record.status_at), (Phase::Running, at(62)));
    assert_eq!(record.position.map(|position| position.sequence), Some(2));
}

pub async fn an_unknown_execution_is_not_made_by_requeuing(store: &dyn Store) {
    store.requeued(id(1, 1), 1, position(1), at(1)).await.expect("requeue");
    assert_eq!(store.execution(id(1, 1)).await.expect("read"), None);
}

pub async fn the_invocation_is_kept_until_the_outcome(store: &dyn Store) {
    let id = id(1, 1);
    let payload = flux_protocol::Payload::Inline(Bytes::from(vec![0xfe; limits::INLINE_PAYLOAD]));
    let invocation = Invocation { execution_id: Some(id), attempt: 1, payload, ..Invocation::default() };
    let accepted = ExecutionRecord { invocation: Some(invocation.clone()), ..queued(id, "f", 1) };
    store.insert_queued(accepted).await.expect("insert");
    store.record(vec![update(status(id, "f", 1, Phase::Running, 2), 1)]).await.expect("record");
    assert_eq!(load(store, id).await.invocation, Some(invocation));
    store.record(vec![update(ended(id, "f", 1, OutcomeStatus::Success, 3), 2)]).await.expect("record");
    assert_eq!(load(store, id).await.invocation, None);
}

pub async fn output_comes_back_as_it_was(store: &dyn Store) {
    let logs = [
        OutputLog::default(),
        OutputLog {
            chunks: vec![
                Chunk { seq: 1, stream: Stream::Stdout, data: Bytes::from_static(b"text\n") },
                Chunk { seq: 4, stream: Stream::Stderr, data: Bytes::from_static(&[0xff, 0x00, 0xfe]) },
            ],
            dropped_bytes: 12,
        },
        OutputLog { chunks: Vec::new(), dropped_bytes: 3 },
        OutputLog {
            chunks: vec![Chunk { seq: 1, stream: Stream::Stdout, data: vec![b'x'; limits::INLINE_OUTPUT].into() }],
            dropped_bytes: 0,
        },
    ];
    for (number, log) in logs.into_iter().enumerate() {
        let id = id(1, number as u64);
        let mut status = ended(id, "f", 1, OutcomeStatus::Success, 3);
        if let Some(outcome) = &mut status.outcome {
            outcome.output = log.clone();
        }
        let told = status.outcome.clone();
        store.record(vec![update(status, 1)]).await.expect("record");
        assert_eq!(load(store, id).await.outcome, told);
    }
}

pub async fn at_once_recorded_updates_are_all_kept(store: &dyn Store) {
    // Sixteen gateways record the same executions, each an attempt of its own.
    let batch = |attempt: u32| -> Vec<StatusUpdate> {
        let news = (0..20).map(|n| {
            let mut status = status(id(1, n), "f", attempt, Phase::Running, i64::from(attempt));
            status.notes = vec![format!("attempt {attempt:02}")];
            update(status, u64::from(attempt))
        });
        news.collect()
    };
    let recorded = at_once((1..=16).map(|attempt| store.record(batch(attempt)))).await;
    assert!(recorded.iter().all(Result::is_ok));
    for n in 0..20 {
        let record = load(store, id(1, n)).await;
        assert_eq!((record.attempt, record.notes.len()), (16, 16));
    }
    let ends = at_once((0..16).map(|n| {
        let end = ended(id(1, 0), "f", 16, OutcomeStatus::Success, 90);
        store.record(vec![update(end, 100 + n)])
    }))
    .await;
    let became: usize = ends.into_iter().map(|end| usize::from(end.expect("record")[0].became_terminal)).sum();
    assert_eq!(became, 1);
    assert_eq!(load(store, id(1, 0)).await.terminal_seq, Some(100));
}

pub async fn an_empty_batch_is_nothing(store: &dyn Store) {
    assert_eq!(store.record(Vec::new()).await.expect("record"), []);
}
