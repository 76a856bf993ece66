//! One delivery's way from the queue to its recorded outcome.
//!
//! ```text
//!  delivery ─► here already? ── yes ─► its ack handle replaces the old one, nothing starts
//!                  │ no
//!                  ▼
//!           delivered before? ── another agent holds it, or recorded its outcome ─► let go, or acked
//!                  │ no
//!                  ▼
//!             prepare ── cancelled, expired, too many losses, nothing to run ──┐
//!                  │                                                           │
//!                  ▼                                                           ▼
//!                 run   ── ended, refused ─────────────────────────────────► finish: reply, status,
//!                  │                                                        its ack, ack of the delivery
//!                  └── launcher lost: given back, the next delivery is the next attempt
//! ```
//!
//! A function's failure is an outcome, and so is everything that keeps a function from starting. The one way that
//! has no outcome is an agent that goes away: the delivery is let go, and another agent starts the next attempt.

mod coalesce;
mod environment;
mod finish;
mod fresh;
mod outcome;
mod output;
mod prepare;
mod run;
mod secrets;
mod serve;
mod stdin;

use std::sync::Arc;

use flux_broker::Delivery;
use flux_protocol::{
    ErrorKind, ExecutionError, ExecutionId, FunctionVersion, Invocation, Outcome, OutcomeStatus, OutputLog, Phase,
    StatusMessage, Timestamp, agent::Redelivery, limits, output::OutputTaken, time, trace::TraceParent,
};
use tracing::Instrument as _;

use crate::{
    doubt::Holder,
    held::{Begin, Execution, Settled, Stop},
    node::Node,
    room::Room,
};
pub(crate) use output::Source;
use prepare::Prepared;
use run::Ran;
pub(crate) use secrets::Secrets;
pub(crate) use stdin::output_pipe;

/// What is known of the attempt under way; each status is made from it.
pub(crate) struct Attempt {
    node: Arc<Node>,
    execution: Arc<Execution>,
    invocation: Invocation,
    notes: Vec<String>,
    stored_at: Timestamp,
    /// Attempts lost with an agent or a launcher before this one.
    losses: u32,
    maybe_late: bool,
    /// Once it is known.
    version: Option<Arc<FunctionVersion>>,
    started_at: Option<Timestamp>,
    /// The room that its output takes until it is recorded.
    output_taken: OutputTaken,
    trace: TraceParent,
}

/// Sees a delivery through to its end.
pub(crate) async fn execute(node: Arc<Node>, delivery: Delivery, room: Room) {
    let Delivery { queue, headers, body, position, stored_at, redeliveries, pending: _, maybe_late, ack } = delivery;
    let find =
        |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    let (mut invocation, notes) = Invocation::from_message(find, body);
    let id = *invocation
        .execution_id
        .get_or_insert_with(|| ExecutionId::derived(&position.stream, position.sequence, stored_at));
    let number = invocation.attempt.saturating_add(redeliveries);
    let execution = match node.held.begin(id, &queue, number, &position) {
        Begin::Start(execution) => execution,
        Begin::AlreadyHere(execution) => {
            tracing::info!(execution_id = %id, redeliveries, "delivered again while it runs here");
            return node.ledger.hold(execution, ack).await;
        }
        Begin::Recorded => {
            tracing::info!(execution_id = %id, redeliveries, "delivered again after its outcome was recorded");
            if let Err(error) = ack.ack().await {
                tracing::debug!(execution_id = %id, error = &error as &dyn std::error::Error, "not acked");
            }
            return;
        }
    };
    let number = execution.attempt();
    let _end = EndWithoutAWord { node: Arc::clone(&node), execution: Arc::clone(&execution) };
    node.ledger.hold(Arc::clone(&execution), ack).await;
    if !notes.is_empty() {
        tracing::warn!(execution_id = %id, function = %queue.function, ?notes, "headers of its message make no sense and are ignored");
    }
    let trace = invocation.traceparent.as_deref().and_then(TraceParent::parse).unwrap_or_default();
    let span = tracing::info_span!(
        "execution",
        execution_id = %id,
        function = %queue.function,
        attempt = number,
        trace_id = %trace.trace_id_hex(),
    );
    let attempt = Attempt {
        node,
        execution,
        invocation,
        notes,
        stored_at,
        losses: redeliveries,
        maybe_late,
        version: None,
        started_at: None,
        output_taken: OutputTaken::default(),
        trace,
    };
    attempt.see_through(room).instrument(span).await;
}

/// Between questions about what another agent holds.
const MIND_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Lets go of an execution whose task ended before its end was settled: by a panic. The ledger drops its handle with
/// the next marks, and the broker delivers it again.
struct EndWithoutAWord {
    node: Arc<Node>,
    execution: Arc<Execution>,
}

impl Drop for EndWithoutAWord {
    fn drop(&mut self) {
        if self.execution.settled().is_some() {
            return;
        }
        tracing::error!(execution_id = %self.execution.id, "its task ended without an outcome; it begins again");
        self.execution.settle(Settled::GivenUp);
        self.execution.processes_gone(false);
        self.node.held.end(self.execution.id);
    }
}

