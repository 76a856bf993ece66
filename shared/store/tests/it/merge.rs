//! The merge by itself: whatever order statuses come in, and however often, the record is the same.

use bytes::Bytes;
use flux_protocol::{
    AgentId, Chunk, ErrorKind, ExecutionError, ExecutionId, ExecutionRecord, FunctionName, Invocation, Lane, Outcome,
    OutcomeStatus, OutputLog, Phase, PoolName, StatusMessage, Stream, Timestamp, Usage, execution::QueuePosition,
};
use flux_store::{merge_queued, merge_requeued, merge_status};
use proptest::prelude::*;

/// One piece of news of an execution.
#[derive(Debug, Clone)]
enum News {
    Status(Box<StatusMessage>, Option<u64>),
    Accepted(Box<ExecutionRecord>),
}

fn id() -> ExecutionId {
    ExecutionId::from_bytes([7; 16])
}

fn time() -> impl Strategy<Value = Timestamp> {
    // Few values, so that ties are common.
    (0_i64..4).prop_map(|n| Timestamp::from_millis(1_800_000_000_000 + n))
}

fn agent() -> impl Strategy<Value = Option<AgentId>> {
    prop_oneof![
        Just(None),
        Just(Some(AgentId::parse("agent-a").expect("an id"))),
        Just(Some(AgentId::parse("agent-b").expect("an id"))),
    ]
}

fn notes() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec((0..60).prop_map(|n| format!("note {n:02}")), 0..20)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (0_usize..3, any::<bool>(), "[ab]{0,3}", prop::bool::weighted(0.4)).prop_map(|(status, error, text, will_retry)| {
        Outcome {
            status: [OutcomeStatus::Success, OutcomeStatus::Failed, OutcomeStatus::Cancelled][status],
            error: error.then(|| ExecutionError::new(ErrorKind::Exit, "it exited")),
            output: OutputLog {
                chunks: vec![Chunk { seq: 1, stream: Stream::Stdout, data: Bytes::from(text) }],
                dropped_bytes: 0,
            },
            output_ref: None,
            duration_ms: std::time::Duration::from_micros(5).into(),
            start: None,
            usage: Usage::default(),
            will_retry,
        }
    })
}

fn invocation() -> impl Strategy<Value = Invocation> {
    (1_u32..3, 0_u32..3, prop::option::of("[ab]"), prop::bool::ANY).prop_map(|(attempt, failures, arg, redriven)| {
        Invocation {
            execution_id: Some(id()),
            attempt,
            failures,
            args: arg.into_iter().collect(),
            redrive_of: redriven.then(id),
            ..Invocation::default()
        }
    })
}

fn traceparent() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[ab]{2}")
}

fn status() -> impl Strategy<Value = StatusMessage> {
    (
        (1_u32..4, 0_usize..3, prop::option::weighted(0.9, outcome()), agent(), prop::option::of(invocation())),
        (time(), prop::option::of(time()), time(), prop::option::of(time()), traceparent(), notes(), any::<bool>()),
    )
        .prop_map(|((attempt, phase, outcome, agent_id, invocation), times)| {
            let (queued_at, started_at, at, deadline, traceparent, notes, versioned) = times;
            let phase = [Phase::Queued, Phase::Running, Phase::Ended][phase];
            StatusMessage {
                execution_id: id(),
                function: FunctionName::parse("f").expect("a name"),
                // One version an execution, where one is named at all.
                version: if versioned { 3 } else { 0 },
                attempt,
                lane: Lane::Invoke,
                pool: PoolName::default(),
                phase,
                agent_id,
                queued_at,
                started_at,
                at,
                deadline,
                traceparent,
                outcome,
                invocation: invocation.map(Box::new),
                notes,
            }
        })
}

fn accepted() -> impl Strategy<Value = ExecutionRecord> {
    (time(), prop::option::of(time()), traceparent(), notes(), invocation(), 0_u64..3, any::<bool>()).prop_map(
        |(queued_at, deadline, traceparent, notes, invocation, sequence, versioned)| ExecutionRecord {
            execution_id: id(),
            function: FunctionName::parse("f").expect("a name"),
            version: if versioned { 3 } else { 0 },
            attempt: 1,
            lane: Lane::Invoke,
            pool: PoolName::default(),
            phase: Phase::Queued,
            agent_id: None,
            queued_at,
            started_at: None,
            status_at: queued_at,
            deadline,
            traceparent,
            outcome: None,
            terminal_seq: None,
            position: Some(QueuePosition { stream: "FLUX_INVOKE".to_owned(), sequence, epoch: queued_at }),
            redrive_of: invocation.redrive_of,
            invocation: Some(invocation),
            notes,
        },
    )
}

fn news() -> impl Strategy<Value = Vec<News>> {
    news_with((0_u64..6).prop_map(Some))
}

/// News of which some or all have no place in the log.
fn unordered_news() -> impl Strategy<Value = Vec<News>> {
    prop_oneof![news_with(Just(None)), news_with(prop::option::of(0_u64..6))]
}

fn news_with(sequence: impl Strategy<Value = Option<u64>>) -> impl Strategy<Value = Vec<News>> {
    let one = prop_oneof![
        5 => (status(), sequence).prop_map(|(status, sequence)| News::Status(Box::new(status), sequence)),
        1 => accepted().prop_map(|record| News::Accepted(Box::new(record))),
    ];
    prop::collection::vec(one, 1..7)
}

fn merge(known: Option<ExecutionRecord>, news: &News) -> ExecutionRecord {
    match news {
        News::Status(status, sequence) => merge_status(known, status, *sequence).0,
        News::Accepted(record) => merge_queued(known, (**record).clone()),
    }
}

