//! An asynchronous invocation: accepted once the queue *and* the store hold it.
//!
//! Publish, then commit the record with the message's place in its stream, then answer. Where the store refuses, the message
//! is taken back, and the answer is 503: nothing runs that nobody accepted.

use std::{sync::Arc, time::Duration};

use flux_broker::{BrokerError, Table, TakenBack};
use flux_protocol::{
    ErrorKind, ExecutionId, ExecutionRecord, FunctionName, Invocation, Lane, Payload, execution::QueuePosition,
    subject::QueueName, time::now,
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    Accepted, Gateway, Inner, InvokeRequest,
    call::{NotCalled, may_be_stored, message_of},
    function_cache::Runnable,
    idempotency::{CLAIM_LOOKED_AT_EVERY, Standing},
    payloads::NOTE,
    publish_again::queued_record,
};
use crate::refusal::Refusal;

/// What agents are told of an execution that did not become one.
const NOT_ACCEPTED: &str = "it was not accepted: the store or the queue refused";
/// Writing that down is tried so often, each time for as long as a call to the queue takes.
const GIVEN_UP_TRIES: u32 = 10;
const GIVEN_UP_AGAIN_AFTER: Duration = Duration::from_millis(500);

impl Gateway {
    /// Accepts an invocation that runs on its own.
    ///
    /// # Errors
    /// It was not accepted, and does not run.
    pub async fn invoke(&self, name: &FunctionName, request: InvokeRequest) -> Result<Accepted, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        request.check()?;
        let function = inner.invocable(name, request.version).await?;
        function.require_code()?;
        let accepted = inner.accept(&function, request, None).await;
        let outcome = accepted.as_ref().map_or_else(|refusal| refusal.code.as_str(), |_| "accepted");
        metrics::counter!("flux_invokes_total", "outcome" => outcome).increment(1);
        accepted
    }
}

/// Whether it came to an agent though its request was refused, and was cancelled there: the same request may be made again.
fn was_not_accepted(record: &ExecutionRecord) -> bool {
    let error = record.outcome.as_ref().and_then(|outcome| outcome.error.as_ref());
    error.is_some_and(|error| error.kind == ErrorKind::Cancelled && error.message == NOT_ACCEPTED)
}

impl Inner {
    pub(super) async fn accept(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        request: InvokeRequest,
        redrive_of: Option<ExecutionId>,
    ) -> Result<Accepted, Refusal> {
        let mut place = self.accepts.enter().await?;
        let id = ExecutionId::new();
        let Some(key) = request.idempotency_key.clone() else {
            self.accept_to_the_end(function, id, request, redrive_of, None, place).await?;
            return Ok(Accepted { execution_id: id, replayed: false });
        };
        let name = &function.spec().name;
        let body = request.digest();
        loop {
            match self.claim(name, &key, body, id).await? {
                Standing::Ours => break,
                Standing::Theirs { execution_id, at } => {
                    let record = self.store.execution(execution_id).await?;
                    let was_refused = record.as_ref().is_some_and(was_not_accepted);
                    if record.is_some() && !was_refused {
                        return Ok(Accepted { execution_id, replayed: true });
                    }
                    if was_refused || self.is_orphaned(at) {
                        self.store.release_idempotency(name, &key, execution_id).await?;
                    } else {
                        // Claimed, and not recorded yet. Saying "accepted" now would be a promise that nobody keeps if the
                        // gateway that claimed it is dead.
                        drop(place);
                        tokio::time::sleep(CLAIM_LOOKED_AT_EVERY).await;
                        place = self.accepts.enter().await?;
                    }
                }
            }
        }
        self.accept_to_the_end(function, id, request, redrive_of, Some(key), place).await?;
        Ok(Accepted { execution_id: id, replayed: false })
    }

    /// Publishes and records in a task of its own: a caller that goes in between would leave a message without a record,
    /// or a key that stands for nothing.
    async fn accept_to_the_end(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        id: ExecutionId,
        request: InvokeRequest,
        redrive_of: Option<ExecutionId>,
        key: Option<String>,
        place: OwnedSemaphorePermit,
    ) -> Result<(), Refusal> {
        let (told, accepted) = tokio::sync::oneshot::channel();
        let (inner, function) = (Arc::clone(self), Arc::clone(function));
        self.tasks.spawn("accept", async move {
            let accepted = match inner.publish_accepted(&function, id, request, redrive_of).await {
                Ok(()) => Ok(()),
                Err(NotCalled { refusal, may_run }) => {
                    // What may run keeps its key: the same request again must not run beside it.
                    if let Some(key) = key.filter(|_| !may_run) {
                        inner.release(&function.spec().name, &key, id).await;
                    }
                    Err(refusal)
                }
            };
            drop(place);
            let _ = told.send(accepted);
        });
        accepted.await.unwrap_or_else(|_| {
            Err(Refusal::new(flux_protocol::ErrorCode::Internal, "accepting the invocation did not end"))
        })
    }

