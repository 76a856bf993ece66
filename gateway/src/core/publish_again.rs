//! Publishing the next attempt of an execution: after a failure that is retried, after a loss, or again because the
//! broker did not answer.

use std::{sync::Arc, time::Duration};

use flux_broker::{AckHandle, BrokerError, Message, Stored};
use flux_protocol::{
    ExecutionId, ExecutionRecord, Invocation, Lane, Phase, StatusMessage, Timestamp, execution::QueuePosition, limits,
    subject::QueueName, time::now,
};
use flux_store::StoreError;
use tokio::time::Instant;

use super::{Inner, call::message_of};

/// Accepting resumes within ten seconds of a broker's failure at the worst; a request is not held that long.
const PATIENCE: Duration = Duration::from_secs(5);

impl Inner {
    /// Publishes, and tries again while the broker does not answer: a message with an id is stored once.
    pub(super) async fn publish_patiently(&self, queue: &QueueName, message: Message) -> Result<Stored, BrokerError> {
        let until = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(20);
        loop {
            match self.broker.publish(queue, message.clone()).await {
                Err(error @ (BrokerError::Unavailable { .. } | BrokerError::NotFound { .. }))
                    if Instant::now() + pause < until =>
                {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a publish was not answered; trying again"
                    );
                }
                other => return other,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Whether what an agent says of a failure has consequences: another attempt, or a dead letter. Its invocation is the
    /// agent's word, which nothing here can compare where a producer published it. So what is published for it stays in
    /// the pool that it was said in, among that pool's functions, and within the attempts that the version allows.
    pub(super) async fn may_follow(&self, status: &StatusMessage, retry: bool) -> Result<bool, StoreError> {
        if status.lane != Lane::Invoke {
            return Ok(false);
        }
        let Some(current) = self.functions.current(&status.function).await? else {
            // A letter of a function that is gone invokes nothing.
            return Ok(!retry);
        };
        let other = match status.version {
            0 => None,
            version if version == current.version.version => None,
            version => self.store.function_version(&status.function, version).await?,
        };
        let spec = other.as_ref().map_or_else(|| current.spec(), |version| &version.spec);
        if status.pool != spec.pool && status.pool != current.spec().pool {
            return Ok(false);
        }
        let failures = status.invocation.as_ref().map_or(0, |failed| failed.failures);
        Ok(!retry || failures.saturating_add(1) < spec.retry.max_attempts)
    }

    /// Publishes the attempt after one that failed, once its backoff has passed. The status is acked only when the
    /// next attempt is in the queue, or its record says when it will be: dying in between is seeing the status again.
    pub(super) async fn retry(self: &Arc<Self>, status: &StatusMessage, ack: AckHandle) -> Result<(), BrokerError> {
        let Some(failed) = status.invocation.as_deref() else {
            tracing::error!(
                execution_id = %status.execution_id,
                function = %status.function,
                "a failed attempt that is to be tried again came without its invocation; the reconciler will end it"
            );
            return ack.ack().await;
        };
        let next = next_attempt(status, failed);
        let retry = match self.functions.current(&status.function).await {
            Ok(Some(function)) => function.spec().retry,
            Ok(None) | Err(_) => flux_protocol::function::Retry::default(),
        };
        let delay = retry.delay_before(next.failures + 1, rand::random::<f64>());
        let due = now().plus(delay);
        let queue = QueueName::new(status.lane, status.pool.clone(), status.function.clone());
        metrics::counter!("flux_retries_total").increment(1);
        if delay.is_zero() {
            let stored = self.publish_patiently(&queue, message_of(&next)).await?;
            self.heat_for(&queue).await;
            self.insert_next(status, next, stored.position, due).await;
            return ack.ack().await;
        }
        if self.broker.capabilities().delayed_publish {
            // The queue may have cooled by then; nothing rings for a delayed message.
            let stored = self.broker.publish_at(&queue, message_of(&next), due).await?;
            self.heat_when_due(queue, delay);
            self.insert_next(status, next, stored.position, due).await;
            return ack.ack().await;
        }
        // The record alone keeps it from here on, so that the log waits for no backoff: without it the status comes again.
        self.insert_waiting(status, next.clone(), due).await?;
        self.hold_retry(status.execution_id, next.attempt, queue, delay, due);
        ack.ack().await
    }

    /// Where the broker cannot delay: publishes at its time what the record has. The reconciler does so later, should this
    /// gateway be gone by then or hold too many.
    fn hold_retry(self: &Arc<Self>, id: ExecutionId, attempt: u32, queue: QueueName, delay: Duration, due: Timestamp) {
        let Ok(held) = Arc::clone(&self.retries).try_acquire_owned() else {
            tracing::warn!(execution_id = %id, "too many retries wait here; the reconciler publishes this one, late");
            return;
        };
        let inner = Arc::clone(self);
        self.tasks.spawn("hold-retry", async move {
            let _held = held;
            let killed = inner.tasks.shutdown().kill_token();
            let publish = async {
                tokio::time::sleep(delay).await;
                if let Err(error) = inner.publish_held(id, attempt, &queue, due).await {
                    tracing::warn!(
                        execution_id = %id,
                        attempt,
                        error = &*error as &dyn std::error::Error,
                        "cannot publish the next attempt at its time; the reconciler will"
                    );
                }
            };
            tokio::select! {
                () = publish => {}
                () = killed.cancelled() => {}
            }
        });
    }

    async fn publish_held(
        &self,
        id: ExecutionId,
        attempt: u32,
        queue: &QueueName,
        due: Timestamp,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(record) = self.store.execution(id).await? else { return Ok(()) };
        if record.attempt != attempt || record.phase != Phase::Queued {
            return Ok(()); // Cancelled, or published already.
        }
        if now().since(due) >= limits::LOST_AFTER / 2 {
            return Err("it is late, and the reconciler may be publishing it".into());
        }
        let Some(next) = record.invocation.clone() else { return Err("its record lacks the invocation".into()) };
        let stored = self.publish_patiently(queue, message_of(&next)).await?;
        self.heat_for(queue).await;
        if let Err(error) = self.store.requeued(id, attempt, stored.position, now()).await {
            tracing::warn!(
                execution_id = %id,
                error = &error as &dyn std::error::Error,
                "the next attempt is queued, and its record does not say so yet"
            );
        }
        Ok(())
    }

    /// Records an attempt that is in no queue before it is due.
    async fn insert_waiting(
        &self,
        status: &StatusMessage,
        next: Invocation,
        due: Timestamp,
    ) -> Result<(), BrokerError> {
        let waiting = self.store.insert_queued(next_record(status, next, None, due)).await;
        waiting.map_err(|error| BrokerError::unavailable("record that a retry waits", error))
    }

    async fn insert_next(&self, status: &StatusMessage, next: Invocation, position: QueuePosition, due: Timestamp) {
        let record = next_record(status, next, Some(position), due);
        let id = record.execution_id;
        if let Err(error) = self.store.insert_queued(record).await {
            // The attempt is in the queue and its own status will tell.
            tracing::warn!(
                execution_id = %id,
                error = &error as &dyn std::error::Error,
                "the next attempt is queued, and its record does not say so yet"
            );
        }
    }

    async fn heat_for(&self, queue: &QueueName) {
        if let Err(error) = self.hot.heat(queue).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot make a queue hot; the reconciler will");
        }
        self.hot.tell_if_needed(queue, 0, self.functions.known(&queue.function));
    }

    fn heat_when_due(self: &Arc<Self>, queue: QueueName, delay: Duration) {
        let inner = Arc::clone(self);
        self.tasks.spawn("heat-when-due", async move {
            let killed = inner.tasks.shutdown().kill_token();
            tokio::select! {
                () = tokio::time::sleep(delay) => inner.heat_for(&queue).await,
                () = killed.cancelled() => {}
            }
        });
    }

    /// Publishes an execution again that the queue lost: the same execution, the next attempt.
    pub(super) async fn republish(&self, record: &ExecutionRecord) -> Result<(), BrokerError> {
        let Some(kept) = &record.invocation else {
            return Err(BrokerError::NotFound { what: format!("the invocation of {}", record.execution_id) });
        };
        let queue = QueueName::new(record.lane, record.pool.clone(), record.function.clone());
        let next = Invocation {
            execution_id: Some(record.execution_id),
            attempt: record.attempt.max(kept.attempt) + 1,
            // Where it was not known when it was accepted, an attempt may have told it.
            version: kept.version.or_else(|| (record.version > 0).then_some(record.version)),
            ..kept.clone()
        };
        self.hot.heat(&queue).await?;
        // What the queue lost may have been all that it had: agents must find the version that the message names.
        if let Some(version) = next.version
            && let Err(refusal) = self.say_version(&record.function, version).await
        {
            return Err(BrokerError::unavailable("put a version where agents find it", refusal));
        }
        let stored = self.publish_patiently(&queue, message_of(&next)).await?;
        self.hot.tell_if_needed(&queue, 0, self.functions.known(&queue.function));
        metrics::counter!("flux_republished_total", "lane" => "invoke").increment(1);
        tracing::warn!(
            execution_id = %record.execution_id,
            function = %record.function,
            attempt = next.attempt,
            "the queue lost an invocation; published again"
        );
        if let Err(error) = self.store.requeued(record.execution_id, next.attempt, stored.position, now()).await {
            tracing::warn!(
                execution_id = %record.execution_id,
                error = &error as &dyn std::error::Error,
                "an invocation was published again, and its record does not say so yet"
            );
        }
        Ok(())
    }
}

/// What comes after an attempt in which the function itself failed.
fn next_attempt(status: &StatusMessage, failed: &Invocation) -> Invocation {
    Invocation {
        execution_id: Some(status.execution_id),
        attempt: status.attempt.saturating_add(1),
        failures: failed.failures.saturating_add(1),
        traceparent: failed.traceparent.clone().or_else(|| status.traceparent.clone()),
        ..failed.clone()
    }
}

fn next_record(
    status: &StatusMessage,
    next: Invocation,
    position: Option<QueuePosition>,
    due: Timestamp,
) -> ExecutionRecord {
    ExecutionRecord {
        execution_id: status.execution_id,
        function: status.function.clone(),
        version: status.version,
        attempt: next.attempt,
        lane: status.lane,
        pool: status.pool.clone(),
        phase: Phase::Queued,
        agent_id: None,
        queued_at: status.queued_at,
        started_at: None,
        status_at: due.max(now()),
        deadline: status.deadline,
        traceparent: status.traceparent.clone(),
        outcome: None,
        terminal_seq: None,
        position,
        redrive_of: next.redrive_of,
        invocation: Some(next),
        notes: Vec::new(),
    }
}

/// The record of an invocation that was just published.
pub(super) fn queued_record(
    id: ExecutionId,
    queue: &QueueName,
    version: u32,
    invocation: Invocation,
    position: Option<QueuePosition>,
    queued_at: Timestamp,
) -> ExecutionRecord {
    ExecutionRecord {
        execution_id: id,
        function: queue.function.clone(),
        version,
        attempt: invocation.attempt,
        lane: queue.lane,
        pool: queue.pool.clone(),
        phase: Phase::Queued,
        agent_id: None,
        queued_at,
        started_at: None,
        status_at: queued_at,
        deadline: invocation.deadline,
        traceparent: invocation.traceparent.clone(),
        outcome: None,
        terminal_seq: None,
        position,
        redrive_of: invocation.redrive_of,
        invocation: Some(invocation),
        notes: Vec::new(),
    }
}
