//! An asynchronous invocation: accepted once the queue *and* the store hold it.
//!
//! Publish, then commit the record with the message's place in its stream, then answer. Where the store refuses, the message
//! is taken back, and the answer is 503: nothing runs that nobody accepted. What has an idempotency key stays instead: the
//! request that is made again attaches to it, or goes on where this one had got to ([`idempotency`](super::idempotency)).

use std::{sync::Arc, time::Duration};

use flux_broker::{BrokerError, Stored, Table, TakenBack};
use flux_protocol::{
    ExecutionId, ExecutionRecord, FunctionName, Invocation, Lane, Payload, execution::QueuePosition,
    subject::QueueName, time::now,
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    Accepted, Gateway, Inner, InvokeRequest,
    call::{NotCalled, may_be_stored, message_of},
    function_cache::Runnable,
    idempotency::{Claimed, ORPHANED_AFTER},
    payloads::NOTE,
    publish_again::queued_record,
};
use crate::refusal::Refusal;

/// What agents are told of an execution that did not become one.
const NOT_ACCEPTED: &str = "it was not accepted: the store or the queue refused";
/// Writing that down is tried so often, each time for as long as a call to the queue takes.
const GIVEN_UP_TRIES: u32 = 10;
const GIVEN_UP_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Between two tries to record what has a key and is in the queue.
const RECORDED_AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Gateway {
    /// Accepts an invocation that runs on its own.
    ///
    /// # Errors
    /// It was not accepted, and does not run; or it has an idempotency key, and the same request again has its execution.
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

impl Inner {
    pub(super) async fn accept(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        request: InvokeRequest,
        redrive_of: Option<ExecutionId>,
    ) -> Result<Accepted, Refusal> {
        if let Some(key) = request.idempotency_key.clone() {
            return self.accept_once(function, request, redrive_of, key).await;
        }
        let place = self.accepts.enter().await?;
        let id = ExecutionId::new();
        self.accept_to_the_end(function, id, request, redrive_of, None, place).await?;
        Ok(Accepted { execution_id: id, replayed: false })
    }

    /// Publishes and records in a task of its own: a caller that goes in between would leave a message without a record,
    /// or a key that stands for nothing.
    pub(super) async fn accept_to_the_end(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        id: ExecutionId,
        request: InvokeRequest,
        redrive_of: Option<ExecutionId>,
        claimed: Option<Claimed>,
        place: OwnedSemaphorePermit,
    ) -> Result<(), Refusal> {
        let (told, accepted) = tokio::sync::oneshot::channel();
        let (inner, function) = (Arc::clone(self), Arc::clone(function));
        self.tasks.spawn("accept", async move {
            let accepted = match inner.publish_accepted(&function, id, request, redrive_of, claimed.as_ref()).await {
                Ok(()) => Ok(()),
                Err(NotCalled { refusal, may_run }) => {
                    // What may run keeps its key: the same request again must not run beside it. And so does what others
                    // may be going on with.
                    if let Some(claimed) = claimed.filter(|claimed| !may_run && !claimed.is_shared()) {
                        inner.release(&function.spec().name, &claimed.key, id).await;
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
        claimed: Option<&Claimed>,
    ) -> Result<(), NotCalled> {
        let queue = function.queue(Lane::Invoke);
        let queued_at = now();
        let traceparent = request.traceparent();
        let taken_over = claimed.is_some_and(|claimed| claimed.taken_over);
        let mut invocation = Invocation {
            execution_id: Some(id),
            attempt: 1,
            failures: 0,
            args: request.args,
            reply_to: None,
            deadline: request.timeout.map(|timeout| queued_at.plus(timeout)),
            version: Some(function.version.version),
            traceparent: Some(traceparent),
            redrive_of,
            payload: self.place_payload(id, request.payload, taken_over).await.map_err(Refusal::from)?,
        };
        let large = matches!(invocation.payload, Payload::Blob(_));
        // What others may have published and recorded meanwhile.
        let shared = claimed.filter(|claimed| claimed.is_shared());
        if shared.is_some() && self.store.execution(id).await.map_err(Refusal::from)?.is_some() {
            return Ok(());
        }
        let stored = match shared {
            // A second message would be a second run. The record alone is enough: the reconciler publishes what is in no
            // queue, and that no agent holds.
            Some(claimed) if !(self.broker.capabilities().deduplicates && claimed.is_one_message()) => None,
            _ => Some(self.publish_hot(id, queue, &invocation, claimed).await?),
        };
        let mut version = function.version.version;
        if shared.is_some() && stored.as_ref().is_none_or(|stored| stored.duplicate) {
            // The message is another's, and of the version that was current then. The first status tells it.
            invocation.version = request.version;
            version = request.version.unwrap_or(0);
        }
        let position = stored.map(|stored| stored.position);
        let mut record = queued_record(id, queue, version, invocation.clone(), position.clone(), queued_at);
        if large {
            self.payloads.remember(id);
            record.notes.push(NOTE.to_owned());
        }
        match self.store.insert_queued(record.clone()).await {
            Ok(()) => Ok(()),
            Err(error) if claimed.is_some() => {
                self.record_later(record);
                Err(NotCalled { refusal: error.into(), may_run: true })
            }
            Err(error) => {
                let taken_back = self.give_up(id, queue, &invocation, position).await;
                Err(NotCalled { refusal: error.into(), may_run: !taken_back })
            }
        }
    }

    /// So that the same request again need not wait until it may take over. Bounded by what is being accepted when the store
    /// goes: later ones do not come as far as the queue.
    fn record_later(self: &Arc<Self>, record: ExecutionRecord) {
        let inner = Arc::clone(self);
        self.tasks.spawn("record-later", async move {
            let until = Instant::now() + ORPHANED_AFTER;
            while Instant::now() < until {
                tokio::time::sleep(RECORDED_AGAIN_AFTER).await;
                if inner.store.insert_queued(record.clone()).await.is_ok() {
                    return;
                }
            }
        });
    }

    /// A queue that is known to be hot costs nothing here; for one that is not, agents come while it is published.
    async fn publish_hot(
        self: &Arc<Self>,
        id: ExecutionId,
        queue: &QueueName,
        invocation: &Invocation,
        claimed: Option<&Claimed>,
    ) -> Result<Stored, NotCalled> {
        let message = message_of(invocation);
        let (heated, stored) = tokio::join!(self.hot.heat(queue), self.publish_patiently(queue, message));
        if let Err(error) = heated {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "cannot make a queue hot; a ring or the reconciler will"
            );
        }
        match stored {
            Ok(stored) => Ok(stored),
            Err(error) => {
                let may_run = may_be_stored(&error);
                match claimed {
                    None => _ = self.give_up(id, queue, invocation, None).await,
                    Some(claimed) if !may_run && !claimed.is_shared() => self.discard_payload(invocation),
                    Some(_) => {}
                }
                Err(NotCalled { refusal: error.into(), may_run })
            }
        }
    }

    /// Takes a message without a key out of the queue that was not accepted after all. Whether it is out, and no agent had it.
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