impl Attempt {
    async fn see_through(mut self, mut room: Room) {
        match self.holder().await {
            Holder::Nobody => {}
            Holder::Another if !self.node.broker.capabilities().acks_by_message => {
                tracing::info!(redeliveries = self.losses, "another agent holds it; it is kept for that one");
                return self.mind(room).await;
            }
            Holder::Another => {
                tracing::info!(redeliveries = self.losses, "another agent holds it; it is left to that one");
                return self.abandon().await;
            }
            Holder::Recorded => return self.recorded_elsewhere().await,
        }
        let (outcome, by_cancel) = match self.prepare(&mut room).await {
            Prepared::Over(outcome) => (outcome, false),
            Prepared::Stopped(Stop::Cancelled(reason)) => (cancelled(&reason), true),
            Prepared::Stopped(Stop::Abandoned) => return self.go_away().await,
            Prepared::Ready(ready) => match self.run_or_serve(&ready).await {
                Ran::Ended { outcome, by_cancel } => (*outcome, by_cancel),
                Ran::Abandoned => return self.go_away().await,
                Ran::Lost => return self.give_back(room).await,
            },
        };
        self.execution.processes_gone(by_cancel);
        self.finish(outcome, room).await;
    }

    /// Whether another agent holds what was delivered again. A cancel waits for that: its answer is that nothing runs.
    async fn holder(&self) -> Holder {
        let in_doubt = self.maybe_late || self.node.doubts.has_any_about(self.losses, self.stored_at);
        if !in_doubt || self.losses > limits::HOLDERS_BELIEVED {
            return Holder::Nobody;
        }
        self.execution.set_in_doubt(true);
        let asked = Redelivery {
            execution_id: self.execution.id,
            position: self.execution.position().clone(),
            attempt: self.execution.attempt(),
        };
        let holder = self.node.doubts.holder(asked).await;
        self.execution.set_in_doubt(false);
        holder
    }

    async fn recorded_elsewhere(self) {
        tracing::info!(redeliveries = self.losses, "another agent recorded its outcome");
        self.node.ledger.ack(&self.execution).await;
        self.execution.processes_gone(false);
        self.node.held.end(self.execution.id);
    }

    /// Where an ack counts for its own delivery alone, the one that the holder was given counts for nothing any more, and this one
    /// would go round and round. It is kept until the holder recorded its outcome, or is gone. It takes no room.
    async fn mind(self, room: Room) {
        drop(room);
        // A cancel is the holder's to answer.
        self.execution.processes_gone(false);
        loop {
            // Should it come to a third, that one asks the holder.
            self.execution.set_in_doubt(true);
            let stopped = tokio::time::timeout(MIND_EVERY, self.execution.until_stopped()).await;
            if matches!(stopped, Ok(Stop::Abandoned)) {
                return self.go_away().await;
            }
            if stopped.is_ok() {
                tokio::time::sleep(MIND_EVERY).await;
            }
            match self.holder().await {
                Holder::Another => {}
                Holder::Recorded => return self.recorded_elsewhere().await,
                Holder::Nobody => {
                    self.execution.settle(Settled::GivenUp);
                    self.node.held.end(self.execution.id);
                    return self.node.ledger.give_back(self.execution.id).await;
                }
            }
        }
    }

    /// All that it printed, at its end.
    fn take_output(&mut self) -> OutputLog {
        let (log, taken) = std::mem::take(&mut *self.execution.output.lock()).finish_and_hold();
        self.output_taken = taken;
        log
    }

    /// No outcome: whoever else holds it goes on, or another agent starts the next attempt once the broker misses our marks.
    async fn abandon(self) {
        self.node.ledger.release(&self.execution).await;
        self.execution.processes_gone(false);
        self.node.held.end(self.execution.id);
    }

    async fn go_away(self) {
        tracing::info!("given up: this agent goes away");
        self.abandon().await;
    }

    /// Its launcher was lost, and its processes with it. The number of the next attempt must grow also where this
    /// agent does not live to give it, so it is the broker's to count. Out of the table before it comes again.
    async fn give_back(self, room: Room) {
        tracing::warn!(losses = self.losses + 1, "its launcher was lost; it is given back for the next attempt");
        drop(room);
        self.execution.settle(Settled::GivenUp);
        self.execution.processes_gone(false);
        self.node.held.end(self.execution.id);
        self.node.ledger.give_back(self.execution.id).await;
    }

    /// A transition of this execution, by all that is known now.
    fn status(&self, phase: Phase, outcome: Option<Outcome>) -> StatusMessage {
        let queue = &self.execution.queue;
        StatusMessage {
            execution_id: self.execution.id,
            function: queue.function.clone(),
            // Where it could not be found, the one that was asked for.
            version: self.version.as_ref().map(|version| version.version).or(self.invocation.version).unwrap_or(0),
            attempt: self.execution.attempt(),
            lane: queue.lane,
            pool: queue.pool.clone(),
            phase,
            agent_id: Some(self.node.id.clone()),
            queued_at: self.stored_at,
            started_at: self.started_at,
            at: time::now(),
            deadline: self.invocation.deadline,
            traceparent: Some(self.invocation.traceparent.clone().unwrap_or_else(|| self.trace.to_string())),
            outcome,
            invocation: None,
            notes: self.notes.clone(),
        }
    }
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Outcome {
    Outcome::without_process(OutcomeStatus::Failed, ExecutionError::new(kind, message))
}

/// Cancelled before it started.
fn cancelled(reason: &str) -> Outcome {
    Outcome::without_process(OutcomeStatus::Cancelled, ExecutionError::new(ErrorKind::Cancelled, reason))
}
