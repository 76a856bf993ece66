//! From the status log into the store.
//!
//! ```text
//!   take a batch ─► one store transaction ─► for each: next attempt │ dead letter │ nothing ─► ack
//! ```
//!
//! A status is acked when the store has it *and* what follows from it is done; dying in between is seeing it again, and
//! every step may be done twice. While the store is away nothing is acked: statuses wait in the log, which is on disk.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flux_broker::{BrokerError, StatusBatch, StatusDelivery};
use flux_protocol::{
    ExecutionRecord, FunctionName, Lane, Outcome, OutcomeStatus, Payload, StatusMessage, limits, subject, time::now,
};
use flux_store::{Recorded, StatusUpdate, StoreError};
use parking_lot::Mutex;

use super::{Inner, verdict::may_say};

/// Functions that get a label of their own in the metrics; further ones share `other`.
const LABELLED: usize = 500;

/// Between two batches that were not full. A status that comes alone is recorded at once.
const BREATH: Duration = Duration::from_millis(10);

/// How the recorder is doing; the reconciler judges nothing lost while statuses wait to be recorded.
#[derive(Default)]
pub(super) struct Health {
    /// Microseconds since the epoch of when the batch in hand was taken; 0 with none.
    since: AtomicU64,
    labelled: Mutex<HashSet<FunctionName>>,
}

impl Health {
    pub(super) fn is_behind(&self) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        let at = u64::try_from(now().as_micros()).unwrap_or(0);
        since != 0 && at.saturating_sub(since) > 1_000_000
    }

    fn took(&self) {
        self.since.store(u64::try_from(now().as_micros()).unwrap_or(1), Ordering::Relaxed);
    }

    fn done(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// The function as a label, which stays among a bounded number.
    fn label(&self, function: &FunctionName) -> String {
        let mut labelled = self.labelled.lock();
        if labelled.contains(function) {
            return function.to_string();
        }
        if labelled.len() < LABELLED {
            labelled.insert(function.clone());
            return function.to_string();
        }
        "other".to_owned()
    }
}

