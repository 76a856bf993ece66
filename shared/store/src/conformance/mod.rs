//! What every engine must do: one function per clause of [`Store`]'s documentation.
//!
//! An engine's tests name all of them at once, each as a test of its own on a store that is empty:
//!
//! ```ignore
//! mod sqlite_in_memory {
//!     flux_store::conformance_tests!(open_store().await); // (SharedStore, whatever must live as long)
//! }
//! ```
//!
//! Clauses panic where an engine does not hold them. They wait for nothing and use no clock.

use std::time::Duration;

use bytes::Bytes;
use flux_protocol::{
    AgentId, Chunk, Digest, ErrorKind, ExecutionError, ExecutionId, ExecutionRecord, FunctionName, FunctionSpec,
    Invocation, Lane, Outcome, OutcomeStatus, OutputLog, Phase, PoolName, StatusMessage, Stream, Timestamp,
    execution::QueuePosition,
};

use crate::{StatusUpdate, Store};

pub mod access;
pub mod copying;
pub mod expiry;
pub mod functions;
pub mod idempotency;
pub mod leases;
pub mod lists;
pub mod merging;
pub mod secrets;

/// Names every clause to a macro: `$with! { @clauses ($given) functions: …; merging: …; … }`.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_clauses {
    ($with:path, $given:tt) => {
        $with! { @clauses $given
            functions:
                a_new_function_has_version_one_without_code,
                the_same_configuration_changes_nothing,
                another_configuration_is_a_new_version_with_the_same_code,
                the_first_code_fills_the_version_that_has_none,
                another_archive_is_a_new_version,
                deploying_needs_a_function_or_a_configuration,
                rolling_back_makes_an_old_version_current,
                versions_beyond_the_history_are_gone,
                a_deleted_function_is_gone_and_goes_on_counting,
                functions_are_listed_by_prefix_in_pages,
                digests_are_those_of_kept_versions;
            merging:
                statuses_converge_in_every_order,
                a_duplicate_changes_nothing,
                a_late_attempt_cannot_overwrite_an_outcome,
                the_first_outcome_of_the_log_wins,
                an_outcome_stays_where_the_log_has_no_order,
                of_outcomes_recorded_at_once_one_stays,
                an_accepted_record_may_come_after_its_outcome,
                an_accepted_record_of_another_queue_replaces_neither_an_outcome_nor_a_place,
                one_update_makes_an_execution_terminal,
                a_failure_that_is_retried_asks_for_its_next_attempt,
                a_message_published_again_waits_anew,
                an_unknown_execution_is_not_made_by_requeuing,
                the_invocation_is_kept_until_the_outcome,
                output_comes_back_as_it_was,
                at_once_recorded_updates_are_all_kept,
                an_empty_batch_is_nothing;
            lists:
                lists_are_newest_first_and_filtered,
                lists_leave_output_out,
                a_page_has_at_least_one_and_at_most_the_limit,
                paging_visits_each_once_while_writes_go_on,
                open_executions_are_the_stale_ones_oldest_first;
            idempotency:
                the_first_claim_holds_the_key,
                of_sixteen_at_once_one_claims,
                a_key_runs_out,
                only_its_execution_releases_a_key;
            leases:
                one_holder_at_a_time,
                renewing_keeps_the_token_and_nothing_else_does,
                only_the_holder_releases;
            access:
                a_key_is_kept_until_it_is_deleted,
                a_rotation_keeps_the_key_before_and_none_older,
                the_latest_use_of_a_key_stays,
                what_is_shared_is_proposed_once,
                the_audit_log_is_read_backwards;
            secrets:
                a_secret_counts_its_versions,
                a_value_that_changed_is_not_resealed,
                of_sixteen_agents_one_is_given_an_attempts_secrets,
                a_claim_is_repeated_by_its_agent_alone;
            expiry:
                old_outcomes_go_and_nothing_else,
                no_more_than_the_limit_goes,
                a_closed_store_says_so;
            copying:
                everything_comes_back_as_it_was,
                what_breaks_off_is_said_and_can_be_done_again,
                nobody_waits_for_a_reader_that_went;
        }
    };
}

/// Makes a test of every clause. The expression opens an empty store; it may await. It gives the `SharedStore`
/// and what must live as long, such as its directory.
#[macro_export]
macro_rules! conformance_tests {
    (@clauses ($open:expr) $($subject:ident: $($clause:ident),*;)*) => {
        $(mod $subject {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $clause() {
                    let (store, _guard): ($crate::SharedStore, _) = $open;
                    store.ping().await.expect("ping");
                    $crate::conformance::$subject::$clause(&*store).await;
                }
            )*
        })*
    };
    ($open:expr) => {
        $crate::conformance_clauses! { $crate::conformance_tests, ($open) }
    };
}

/// Runs every clause within one test, for engines whose server takes long to start. The closure opens an empty store for the
/// clause whose name it is given. Says which clause it is that an engine does not hold.
#[macro_export]
macro_rules! conformance_in_one {
    (@clauses ($open:expr) $($subject:ident: $($clause:ident),*;)*) => {
        $($(
            {
                let name = concat!(stringify!($subject), "::", stringify!($clause));
                // Each on the heap: together they are more than a stack takes.
                let store: $crate::SharedStore = Box::pin($open(name)).await;
                $crate::conformance::hold(name, Box::pin($crate::conformance::$subject::$clause(&*store))).await;
                store.close().await;
            }
        )*)*
    };
    ($open:expr) => {
        $crate::conformance_clauses! { $crate::conformance_in_one, ($open) }
    };
}

