//! A sync call: admitted, published, waited for.
//!
//! ```text
//!   admit ─► heat ─► publish ──┬─► reply ───────────────────────────► outcome
//!                              ├─► nobody picked it up in the grace ─► taken back: 503 or 429
//!                              ├─► the queue lost it ────────────────► published again, next attempt
//!                              ├─► deadline ─────────────────────────► 504, cancelled behind the answer
//!                              └─► the caller went ──────────────────► cancelled
//! ```
//!
//! One future drives one call; dropping it is how a caller goes. The publish ack is awaited beside the reply, since it
//! is needed only for taking back. Nothing is written to the store before the reply: the agent's status makes the record.
//! A call that lasts longer than [`RECORD_AFTER`] gets a queued record beside it, so that any gateway can tell of it.
//!
//! **The deadline** is for starting and running together: the caller's `timeout` if it gave one; else, where the function
//! waits for room, [`limits::SYNC_WAIT`]; else the function's own timeout, its `stop_grace` and [`STARTING_AND_ENDING`]. Never more than `SYNC_WAIT`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_broker::{BrokerError, Message, Stored, TakenBack};
use flux_protocol::{
    AgentId, ErrorCode, ErrorKind, ExecutionId, ExecutionRecord, FunctionName, FunctionSpec, Invocation, Lane, Outcome,
    Payload, Phase, StatusMessage, Timestamp, function::PressureBehavior, limits, subject, time::now,
};
use futures::future::BoxFuture;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    Called, Gateway, Inner, InvokeRequest,
    admission::{Admission, Shortage, Summary, not_picked_up, refusal},
    function_cache::Runnable,
    in_flight::{CallEvent, Place, nonce_of},
    payloads::payload_of,
    verdict::{Holders, Verdict},
};
use crate::refusal::Refusal;

/// A call still waiting after this gets a record.
const RECORD_AFTER: Duration = Duration::from_millis(250);
/// What only heartbeats object to is taken back unless an agent picked it up within this. One with room has a pull waiting
/// and needs a millisecond; one whose only free slot is lent to a pull on another queue has it back when that ends.
const PROBE_GRACE: Duration = limits::PULL_EXPIRES_CONTENDED.saturating_add(Duration::from_millis(100));
/// The broker's ack was not there when the grace was over: looked for again after this.
const ACK_LATE: Duration = Duration::from_millis(75);
/// A reply is a signal and may be lost; so a call that lasts asks the store this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A publish that the broker did not answer is tried again for this long.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(5);
/// Time to start and to be killed, on top of the function's own timeout, where it does not wait for room.
const STARTING_AND_ENDING: Duration = Duration::from_secs(5).saturating_add(limits::KILL_TAKES_AT_MOST);

impl Gateway {
    /// Runs a function and waits for its outcome. Dropping the future cancels the execution.
    ///
    /// # Errors
    /// It was not run, or not to its end in time. A function's own failure is an outcome.
    pub async fn call(&self, name: &FunctionName, request: InvokeRequest) -> Result<Called, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        request.check()?;
        let function = inner.functions.require_version(name, request.version).await?;
        function.require_code()?;
        inner.in_flight.require_room()?;
        let started = Instant::now();
        let called = if request.idempotency_key.is_some() {
            inner.call_once(&function, request).await
        } else {
            inner.run_call(&function, ExecutionId::new(), request).await.map_err(|not_called| not_called.refusal)
        };
        count_call(&called, started.elapsed());
        called
    }
}

fn count_call(called: &Result<Called, Refusal>, took: Duration) {
    let outcome = match called {
        Ok(called) => called.outcome.status.as_str(),
        Err(refusal) => refusal.code.as_str(),
    };
    metrics::counter!("flux_calls_total", "outcome" => outcome).increment(1);
    metrics::histogram!("flux_call_seconds").record(took.as_secs_f64());
}

/// How long a sync call may take in all: see the module's head.
pub(super) fn sync_deadline(spec: &FunctionSpec, asked: Option<Duration>) -> Duration {
    let waits = waits_for_room(spec);
    asked
        .or_else(|| spec.timeout.filter(|_| !waits).map(|timeout| timeout + spec.stop_grace + STARTING_AND_ENDING))
        .unwrap_or(limits::SYNC_WAIT)
        .min(limits::SYNC_WAIT)
}

fn waits_for_room(spec: &FunctionSpec) -> bool {
    spec.max_concurrency_behavior == PressureBehavior::Wait || spec.resource_pressure_behavior == PressureBehavior::Wait
}