/// Runs for as long as the gateway does.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut backoff = Duration::from_millis(50);
    loop {
        match inner.broker.statuses(limits::STATUS_BATCH).await {
            Ok(mut statuses) => {
                backoff = Duration::from_millis(50);
                take_all(&inner, &mut *statuses).await;
                if inner.tasks.shutdown().is_killed() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot take statuses; trying again");
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(Duration::from_secs(2));
    }
}

async fn take_all(inner: &Arc<Inner>, statuses: &mut dyn StatusBatch) {
    while let Some(batch) = statuses.next().await {
        inner.recorder_health.took();
        let taken = batch.len();
        let batch = genuine(batch).await;
        if !batch.is_empty() {
            record(inner, batch).await;
        }
        inner.recorder_health.done();
        // What comes meanwhile shares one transaction, and one write of acks: with a status at a time each of them
        // would cost more than the execution that it tells of.
        if taken < limits::STATUS_BATCH {
            tokio::time::sleep(BREATH).await;
        }
    }
}

/// Statuses whose senders may say them.
async fn genuine(batch: Vec<StatusDelivery>) -> Vec<StatusDelivery> {
    let mut kept = Vec::with_capacity(batch.len());
    for delivery in batch {
        if may_say(&delivery.sender, &delivery.status) {
            kept.push(delivery);
            continue;
        }
        let _ = drop_status(delivery, "status_sender", "it speaks for another agent").await;
    }
    kept
}

async fn drop_status(delivery: StatusDelivery, kind: &'static str, why: &str) -> Result<(), BrokerError> {
    metrics::counter!("flux_signals_dropped_total", "kind" => kind).increment(1);
    tracing::warn!(
        sender = %delivery.sender,
        execution_id = %delivery.status.execution_id,
        function = %delivery.status.function,
        pool = %delivery.status.pool,
        why,
        "dropped what a status says"
    );
    delivery.ack.ack().await
}

async fn record(inner: &Arc<Inner>, batch: Vec<StatusDelivery>) {
    match store_patiently(inner, &batch).await {
        Ok(recorded) => return follow_up_all(inner, batch, &recorded).await,
        Err(StoreError::Closed) => return,
        Err(error) if batch.len() > 1 => tracing::debug!(
            statuses = batch.len(),
            error = &error as &dyn std::error::Error,
            "the store refuses a batch of statuses; recording them one at a time"
        ),
        Err(error) => return give_up_all(batch, &error).await,
    }
    // One that the store will never take must not keep the others from it.
    for delivery in batch {
        let alone = vec![delivery];
        match store_patiently(inner, &alone).await {
            Ok(recorded) => follow_up_all(inner, alone, &recorded).await,
            Err(StoreError::Closed) => return,
            Err(error) => give_up_all(alone, &error).await,
        }
    }
}

async fn follow_up_all(inner: &Arc<Inner>, batch: Vec<StatusDelivery>, recorded: &[Recorded]) {
    metrics::counter!("flux_statuses_recorded_total").increment(batch.len() as u64);
    for (delivery, recorded) in batch.into_iter().zip(recorded) {
        follow_up(inner, delivery, recorded).await;
    }
}

/// What the store refused for a reason that waiting does not mend, by itself: it would come again for ever, and all
/// that is behind it would wait.
async fn give_up_all(batch: Vec<StatusDelivery>, error: &StoreError) {
    for delivery in batch {
        metrics::counter!("flux_statuses_unrecorded_total").increment(1);
        tracing::error!(
            execution_id = %delivery.status.execution_id,
            function = %delivery.status.function,
            attempt = delivery.status.attempt,
            phase = ?delivery.status.phase,
            order = ?delivery.order,
            error = error as &dyn std::error::Error,
            "a status can never be recorded and is thrown away; its execution's row in the store needs a look"
        );
        let _ = delivery.ack.ack().await;
    }
}

/// Records, however long the store is away.
///
/// # Errors
/// The store was closed, or refuses these statuses whenever they come.
async fn store_patiently(inner: &Arc<Inner>, batch: &[StatusDelivery]) -> Result<Vec<Recorded>, StoreError> {
    let mut backoff = Duration::from_millis(20);
    loop {
        let updates = batch
            .iter()
            .map(|delivery| StatusUpdate { status: delivery.status.clone(), sequence: delivery.order })
            .collect();
        match inner.store.record(updates).await {
            Ok(recorded) => return Ok(recorded),
            Err(StoreError::Closed) => return Err(StoreError::Closed),
            Err(error) => {
                metrics::counter!("flux_store_errors_total", "while" => "record").increment(1);
                if !error.is_retryable() {
                    return Err(error);
                }
                tracing::warn!(
                    statuses = batch.len(),
                    error = &error as &dyn std::error::Error,
                    "cannot record statuses; they wait in the log"
                );
            }
        }
        for delivery in batch {
            // Otherwise another gateway takes them too, which costs and changes nothing.
            let _ = delivery.ack.progress().await;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(limits::IN_PROGRESS_EVERY);
    }
}

async fn follow_up(inner: &Arc<Inner>, delivery: StatusDelivery, recorded: &Recorded) {
    if recorded.contradicted {
        let _ = drop_status(delivery, "status_record", "its execution is of another function, pool or lane").await;
        return;
    }
    let status = &delivery.status;
    let (id, function, attempt) = (status.execution_id, status.function.clone(), status.attempt);
    if recorded.became_terminal {
        count_end(inner, status);
        if !is_buried(status) && inner.payloads.take(status.execution_id) {
            inner.discard_blob(subject::payload_blob(status.execution_id));
        }
    }
    let done = what_follows(inner, delivery, recorded).await;
    if let Err(error) = done {
        tracing::warn!(
            execution_id = %id,
            function = %function,
            attempt,
            error = &error as &dyn std::error::Error,
            "what follows from a status could not be done; it comes again"
        );
    }
}

async fn what_follows(inner: &Arc<Inner>, delivery: StatusDelivery, recorded: &Recorded) -> Result<(), BrokerError> {
    let status = &delivery.status;
    if !recorded.retry_wanted && !is_buried(status) {
        return delivery.ack.ack().await;
    }
    let follows = inner.may_follow(status, recorded.retry_wanted).await;
    if !follows.map_err(|error| BrokerError::unavailable("look at a function", error))? {
        return drop_status(delivery, "status_function", "nothing follows from it by its function's definition").await;
    }
    if recorded.retry_wanted {
        return inner.retry(status, delivery.ack).await;
    }
    bury(inner, status, delivery.order, recorded.became_terminal).await?;
    delivery.ack.ack().await
}

/// What becomes a dead letter: an asynchronous execution that failed for good.
fn is_buried(status: &StatusMessage) -> bool {
    status.lane == Lane::Invoke
        && status.is_terminal()
        && status.outcome.as_ref().is_some_and(|outcome| outcome.status == OutcomeStatus::Failed)
}

async fn bury(
    inner: &Arc<Inner>,
    status: &StatusMessage,
    sequence: Option<u64>,
    became_terminal: bool,
) -> Result<(), BrokerError> {
    let Some(invocation) = status.invocation.as_deref() else {
        if became_terminal {
            tracing::warn!(
                execution_id = %status.execution_id,
                function = %status.function,
                "an execution failed for good and its status lacks the invocation: there is no dead letter of it"
            );
        }
        return Ok(());
    };
    if !became_terminal {
        // Seen before: either this gateway died before it buried it, or another outcome came first.
        let record = inner.store.execution(status.execution_id).await;
        let record = record.map_err(|error| BrokerError::unavailable("look at an execution", error))?;
        if !record.is_some_and(|record| is_end_of(&record, status, sequence)) {
            return Ok(());
        }
    }
    let mut invocation = invocation.clone();
    invocation.execution_id = Some(status.execution_id);
    if let Payload::Blob(_) = &invocation.payload {
        // The letter keeps it; it goes when the letter does.
        inner.payloads.take(status.execution_id);
    }
    inner.broker.bury(status, &invocation).await?;
    metrics::counter!("flux_dead_letters_total").increment(1);
    Ok(())
}

/// Whether a status is the one that ended the execution. Where statuses have no place in an order, by what it
/// says: a letter of the same again is the same letter.
fn is_end_of(record: &ExecutionRecord, status: &StatusMessage, sequence: Option<u64>) -> bool {
    if sequence.is_some() {
        return record.terminal_seq == sequence;
    }
    let outcome = |outcome: Option<&Outcome>| outcome.map(|outcome| (outcome.status, outcome.error.clone()));
    record.is_terminal()
        && record.attempt == status.attempt
        && outcome(record.outcome.as_ref()) == outcome(status.outcome.as_ref())
}

fn count_end(inner: &Arc<Inner>, status: &StatusMessage) {
    let Some(outcome) = &status.outcome else { return };
    let labels = [
        ("function", inner.recorder_health.label(&status.function)),
        ("lane", status.lane.as_str().to_owned()),
        ("outcome", outcome.status.as_str().to_owned()),
    ];
    metrics::counter!("flux_executions_total", &labels).increment(1);
    metrics::histogram!("flux_execution_seconds", "lane" => status.lane.as_str())
        .record(outcome.duration_ms.as_f64() / 1_000.0);
    if let Some(started_at) = status.started_at {
        metrics::histogram!("flux_queued_seconds", "lane" => status.lane.as_str())
            .record(started_at.since(status.queued_at).as_secs_f64());
    }
    tracing::debug!(
        execution_id = %status.execution_id,
        function = %status.function,
        attempt = status.attempt,
        outcome = outcome.status.as_str(),
        "execution ended"
    );
}