/// Runs a clause; a panic of it names it.
#[doc(hidden)]
pub async fn hold(name: &str, clause: impl Future<Output = ()>) {
    struct Named<'n>(&'n str);
    impl Drop for Named<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                #[allow(clippy::print_stderr)] // a failing test's own output
                {
                    eprintln!("the clause {} does not hold", self.0);
                }
            }
        }
    }
    let named = Named(name);
    clause.await;
    drop(named);
}

/// Second `n` of the clauses' time.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + second * 1000)
}

pub(crate) fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).expect("a name")
}

pub(crate) fn spec(function: &str, memory: u32) -> FunctionSpec {
    let yaml = format!("name: {function}\nhandler: run\nresources: {{ memory: {memory} }}\n");
    flux_protocol::function::parse_yaml(&yaml).expect("a configuration")
}

pub(crate) fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// The `n`-th id of second `second`; later seconds sort behind.
pub(crate) fn id(second: i64, n: u64) -> ExecutionId {
    ExecutionId::derived("conformance", n, at(second))
}

pub(crate) fn position(sequence: u64) -> QueuePosition {
    QueuePosition { stream: "FLUX_INVOKE".to_owned(), sequence, epoch: at(0) }
}

pub(crate) fn queued(id: ExecutionId, function: &str, second: i64) -> ExecutionRecord {
    ExecutionRecord {
        execution_id: id,
        function: name(function),
        version: 1,
        attempt: 1,
        lane: Lane::Invoke,
        pool: PoolName::default(),
        phase: Phase::Queued,
        agent_id: None,
        queued_at: at(second),
        started_at: None,
        status_at: at(second),
        deadline: Some(at(second + 3600)),
        traceparent: None,
        outcome: None,
        terminal_seq: None,
        position: Some(position(7)),
        invocation: Some(Invocation { execution_id: Some(id), attempt: 1, ..Invocation::default() }),
        redrive_of: None,
        notes: Vec::new(),
    }
}

/// What an agent says of an attempt.
pub(crate) fn status(id: ExecutionId, function: &str, attempt: u32, phase: Phase, second: i64) -> StatusMessage {
    StatusMessage {
        execution_id: id,
        function: name(function),
        version: 1,
        attempt,
        lane: Lane::Invoke,
        pool: PoolName::default(),
        phase,
        agent_id: Some(AgentId::parse(&format!("agent-{attempt}")).expect("an id")),
        queued_at: at(0),
        started_at: Some(at(second - 1)),
        at: at(second),
        deadline: None,
        traceparent: None,
        outcome: None,
        invocation: None,
        notes: Vec::new(),
    }
}

pub(crate) fn ended(
    id: ExecutionId,
    function: &str,
    attempt: u32,
    result: OutcomeStatus,
    second: i64,
) -> StatusMessage {
    let output = vec![Chunk { seq: 1, stream: Stream::Stdout, data: Bytes::from(format!("attempt {attempt}\n")) }];
    let error =
        (result != OutcomeStatus::Success).then(|| ExecutionError::new(ErrorKind::Exit, "it exited with code 1"));
    StatusMessage {
        outcome: Some(Outcome {
            status: result,
            error,
            output: OutputLog { chunks: output, dropped_bytes: 0 },
            output_ref: None,
            duration_ms: Duration::from_micros(1234).into(),
            start: None,
            usage: flux_protocol::Usage::default(),
            will_retry: false,
        }),
        ..status(id, function, attempt, Phase::Ended, second)
    }
}

/// A failed attempt that leaves another.
pub(crate) fn failed_for_now(id: ExecutionId, function: &str, attempt: u32, second: i64) -> StatusMessage {
    let mut status = ended(id, function, attempt, OutcomeStatus::Failed, second);
    if let Some(outcome) = &mut status.outcome {
        outcome.will_retry = true;
    }
    let next = Invocation { execution_id: Some(id), attempt, failures: attempt, ..Invocation::default() };
    StatusMessage { invocation: Some(Box::new(next)), ..status }
}

/// An update whose log has no order.
pub(crate) fn unplaced(status: StatusMessage) -> StatusUpdate {
    StatusUpdate { status, sequence: None }
}

pub(crate) fn update(status: StatusMessage, sequence: u64) -> StatusUpdate {
    StatusUpdate { status, sequence: Some(sequence) }
}

pub(crate) async fn load(store: &dyn Store, id: ExecutionId) -> ExecutionRecord {
    store.execution(id).await.expect("read").expect("the execution is known")
}

/// All at once, on whatever threads the engine has.
pub(crate) async fn at_once<F: Future>(calls: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut calls: Vec<_> = calls.into_iter().map(|call| (Box::pin(call), None)).collect();
    std::future::poll_fn(|context| {
        for (call, done) in calls.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(output) = call.as_mut().poll(context) {
                *done = Some(output);
            }
        }
        if calls.iter().all(|(_, done)| done.is_some()) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    calls.into_iter().filter_map(|(_, done)| done).collect()
}