/// How a driven call ended.
enum End {
    Called(Called),
    /// Refused, and nothing of it is left anywhere.
    Refused(Refusal),
    /// It ran to its end, and its outcome cannot be told.
    Untold(Refusal),
    /// Given up on; whatever is left of it is to be ended behind the answer.
    Abandoned(Refusal),
}

/// A call without an outcome to tell.
pub(super) struct NotCalled {
    pub(super) refusal: Refusal,
    /// It ran, or is in the queue as far as is known: its idempotency key must go on standing for it.
    pub(super) may_run: bool,
}

impl From<Refusal> for NotCalled {
    /// Refused before anything was published.
    fn from(refusal: Refusal) -> Self {
        Self { refusal, may_run: false }
    }
}

impl Inner {
    pub(super) async fn run_call(
        self: &Arc<Self>,
        function: &Arc<Runnable>,
        id: ExecutionId,
        request: InvokeRequest,
    ) -> Result<Called, NotCalled> {
        let keyed = request.idempotency_key.is_some();
        let spec = function.spec();
        let reply_to = subject::reply(&self.id);
        let nonce = nonce_of(&reply_to).unwrap_or_default();
        let fleet = self.fleet_for(function);
        let queue = function.queue(Lane::Call);
        let (admission, place) = match self.in_flight.admit(nonce, id, queue, spec, &fleet) {
            Ok(admitted) => admitted,
            Err((Admission::Refuse(shortage), mine)) => return Err(refusal(spec, &fleet, &mine, shortage).into()),
            Err(_) => return Err(Refusal::new(ErrorCode::Internal, "admission refused without a shortage").into()),
        };
        let began = Instant::now();
        let allowed = sync_deadline(spec, request.timeout);
        let queued_at = now();
        let traceparent = request.traceparent();
        let invocation = Invocation {
            execution_id: Some(id),
            attempt: 1,
            failures: 0,
            args: request.args,
            reply_to: Some(reply_to),
            deadline: Some(queued_at.plus(allowed)),
            version: Some(function.version.version),
            traceparent: Some(traceparent),
            redrive_of: None,
            payload: Payload::default(),
        };
        let grace = match admission {
            Admission::Probe(_) => Some(PROBE_GRACE),
            Admission::Admit | Admission::Refuse(_) => Some(limits::PICKUP_GRACE),
            Admission::Wait(_) => None,
        };
        let exits = spec.max_concurrency_behavior == PressureBehavior::Exit
            || spec.resource_pressure_behavior == PressureBehavior::Exit;
        let pickup = grace.filter(|_| exits).map(|grace| began + grace);
        let driver = Driver {
            inner: Arc::clone(self),
            function: Arc::clone(function),
            id,
            queued_at,
            place,
            invocation,
            holders: Holders::default(),
            holder: None,
            publishing: None,
            publish_until: began + PUBLISH_PATIENCE.min(allowed),
            publish_backoff: Duration::from_millis(20),
            timers: Timers {
                deadline: began + allowed,
                pickup,
                record: (pickup.is_none() || keyed).then(|| began + RECORD_AFTER),
                look: began + LOOK_EVERY,
            },
            payload: request.payload,
            probed: match admission {
                Admission::Probe(shortage) => Some(shortage),
                _ => None,
            },
            recorded: false,
        };
        let mut guard = Guard(Some(Box::new(driver)));
        let Some(driver) = guard.0.as_mut() else {
            return Err(Refusal::new(ErrorCode::Internal, "a call has no driver").into());
        };
        let span = tracing::debug_span!(
            "call",
            execution_id = %id,
            function = %spec.name,
            trace_id = driver.invocation.traceparent.as_deref().and_then(|text| text.get(3..35)),
        );
        match driver.run(keyed).instrument(span).await {
            End::Called(called) => {
                guard.finish();
                Ok(called)
            }
            End::Refused(refusal) => {
                guard.finish();
                Err(refusal.into())
            }
            End::Untold(refusal) => {
                guard.finish();
                Err(NotCalled { refusal, may_run: true })
            }
            // The guard is dropped armed.
            End::Abandoned(refusal) => Err(NotCalled { refusal, may_run: true }),
        }
    }

    /// The fleet as the function sees it. Just after the start agents may be there that were not heard of yet.
    fn fleet_for(&self, function: &Runnable) -> Summary {
        let fleet = function.summary(&self.fleet);
        if fleet.online == 0 && self.fleet.is_young() { Summary::unknown() } else { fleet }
    }
}

