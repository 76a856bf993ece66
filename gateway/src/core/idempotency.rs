//! `Idempotency-Key`: the first invocation with a key claims it in the store; every later one attaches to its
//! execution, or returns its outcome.

use std::{sync::Arc, time::Duration};

use flux_protocol::{Digest, ErrorCode, ExecutionId, FunctionName, Timestamp, limits, time::now};
use flux_store::Claim;
use tokio::{sync::oneshot, time::Instant};

use super::{Called, Inner, InvokeRequest, call::sync_deadline, function_cache::Runnable};
use crate::refusal::Refusal;

/// A claim without a record after this was left by a gateway that died between the two.
const ORPHANED_AFTER: Duration = Duration::from_secs(10);

/// How often it is looked whether the gateway that claimed a key has recorded its execution: a matter of milliseconds,
/// unless it died.
pub(super) const CLAIM_LOOKED_AT_EVERY: Duration = Duration::from_millis(50);

/// Whose execution a key stands for.
pub(super) enum Standing {
    Ours,
    Theirs { execution_id: ExecutionId, at: Timestamp },
}

impl Inner {
    pub(super) async fn claim(
        &self,
        function: &FunctionName,
        key: &str,
        body: Digest,
        id: ExecutionId,
    ) -> Result<Standing, Refusal> {
        let claim = self.store.claim_idempotency(function, key, body, id, now(), limits::IDEMPOTENCY_WINDOW).await?;
        match claim {
            Claim::Claimed => Ok(Standing::Ours),
            Claim::Held { execution_id, body: first, at } if first == body => Ok(Standing::Theirs { execution_id, at }),
            Claim::Held { execution_id, .. } => Err(Refusal::new(
                ErrorCode::IdempotencyMismatch,
                format!(
                    "this Idempotency-Key was used for `{function}` with another payload, args or version ({execution_id}); use a new key for a new request"
                ),
            )
            .with_details(serde_json::json!({ "execution_id": execution_id }))),
        }
    }

    pub(super) fn is_orphaned(&self, claimed_at: Timestamp) -> bool {
        now().since(claimed_at) > ORPHANED_AFTER
    }

    pub(super) async fn release(&self, function: &FunctionName, key: &str, id: ExecutionId) {
        if let Err(error) = self.store.release_idempotency(function, key, id).await {
            tracing::warn!(
                execution_id = %id,
                error = &error as &dyn std::error::Error,
                "an idempotency key of a refused request could not be freed; it is free in a while"
            );
        }
    }

    /// A sync call with a key: runs it, or waits for the one that has the key.
    pub(super) async fn call_once(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        request: InvokeRequest,
    ) -> Result<Called, Refusal> {
        let id = ExecutionId::new();
        let name = function.spec().name.clone();
        let Some(key) = request.idempotency_key.clone() else {
            return self.run_call(function, id, request).await.map_err(|not_called| not_called.refusal);
        };
        let body = request.digest();
        let until = Instant::now() + sync_deadline(function.spec(), request.timeout);
        loop {
            match self.claim(&name, &key, body, id).await? {
                Standing::Ours => break,
                Standing::Theirs { execution_id, at } => {
                    if let Some(called) = self.attach(execution_id, at, until).await? {
                        return Ok(called);
                    }
                    self.store.release_idempotency(&name, &key, execution_id).await?;
                }
            }
        }
        // Others may have been promised its outcome: it does not end when this caller goes.
        let (tell, told) = oneshot::channel();
        let (inner, function) = (Arc::clone(self), Arc::clone(function));
        self.tasks.spawn("call-with-key", async move {
            let called = match inner.run_call(&function, id, request).await {
                Ok(called) => Ok(called),
                Err(not_called) => {
                    // Refused before it ran: the same key may try again.
                    if !not_called.may_run {
                        inner.release(&name, &key, id).await;
                    }
                    Err(not_called.refusal)
                }
            };
            let _ = tell.send(called);
        });
        told.await.unwrap_or_else(|_| {
            let message = format!("the call ended without a word; GET /executions/{id} tells what became of it");
            Err(Refusal::new(ErrorCode::Internal, message))
        })
    }

    /// Waits for the execution that has the key. `None`: there is none, its gateway died before it was accepted.
    async fn attach(&self, id: ExecutionId, at: Timestamp, until: Instant) -> Result<Option<Called>, Refusal> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.wait_for(id, left).await? {
                Some(record) if record.is_terminal() => {
                    let Some(outcome) = record.outcome else { return Ok(None) };
                    return Ok(Some(Called {
                        execution_id: id,
                        agent_id: record.agent_id,
                        attempt: record.attempt,
                        version: record.version,
                        outcome: self.whole(outcome).await?,
                        replayed: true,
                    }));
                }
                None if self.is_orphaned(at) => return Ok(None),
                // Claimed, and not recorded yet.
                None if !left.is_zero() => tokio::time::sleep(CLAIM_LOOKED_AT_EVERY).await,
                Some(_) | None => {
                    return Err(Refusal::new(
                        ErrorCode::DeadlineExceeded,
                        format!(
                            "the execution that has this Idempotency-Key still runs; ask GET /executions/{id} for its outcome"
                        ),
                    )
                    .with_details(serde_json::json!({ "execution_id": id })));
                }
            }
        }
    }
}
