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

mod driver;

use std::{sync::Arc, time::Duration};

use flux_broker::{BrokerError, Message};
use flux_protocol::{
    ErrorCode, ExecutionId, FunctionName, FunctionSpec, Invocation, Lane, Payload, function::PressureBehavior, limits,
    subject, time::now,
};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    Called, Gateway, Inner, InvokeRequest,
    admission::{Admission, Summary, refusal},
    function_cache::Runnable,
    idempotency::Claimed,
    in_flight::nonce_of,
    verdict::Holders,
};
use crate::refusal::Refusal;
use driver::{Driver, End, Timers};

/// A call that is not over after this may not have been taken: one agent is told of it.
const TELL_AGENT_AFTER: Duration = Duration::from_millis(5);
/// A call that is neither over nor said to run after this was taken neither by those that wait at its queue nor by those that
/// were told: agents say what they run after [`limits::RUNNING_STATUS_AFTER`].
const CALL_AGENTS_AFTER: Duration = limits::RUNNING_STATUS_AFTER.saturating_add(Duration::from_millis(50));
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
    /// Runs a function and waits for its outcome. Dropping the future cancels the execution, unless it has an idempotency
    /// key: others may have been promised its outcome.
    ///
    /// # Errors
    /// It was not run, or not to its end in time. A function's own failure is an outcome.
    pub async fn call(&self, name: &FunctionName, request: InvokeRequest) -> Result<Called, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        request.check()?;
        let function = inner.invocable(name, request.version).await?;
        function.require_code()?;
        inner.in_flight.require_room(name)?;
        let started = Instant::now();
        let called = inner.call_once(&function, request).await;
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

/// A call without an outcome to tell.
pub(super) struct NotCalled {
    pub(super) refusal: Refusal,
    /// It ran, is in the queue as far as is known, or others may be going on with it: its idempotency key must go on standing for it.
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
        claimed: Option<&Claimed>,
    ) -> Result<Called, NotCalled> {
        let spec = function.spec();
        let reply_to = subject::reply(&self.id);
        let nonce = nonce_of(&reply_to).unwrap_or_default();
        let fleet = self.fleet_for(function);
        let queue = function.queue(Lane::Call);
        let (admission, place) = match self.in_flight.admit(nonce, id, queue, spec, &fleet) {
            Ok(admitted) => admitted,
            Err((Admission::Refuse(shortage), mine)) => {
                let refusal = refusal(spec, &fleet, &mine, shortage);
                return Err(NotCalled { refusal, may_run: claimed.is_some_and(Claimed::is_shared) });
            }
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
                tell_agent: Some(began + TELL_AGENT_AFTER),
                call_agents: Some(began + CALL_AGENTS_AFTER),
                pickup,
                record: (pickup.is_none() || claimed.is_some()).then(|| began + RECORD_AFTER),
                look: began + LOOK_EVERY,
            },
            payload: request.payload,
            probed: match admission {
                Admission::Probe(shortage) => Some(shortage),
                _ => None,
            },
            told: 0,
            called_again: false,
            withdrawn: None,
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
        match driver.run(claimed.is_some()).instrument(span).await {
            End::Called(called) => {
                guard.finish();
                Ok(called)
            }
            End::Refused(refusal) => {
                // Nobody goes on with what has a record.
                let may_run = !driver.recorded && claimed.is_some_and(Claimed::is_shared);
                guard.finish();
                Err(NotCalled { refusal, may_run })
            }
            End::Anothers => {
                guard.finish();
                match self.attach(id, queued_at, began + allowed).await {
                    Ok(Some(called)) => Ok(called),
                    Ok(None) => Err(NotCalled { refusal: without_a_word(id), may_run: true }),
                    Err(refusal) => Err(NotCalled { refusal, may_run: true }),
                }
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

pub(super) fn without_a_word(id: ExecutionId) -> Refusal {
    let message = format!("the call ended without a word; GET /executions/{id} tells what became of it");
    Refusal::new(ErrorCode::Internal, message)
}

/// Whether a failed publish may have been stored all the same, so that only repeating it, or cancelling, settles it.
pub(super) fn may_be_stored(error: &BrokerError) -> bool {
    matches!(error, BrokerError::Unavailable { .. } | BrokerError::NotFound { .. })
}

pub(super) fn message_of(invocation: &Invocation) -> Message {
    Message { headers: invocation.headers(), body: invocation.body(), id: invocation.message_id() }
}