/// Ends what is left of a call when its future is dropped.
struct Guard(Option<Box<Driver>>);

impl Guard {
    fn finish(&mut self) {
        if let Some(driver) = self.0.take() {
            driver.inner.discard_payload(&driver.invocation);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(driver) = self.0.take() {
            let tasks = driver.inner.tasks.clone();
            tasks.spawn("abandon-call", driver.abandon());
        }
    }
}

struct Timers {
    deadline: Instant,
    /// When to look whether an agent picked it up.
    pickup: Option<Instant>,
    /// When to give it a record.
    record: Option<Instant>,
    /// When to ask the store, should the reply have been lost.
    look: Instant,
}

impl Timers {
    fn next(&self) -> Instant {
        [Some(self.deadline), self.pickup, self.record, Some(self.look)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.deadline)
    }
}

type Publishing = BoxFuture<'static, Result<Stored, BrokerError>>;

struct Driver {
    inner: Arc<Inner>,
    function: Arc<Runnable>,
    id: ExecutionId,
    queued_at: Timestamp,
    place: Place,
    invocation: Invocation,
    /// Until it is in the invocation, or in the blob seam.
    payload: Bytes,
    holders: Holders,
    holder: Option<AgentId>,
    /// The publish whose ack has not come yet.
    publishing: Option<Publishing>,
    publish_until: Instant,
    publish_backoff: Duration,
    timers: Timers,
    probed: Option<Shortage>,
    recorded: bool,
}

impl Driver {
    async fn run(&mut self, keyed: bool) -> End {
        if keyed {
            // The key stands for this execution: whoever attaches to it must find a record.
            if let Err(error) = self.inner.store.insert_queued(self.queued_record()).await {
                return End::Refused(error.into());
            }
            self.recorded = true;
        }
        self.invocation.payload = payload_of(self.id, &self.payload);
        let payload = std::mem::take(&mut self.payload);
        if let Payload::Blob(blob) = &self.invocation.payload
            && let Err(error) = self.inner.broker.put_blob(subject::BLOB_BUCKET, &blob.key, payload).await
        {
            return self.refused(error.into()).await;
        }
        let queue = self.function.queue(Lane::Call);
        if let Err(error) = self.inner.hot.heat(queue).await
            && !may_be_stored(&error)
        {
            return self.refused(error.into()).await;
        }
        self.publish(Duration::ZERO);
        loop {
            let next = self.timers.next();
            let end = tokio::select! {
                biased;
                event = self.place.call.event() => self.on_event(event).await,
                stored = async { match self.publishing.as_mut() {
                    Some(publishing) => publishing.await,
                    None => std::future::pending().await,
                } } => {
                    self.publishing = None;
                    self.on_published(stored).await
                }
                () = tokio::time::sleep_until(next) => self.on_time().await,
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn publish(&mut self, after: Duration) {
        let broker = Arc::clone(&self.inner.broker);
        let queue = self.function.queue(Lane::Call).clone();
        let message = message_of(&self.invocation);
        self.publishing = Some(Box::pin(async move {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            broker.publish(&queue, message).await
        }));
    }

    async fn on_published(&mut self, stored: Result<Stored, BrokerError>) -> Option<End> {
        match stored {
            Ok(stored) => {
                self.place.call.learn(|known| known.position = Some(stored.position));
                None
            }
            // Safe to repeat: the message has an id.
            Err(error) if may_be_stored(&error) && Instant::now() + self.publish_backoff < self.publish_until => {
                self.publish(self.publish_backoff);
                self.publish_backoff = (self.publish_backoff * 2).min(Duration::from_millis(500));
                None
            }
            Err(error) if may_be_stored(&error) => Some(End::Abandoned(error.into())),
            Err(error) => Some(self.refused(error.into()).await),
        }
    }

    async fn on_event(&mut self, event: CallEvent) -> Option<End> {
        match event {
            CallEvent::Reply(body) => self.on_reply(&body).await,
            CallEvent::Ended(status) => match status.outcome.clone() {
                Some(outcome) => Some(self.called(status.attempt, status.agent_id.clone(), outcome).await),
                None => None,
            },
            CallEvent::Lost => self.on_lost().await,
        }
    }

    async fn on_reply(&mut self, body: &[u8]) -> Option<End> {
        let dropped = |kind: &'static str| metrics::counter!("flux_signals_dropped_total", "kind" => kind).increment(1);
        let Ok(reply) = serde_json::from_slice::<StatusMessage>(body) else {
            dropped("reply_unreadable");
            return None;
        };
        match self.holders.judge(self.id, &reply) {
            Verdict::Running => {
                self.timers.pickup = None;
                self.place.occupy();
                self.holder.clone_from(&reply.agent_id);
                self.place.call.learn(|known| {
                    known.attempt = reply.attempt;
                    known.holder = reply.agent_id;
                });
                // The status that says so makes the record.
                self.timers.record = None;
                None
            }
            Verdict::Ended => Some(self.called(reply.attempt, reply.agent_id, reply.outcome?).await),
            Verdict::Old => None,
            Verdict::WrongExecution => {
                dropped("reply_wrong_execution");
                None
            }
            Verdict::WrongAgent => {
                dropped("reply_wrong_agent");
                None
            }
        }
    }

    async fn called(&mut self, attempt: u32, agent_id: Option<AgentId>, outcome: Outcome) -> End {
        let outcome = match self.inner.whole(outcome).await {
            Ok(outcome) => outcome,
            Err(refusal) => return End::Untold(refusal),
        };
        End::Called(Called {
            execution_id: self.id,
            agent_id,
            attempt,
            version: self.function.version.version,
            outcome,
            replayed: false,
        })
    }

    async fn on_time(&mut self) -> Option<End> {
        let at = Instant::now();
        if at >= self.timers.deadline {
            return Some(End::Abandoned(self.too_late()));
        }
        if self.timers.pickup.is_some_and(|due| at >= due) {
            self.timers.pickup = None;
            if let Some(end) = self.check_pickup().await {
                return Some(end);
            }
            self.timers.record = self.timers.record.or(Some(at));
        }
        if self.timers.record.is_some_and(|due| at >= due) {
            self.timers.record = None;
            self.recorded = true;
            self.record_beside();
        }
        if at >= self.timers.look {
            self.timers.look = at + LOOK_EVERY;
            return self.look().await;
        }
        None
    }

    fn too_late(&self) -> Refusal {
        let what = if self.holder.is_some() { "did not end" } else { "was not started and ended" };
        Refusal::new(
            ErrorCode::DeadlineExceeded,
            format!(
                "`{}` {what} within its deadline and was cancelled; give a longer `?timeout=`, or use POST /execute/{}/async",
                self.function.spec().name,
                self.function.spec().name
            ),
        )
        .with_details(serde_json::json!({ "execution_id": self.id }))
    }

    /// The grace has passed: does an agent have it? If not, it is taken back and refused by what is known now.
    async fn check_pickup(&mut self) -> Option<End> {
        let inner = Arc::clone(&self.inner);
        let queue = self.function.queue(Lane::Call);
        let Some(position) = self.place.call.known().position else {
            // The ack has not come: the broker is slow or away, and no agent is to blame.
            self.timers.pickup = Some(Instant::now() + ACK_LATE);
            return None;
        };
        if !inner.hot.touch(queue) {
            // It was cooled under us. Once it is hot again agents get the same time.
            if inner.hot.heat_again(queue).await.is_ok() {
                self.timers.pickup = Some(Instant::now() + limits::PICKUP_GRACE);
            }
            return None;
        }
        let spec = self.function.spec();
        let fleet = self.function.summary(&inner.fleet);
        let mine = self.place.others(spec);
        // A probe that was not picked up within its grace is what heartbeats said it would be.
        let shortage = self.probed.or_else(|| not_picked_up(spec, &fleet, &mine))?;
        if !inner.broker.capabilities().take_back {
            return None;
        }
        match inner.broker.was_delivered(queue, &position).await {
            Ok(Some(false)) => {}
            Ok(Some(true) | None) | Err(_) => return None,
        }
        match inner.broker.take_back(queue, &position).await {
            Ok(TakenBack::NeverDelivered) => Some(self.refused(refusal(spec, &fleet, &mine, shortage)).await),
            Ok(TakenBack::Delivered) | Err(_) => None,
        }
    }

    /// Refused, with nothing of it in the queue. A record that was made already must end too.
    async fn refused(&mut self, refusal: Refusal) -> End {
        if self.recorded {
            let error = flux_protocol::ExecutionError::new(ErrorKind::Throttled, refusal.message.clone());
            let outcome = Outcome::without_process(flux_protocol::OutcomeStatus::Failed, error);
            if let Err(error) = self.inner.end(&self.queued_record(), outcome).await {
                tracing::warn!(
                    execution_id = %self.id,
                    error = &error as &dyn std::error::Error,
                    "a refused call's record could not be ended; the reconciler will"
                );
            }
        }
        End::Refused(refusal)
    }

    /// The reply may have been lost on its way: a signal is sent at most once. The record is not.
    async fn look(&mut self) -> Option<End> {
        let record = self.inner.store.execution(self.id).await.ok().flatten()?;
        self.recorded = true;
        let ended = record.is_terminal();
        let outcome = record.outcome.filter(|_| ended)?;
        Some(self.called(record.attempt, record.agent_id, outcome).await)
    }

    /// The queue lost the message and no agent holds it: the same execution, the next attempt.
    async fn on_lost(&mut self) -> Option<End> {
        if self.place.call.has_event() {
            return None; // A reply came meanwhile; if it does not count, the search finds the call again.
        }
        if let Some(end) = self.look().await {
            return Some(end);
        }
        self.invocation.attempt = self.place.call.known().attempt.max(self.invocation.attempt) + 1;
        self.place.call.learn(|known| {
            known.attempt = self.invocation.attempt;
            known.position = None;
            known.holder = None;
        });
        self.holder = None;
        tracing::warn!(
            execution_id = %self.id,
            function = %self.function.spec().name,
            attempt = self.invocation.attempt,
            "the queue lost a call; published again"
        );
        metrics::counter!("flux_republished_total", "lane" => "call").increment(1);
        let at = Instant::now();
        self.publish_until = (at + PUBLISH_PATIENCE).min(self.timers.deadline);
        if let Err(error) = self.inner.hot.heat_again(self.function.queue(Lane::Call)).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot make the queue hot yet");
        }
        self.publish(Duration::ZERO);
        None
    }

    fn record_beside(&self) {
        let record = self.queued_record();
        let store = Arc::clone(&self.inner.store);
        self.inner.tasks.spawn("record-call", async move {
            if let Err(error) = store.insert_queued(record).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "a waiting call got no record");
            }
        });
    }

