//! `Idempotency-Key`: the first invocation with a key claims it in the store; every later one attaches to its
//! execution, or returns its outcome.
//!
//! A claim is of an execution's id, and the id stays. Where the gateway that claimed died before there was a record, whoever
//! comes next with the key goes on with the same id from wherever that one had got to; of what it may have published nothing is
//! ever taken back. So neither a death at any point nor two who go on at once make a second execution.

use std::{sync::Arc, time::Duration};

use flux_protocol::{Digest, ErrorCode, ExecutionId, FunctionName, Timestamp, limits, time::now};
use flux_store::Claim;
use tokio::{sync::oneshot, time::Instant};

use super::{
    Accepted, Called, Inner, InvokeRequest,
    call::{sync_deadline, without_a_word},
    function_cache::Runnable,
};
use crate::refusal::Refusal;

/// A claim without a record after this was left by a gateway that died between the two.
pub(super) const ORPHANED_AFTER: Duration = Duration::from_secs(10);

/// Until then nobody else goes on with a claim, though clocks differ.
const ALONE_FOR: Duration = Duration::from_secs(ORPHANED_AFTER.as_secs() / 2);

/// How often it is looked whether the gateway that claimed a key has recorded its execution: a matter of milliseconds,
/// unless it died.
const CLAIM_LOOKED_AT_EVERY: Duration = Duration::from_millis(50);

/// Whose execution a key stands for.
enum Standing {
    Ours,
    Theirs { execution_id: ExecutionId, at: Timestamp },
}

/// A key whose execution a request goes on to make.
pub(super) struct Claimed {
    pub(super) key: String,
    /// Another gateway began it, and may have got anywhere.
    pub(super) taken_over: bool,
    age: Duration,
    since: Instant,
}

impl Claimed {
    /// `since`: before the store was asked, by a clock that goes on while this process stands still.
    fn new(key: String, since: Instant) -> Self {
        Self { key, taken_over: false, age: Duration::ZERO, since }
    }

    fn taken_over(key: String, at: Timestamp) -> Self {
        Self { key, taken_over: true, age: now().since(at), since: Instant::now() }
    }

    fn age(&self) -> Duration {
        self.age + self.since.elapsed()
    }

    /// Whether others may be going on with it too: then what is done can only be what may be done twice.
    pub(super) fn is_shared(&self) -> bool {
        self.taken_over || self.age() >= ALONE_FOR
    }

    /// Whether a queue that stores an id once still knows this one's, if it was ever published.
    pub(super) fn is_one_message(&self) -> bool {
        self.age() < limits::ONE_MESSAGE_WITHIN
    }
}

impl Inner {
    async fn claim(
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

    fn is_orphaned(&self, claimed_at: Timestamp) -> bool {
        now().since(claimed_at) > ORPHANED_AFTER
    }

    /// So long ago that its record may have expired, or that agents would not start it any more.
    fn is_forgotten(&self, claimed_at: Timestamp) -> bool {
        now().since(claimed_at) > limits::EVENT_AGE.min(self.history)
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

    /// The function as it was for who claimed the key then: what that one published is in the pool of its time. A version that is
    /// asked for has one pool.
    async fn as_claimed(
        &self,
        function: &Arc<Runnable>,
        asked: Option<u32>,
        at: Timestamp,
    ) -> Result<Arc<Runnable>, Refusal> {
        let name = &function.spec().name;
        if asked.is_some() || function.version.created_at <= at {
            return Ok(Arc::clone(function));
        }
        let kept = self.store.function(name).await?.map(|kept| kept.versions).unwrap_or_default();
        let of_then = kept.iter().rev().find(|version| version.created_at <= at).or_else(|| kept.first());
        let Some(of_then) = of_then else { return Ok(Arc::clone(function)) };
        let of_then = self.invocable(name, Some(of_then.version)).await?;
        // Where the pool is the same, what was not published yet is better done by the version of now.
        let is_elsewhere = of_then.spec().pool != function.spec().pool && self.pools.contains(&of_then.spec().pool);
        Ok(if is_elsewhere && of_then.version.is_runnable() { of_then } else { Arc::clone(function) })
    }

    /// An invocation with a key that runs on its own: accepts it, or attaches to the one that has the key.
    pub(super) async fn accept_once(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        request: InvokeRequest,
        redrive_of: Option<ExecutionId>,
        key: String,
    ) -> Result<Accepted, Refusal> {
        let mut place = self.accepts.enter().await?;
        let name = &function.spec().name;
        let body = request.digest();
        let mut id = ExecutionId::new();
        let mut function = Arc::clone(function);
        let claimed = loop {
            let since = Instant::now();
            match self.claim(name, &key, body, id).await? {
                Standing::Ours => break Claimed::new(key, since),
                Standing::Theirs { execution_id, at } => {
                    if self.store.execution(execution_id).await?.is_some() {
                        return Ok(Accepted { execution_id, replayed: true });
                    }
                    if self.is_forgotten(at) {
                        self.store.release_idempotency(name, &key, execution_id).await?;
                    } else if self.is_orphaned(at) {
                        id = execution_id;
                        function = self.as_claimed(&function, request.version, at).await?;
                        break Claimed::taken_over(key, at);
                    } else {
                        // Claimed, and not recorded yet. Saying "accepted" now would be a promise that nobody keeps if the
                        // gateway that claimed it is dead.
                        drop(place);
                        tokio::time::sleep(CLAIM_LOOKED_AT_EVERY).await;
                        place = self.accepts.enter().await?;
                    }
                }
            }
        };
        let replayed = claimed.taken_over;
        self.accept_to_the_end(&function, id, request, redrive_of, Some(claimed), place).await?;
        Ok(Accepted { execution_id: id, replayed })
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
            return self.run_call(function, id, request, None).await.map_err(|not_called| not_called.refusal);
        };
        let body = request.digest();
        let until = Instant::now() + sync_deadline(function.spec(), request.timeout);
        let claimed = loop {
            let since = Instant::now();
            match self.claim(&name, &key, body, id).await? {
                Standing::Ours => {
                    let claimed = Claimed::new(key.clone(), since);
                    // If it stood still, somebody else may be going on with it.
                    if !claimed.is_shared() {
                        break claimed;
                    }
                }
                Standing::Theirs { execution_id, at } => {
                    if let Some(called) = self.attach(execution_id, at, until).await? {
                        return Ok(called);
                    }
                    if self.is_forgotten(at) {
                        self.store.release_idempotency(&name, &key, execution_id).await?;
                        continue;
                    }
                    // It may have been an asynchronous one, whose message is in the queue: so it goes on as one.
                    let of_then = self.as_claimed(function, request.version, at).await?;
                    let claimed = Claimed::taken_over(key.clone(), at);
                    let place = self.accepts.enter().await?;
                    self.accept_to_the_end(&of_then, execution_id, request.clone(), None, Some(claimed), place).await?;
                }
            }
        };
        // Others may have been promised its outcome: it does not end when this caller goes.
        let (tell, told) = oneshot::channel();
        let (inner, function) = (Arc::clone(self), Arc::clone(function));
        self.tasks.spawn("call-with-key", async move {
            let called = match inner.run_call(&function, id, request, Some(&claimed)).await {
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
        told.await.unwrap_or_else(|_| Err(without_a_word(id)))
    }

    /// Waits for the execution that has the key. `None`: there is none, its gateway died before it was accepted.
    pub(super) async fn attach(
        &self,
        id: ExecutionId,
        at: Timestamp,
        until: Instant,
    ) -> Result<Option<Called>, Refusal> {
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