    async fn publish_accepted(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        id: ExecutionId,
        request: InvokeRequest,
        redrive_of: Option<ExecutionId>,
    ) -> Result<(), NotCalled> {
        let queue = function.queue(Lane::Invoke);
        let queued_at = now();
        let traceparent = request.traceparent();
        let invocation = Invocation {
            execution_id: Some(id),
            attempt: 1,
            failures: 0,
            args: request.args,
            reply_to: None,
            deadline: request.timeout.map(|timeout| queued_at.plus(timeout)),
            version: Some(function.version.version),
            traceparent: Some(traceparent),
            redrive_of,
            payload: self.place_payload(id, request.payload).await.map_err(Refusal::from)?,
        };
        let large = matches!(invocation.payload, Payload::Blob(_));
        let message = message_of(&invocation);
        // A queue that is known to be hot costs nothing here; for one that is not, agents come while it is published.
        let (heated, stored) = tokio::join!(self.hot.heat(queue), self.publish_patiently(queue, message));
        if let Err(error) = heated {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "cannot make a queue hot; a ring or the reconciler will"
            );
        }
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => {
                let may_run = may_be_stored(&error);
                self.give_up(id, queue, &invocation, None).await;
                return Err(NotCalled { refusal: error.into(), may_run });
            }
        };
        let position = stored.position;
        let mut record =
            queued_record(id, queue, function.version.version, invocation.clone(), Some(position.clone()), queued_at);
        if large {
            self.payloads.remember(id);
            record.notes.push(NOTE.to_owned());
        }
        if let Err(error) = self.store.insert_queued(record).await {
            let taken_back = self.give_up(id, queue, &invocation, Some(position)).await;
            return Err(NotCalled { refusal: error.into(), may_run: !taken_back });
        }
        Ok(())
    }

    /// Takes a message out of the queue that was not accepted after all. Whether it is out, and no agent had it.
    async fn give_up(
        self: &Arc<Self>,
        id: ExecutionId,
        queue: &QueueName,
        invocation: &Invocation,
        position: Option<QueuePosition>,
    ) -> bool {
        self.discard_payload(invocation);
        if let Some(position) = position {
            match self.broker.take_back(queue, &position).await {
                // A queue that was killed meanwhile may have forgotten that it delivered it.
                Ok(TakenBack::NeverDelivered) if self.withdrawn_everywhere(id, NOT_ACCEPTED).await => return true,
                Ok(_) | Err(BrokerError::Unsupported { .. }) => {}
                Err(error) => {
                    tracing::warn!(
                        execution_id = %id,
                        error = &error as &dyn std::error::Error,
                        "an invocation that was refused could not be taken back"
                    );
                }
            }
        }
        // It may be on its way to an agent: they remember a cancel. Behind the answer, since it takes a while.
        let inner = Arc::clone(self);
        let remembered = queue.lane == Lane::Invoke && !self.broker.capabilities().take_back;
        self.tasks.spawn("give-up", async move {
            if remembered {
                // It may wait for longer than they do.
                inner.remember_given_up(id).await;
            }
            let _ = inner.cancel_on_agents(id, NOT_ACCEPTED, None).await;
        });
        false
    }

    /// The queue is likely away, since something was refused.
    async fn remember_given_up(&self, id: ExecutionId) {
        for _ in 0..GIVEN_UP_TRIES {
            let Err(error) = self.broker.put(Table::Cancelled, &id.to_string(), NOT_ACCEPTED.into()).await else {
                return;
            };
            tracing::debug!(
                execution_id = %id,
                error = &error as &dyn std::error::Error,
                "cannot write down that an invocation was refused; trying again"
            );
            tokio::time::sleep(GIVEN_UP_AGAIN_AFTER).await;
        }
        tracing::warn!(execution_id = %id, "an invocation that was refused may run after all: the queue is away");
    }
}