    /// The call as a queued record. It carries where to reply, so that another gateway that ends it can say so.
    fn queued_record(&self) -> ExecutionRecord {
        let known = self.place.call.known();
        ExecutionRecord {
            execution_id: self.id,
            function: self.function.spec().name.clone(),
            version: self.function.version.version,
            attempt: self.invocation.attempt,
            lane: Lane::Call,
            pool: self.function.spec().pool.clone(),
            phase: Phase::Queued,
            agent_id: None,
            queued_at: self.queued_at,
            started_at: None,
            status_at: now(),
            deadline: self.invocation.deadline,
            traceparent: self.invocation.traceparent.clone(),
            outcome: None,
            terminal_seq: None,
            position: known.position,
            invocation: Some(Invocation { payload: Payload::default(), args: Vec::new(), ..self.invocation.clone() }),
            redrive_of: None,
            notes: Vec::new(),
        }
    }

    /// Ends what is left of a call that nobody waits for any more. Its place is held until then: the agent's slot
    /// is not free before.
    async fn abandon(mut self: Box<Self>) {
        let inner = Arc::clone(&self.inner);
        let late = Instant::now() >= self.timers.deadline;
        if let Some(publishing) = self.publishing.take()
            && let Ok(Ok(stored)) = tokio::time::timeout(PUBLISH_PATIENCE, publishing).await
        {
            self.place.call.learn(|known| known.position = Some(stored.position));
        }
        let mut record = self.queued_record();
        if let Some(holder) = &self.holder {
            record.phase = Phase::Running;
            record.agent_id = Some(holder.clone());
        }
        let outcome = if late {
            let error = flux_protocol::ExecutionError::new(ErrorKind::Expired, "its deadline passed before it ended");
            Outcome::without_process(flux_protocol::OutcomeStatus::Failed, error)
        } else {
            super::cancel::cancelled("the caller disconnected")
        };
        inner.withdraw(&record, outcome, self.recorded).await;
        inner.discard_payload(&self.invocation);
    }
}

/// Whether a failed publish may have been stored all the same, so that only repeating it, or cancelling, settles it.
pub(super) fn may_be_stored(error: &BrokerError) -> bool {
    matches!(error, BrokerError::Unavailable { .. } | BrokerError::NotFound { .. })
}

pub(super) fn message_of(invocation: &Invocation) -> Message {
    Message { headers: invocation.headers(), body: invocation.body(), id: invocation.message_id() }
}