fn merge_all<'n>(news: impl IntoIterator<Item = &'n News>) -> ExecutionRecord {
    news.into_iter().fold(None, |known, news| Some(merge(known, news))).expect("at least one")
}

/// The news in some order, with any of them repeated.
fn jumbled() -> impl Strategy<Value = (Vec<News>, Vec<usize>)> {
    news().prop_flat_map(|news| {
        let all: Vec<usize> = (0..news.len()).collect();
        let repeats = prop::collection::vec(0..news.len(), 0..4);
        let order = repeats.prop_flat_map(move |more| Just([all.clone(), more].concat()).prop_shuffle());
        (Just(news), order)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_repetition_gives_the_same_record((news, order) in jumbled()) {
        let straight = merge_all(&news);
        let jumbled = merge_all(order.iter().map(|at| &news[*at]));
        prop_assert_eq!(straight, jumbled);
    }

    #[test]
    fn merging_again_changes_nothing(news in news()) {
        let record = merge_all(&news);
        for one in &news {
            if let News::Status(status, sequence) = one {
                let (again, merged) = merge_status(Some(record.clone()), status, *sequence);
                prop_assert_eq!(&again, &record);
                prop_assert!(!merged.changed && !merged.became_terminal);
            }
            prop_assert_eq!(&merge(Some(record.clone()), one), &record);
        }
    }

    #[test]
    fn the_terminal_record_is_that_of_the_smallest_sequence(news in news()) {
        let record = merge_all(&news);
        let first = news.iter().filter_map(|news| match news {
            News::Status(status, sequence) if status.is_terminal() => *sequence,
            _ => None,
        }).min();
        prop_assert_eq!(record.terminal_seq, first);
        prop_assert_eq!(record.is_terminal(), first.is_some());
        if record.is_terminal() {
            prop_assert!(record.invocation.is_none());
        }
    }

    #[test]
    fn without_a_place_the_outcome_that_is_known_stays(news in unordered_news()) {
        let mut known: Option<ExecutionRecord> = None;
        for one in &news {
            let before = known.clone().filter(ExecutionRecord::is_terminal);
            let after = merge(known, one);
            if let Some(before) = before {
                let place = match one {
                    News::Status(_, sequence) => before.terminal_seq.and(*sequence),
                    News::Accepted(_) => None,
                };
                if place.is_none() {
                    prop_assert_eq!(&after.outcome, &before.outcome);
                    prop_assert_eq!(after.terminal_seq, before.terminal_seq);
                    prop_assert_eq!((after.attempt, &after.agent_id), (before.attempt, &before.agent_id));
                    prop_assert_eq!((after.started_at, after.status_at), (before.started_at, before.status_at));
                }
                prop_assert!(after.is_terminal() && after.invocation.is_none());
            }
            prop_assert_eq!(&merge(Some(after.clone()), one), &after, "once more");
            known = Some(after);
        }
    }

    #[test]
    fn exactly_one_status_makes_it_terminal(news in prop_oneof![news(), unordered_news()]) {
        let mut known = None;
        let mut became = 0;
        for one in &news {
            known = Some(match one {
                News::Status(status, sequence) => {
                    let (record, merged) = merge_status(known, status, *sequence);
                    became += usize::from(merged.became_terminal);
                    record
                }
                News::Accepted(_) => merge(known, one),
            });
        }
        prop_assert_eq!(became, usize::from(known.is_some_and(|record| record.is_terminal())));
    }

    #[test]
    fn requeuing_commutes_with_statuses(news in news(), attempt in 1_u32..4, sequence in 0_u64..6, now in time(), at in 0_usize..7) {
        let position = QueuePosition { stream: "FLUX_INVOKE".to_owned(), sequence, epoch: now };
        // An unknown execution stays unknown, so the first news come before.
        let requeued_after = |count: usize| {
            let mut known = None;
            for (number, one) in news.iter().enumerate() {
                known = Some(merge(known, one));
                if number + 1 == count {
                    known = known.map(|known| merge_requeued(known, attempt, position.clone(), now));
                }
            }
            known.expect("at least one")
        };
        prop_assert_eq!(requeued_after(news.len()), requeued_after(at.clamp(1, news.len())));
    }
}

fn plain(attempt: u32, version: u32, phase: Phase) -> StatusMessage {
    StatusMessage {
        execution_id: id(),
        function: FunctionName::parse("f").expect("a name"),
        version,
        attempt,
        lane: Lane::Call,
        pool: PoolName::default(),
        phase,
        agent_id: None,
        queued_at: Timestamp::from_millis(0),
        started_at: None,
        at: Timestamp::from_millis(1),
        deadline: None,
        traceparent: None,
        outcome: None,
        invocation: None,
        notes: Vec::new(),
    }
}

#[test]
fn attempts_on_different_versions_show_the_leading_ones() {
    for order in [[(1, 4), (2, 3)], [(2, 3), (1, 4)]] {
        let mut known = None;
        for (attempt, version) in order {
            known = Some(merge_status(known, &plain(attempt, version, Phase::Running), Some(1)).0);
        }
        assert_eq!(known.map(|record| record.version), Some(3));
    }
}

#[test]
fn an_end_without_an_outcome_is_not_an_end() {
    let (record, merged) = merge_status(None, &plain(1, 1, Phase::Ended), Some(1));
    assert_eq!((record.phase, record.is_terminal(), merged.became_terminal), (Phase::Running, false, false));
    assert_eq!(record.terminal_seq, None);
}
