//! What every engine promises, one function for each clause.
//!
//! A clause gets a [`Subject`] of its own and panics with what was broken. [`for_each_clause`](crate::for_each_clause)
//! names them all, so that an engine's tests are one macro; see `tests/it/main.rs`. Clauses wait for what they expect
//! and never sleep; those about the ack wait take as long as that.

use std::{future::Future, sync::Arc, time::Duration};

use flux_protocol::{
    AgentId, ErrorKind, ExecutionError, ExecutionId, FunctionName, Outcome, OutcomeStatus, Phase, PoolName,
    StatusMessage, invocation::Lane, subject::QueueName, time::now,
};
use tokio::time::timeout;

use crate::{Broker, Delivery, Message, Pull};

pub mod cold;
pub mod dead_letters;
pub mod delivery;
pub mod pulls;
pub mod signals;
pub mod status_log;
pub mod storage;
pub mod tables;

/// What a clause is tried on.
pub struct Subject {
    pub broker: Arc<dyn Broker>,
    /// A second connection to the same queues, or the same again where there is only one.
    pub other: Arc<dyn Broker>,
    pub ack_wait: Duration,
    /// Size of a message, of which fewer than `fill_tries` fill a queue of the call lane.
    pub fill_size: usize,
    pub fill_tries: usize,
}

/// Calls a macro with the path of every clause.
#[macro_export]
macro_rules! for_each_clause {
    ($callback:ident) => {
        $callback! {
            delivery: a_message_is_delivered_as_it_was_stored,
            delivery: deliveries_are_in_order,
            delivery: an_unacked_delivery_goes_to_another,
            delivery: progress_keeps_a_delivery,
            delivery: an_acked_delivery_is_gone,
            delivery: a_delivery_given_back_comes_again,
            delivery: lanes_and_pools_are_apart,
            pulls: a_pull_ends_when_it_is_filled,
            pulls: a_pull_ends_when_its_time_passed,
            pulls: a_batch_is_never_exceeded,
            pulls: a_pull_waits_for_what_comes,
            pulls: pulls_of_one_queue_get_no_more_than_they_asked_for,
            pulls: a_dropped_pull_keeps_nothing,
            storage: the_same_id_is_stored_once,
            storage: a_full_queue_says_so_and_loses_nothing,
            storage: too_large_is_refused,
            storage: a_delayed_message_comes_when_it_is_due,
            storage: a_delayed_message_can_be_taken_back,
            storage: what_was_not_delivered_can_be_taken_back,
            storage: what_was_delivered_is_said_to_be,
            storage: depths_count_what_is_stored,
            storage: progress_tells_what_nobody_was_given,
            storage: a_stored_message_rings_one_gateway,
            storage: one_can_be_taken_where_nobody_pulls,
            cold: a_cold_queue_takes_messages_and_cannot_be_pulled,
            cold: heating_twice_is_heating_once,
            cold: a_queue_with_work_stays_hot,
            cold: an_idle_queue_is_cooled,
            cold: what_comes_while_cooling_is_not_stranded,
            signals: a_signal_is_heard_once_listen_returned,
            signals: signals_are_in_order,
            signals: a_group_shares_signals,
            signals: asking_nobody_is_none,
            signals: the_first_answer_is_the_answer,
            signals: all_answers_are_gathered,
            status_log: statuses_come_in_batches,
            status_log: statuses_published_at_once_all_come,
            status_log: what_is_not_acked_of_many_comes_again,
            status_log: watchers_hear_of_large_statuses,
            status_log: an_unacked_status_comes_again,
            status_log: the_same_status_is_stored_once,
            status_log: watchers_hear_statuses,
            tables: a_watch_tells_what_is_there_then_what_changes,
            tables: a_watch_with_history_tells_it_in_order,
            tables: an_update_needs_the_last_revision,
            tables: what_is_deleted_is_gone,
            tables: blobs_come_back_as_they_were,
            tables: a_blob_is_replaced_and_deleted,
            dead_letters: an_execution_is_buried_once,
            dead_letters: letters_are_paged_removed_and_purged,
        }
    };
}

/// Longer than anything here takes in order.
const PATIENCE: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// A queue that no other clause uses.
fn queue(lane: Lane) -> QueueName {
    let function = format!("f-{:016x}", rand::random::<u64>());
    QueueName::new(lane, PoolName::default(), FunctionName::parse(&function).expect("a valid name"))
}

async fn hot_queue(on: &Subject, lane: Lane) -> QueueName {
    let queue = queue(lane);
    on.broker.heat(&queue).await.expect("heat");
    queue
}

fn message(body: impl Into<bytes::Bytes>) -> Message {
    Message { headers: Vec::new(), body: body.into(), id: None }
}

async fn pull(broker: &Arc<dyn Broker>, queue: &QueueName, batch: usize, expires: Duration) -> Pull {
    broker.pull(queue, batch, expires).await.expect("pull")
}

/// The next delivery; the pull must not end before.
async fn next(pull: &mut Pull) -> Delivery {
    within("a delivery", pull.next()).await.expect("the pull ended").expect("the pull failed")
}

/// The pull must end, in order, without a further delivery.
async fn ended(pull: &mut Pull) {
    match within("the pull's end", pull.next()).await {
        None => {}
        Some(Ok(delivery)) => panic!("a delivery instead of the end: {delivery:?}"),
        Some(Err(error)) => panic!("the pull failed: {error}"),
    }
}

/// One delivery of a queue, by a pull of its own.
async fn take(broker: &Arc<dyn Broker>, queue: &QueueName) -> Delivery {
    next(&mut pull(broker, queue, 1, PATIENCE).await).await
}

/// A status of some execution of that function.
pub fn status(function: &FunctionName) -> StatusMessage {
    let error = ExecutionError::new(ErrorKind::Exit, "it exited with 3");
    StatusMessage {
        execution_id: ExecutionId::new(),
        function: function.clone(),
        version: 1,
        attempt: 1,
        lane: Lane::Invoke,
        pool: PoolName::default(),
        phase: Phase::Ended,
        agent_id: Some(AgentId::parse("agent-1").expect("a valid id")),
        queued_at: now(),
        started_at: None,
        at: now(),
        deadline: None,
        traceparent: None,
        outcome: Some(Outcome::without_process(OutcomeStatus::Failed, error)),
        invocation: None,
        notes: Vec::new(),
    }
}

fn function() -> FunctionName {
    queue(Lane::Invoke).function
}
