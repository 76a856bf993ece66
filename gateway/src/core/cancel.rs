//! Ending an execution that is queued or running.
//!
//! What is queued is taken back. That the queue never delivered it is not enough to say that it never ran: a queue that was
//! killed may have forgotten a delivery, and the agent that got it goes on. So agents are asked in any case. Each answers
//! that it holds it, or that it does not and will not start it for a minute, since the delivery may be under way to it; and
//! the table of cancelled executions, which agents read before any attempt after the first, covers messages whose place is
//! not known. The cancel is confirmed when every agent that may live has said that it does not hold it, or when the one
//! that held it answers (its processes are gone then), or when its lease has ended and nobody answered.

use std::{sync::Arc, time::Duration};

use flux_broker::{BrokerError, Table, TakenBack};
use flux_protocol::{
    AgentId, ErrorCode, ErrorKind, ExecutionError, ExecutionId, ExecutionRecord, Lane, Outcome, OutcomeStatus, Phase,
    StatusMessage,
    agent::{CancelReply, CancelRequest},
    subject::{self, QueueName},
    time::now,
};
use tokio::time::Instant;

use super::{Gateway, Inner, waiters::next_terminal};
use crate::refusal::Refusal;

/// One question to all agents; the one that holds the execution answers once its processes are gone.
const ASK: Duration = Duration::from_secs(2);
/// After its last sign of life an agent's lease has surely ended.
const LEASE: Duration = Duration::from_secs(3);
/// Longest wait for an agent that lives and does not confirm: `stop_grace` may take its time.
const PATIENCE: Duration = Duration::from_secs(20);
/// An attempt that fails while it is being cancelled is followed by the next, which is then cancelled.
const ATTEMPTS_CHASED: usize = 3;
/// The record of what ended by itself, so that a next attempt can be told.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);

/// What the agents said to a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelAnswer {
    Cancelled,
    /// It ended by itself before the cancel reached it.
    EndedItself,
    /// Nobody holds it any more.
    NobodyHolds,
    /// Its agent lives and has not confirmed.
    Unconfirmed,
}

pub(super) fn cancelled(reason: &str) -> Outcome {
    Outcome::without_process(OutcomeStatus::Cancelled, ExecutionError::new(ErrorKind::Cancelled, reason))
}

impl Gateway {
    /// Cancels a queued or running execution; done when it is.
    ///
    /// # Errors
    /// It is unknown, or has its outcome already.
    pub async fn cancel(&self, id: ExecutionId) -> Result<(), Refusal> {
        for _ in 0..ATTEMPTS_CHASED {
            if self.cancel_once(id).await?.is_some() {
                return Ok(());
            }
        }
        Err(Refusal::new(
            ErrorCode::DeadlineExceeded,
            format!("`{id}` failed and was tried again each time that it was to be cancelled; try once more"),
        ))
    }

    /// `None`: the attempt that was to be cancelled failed by itself, and another one follows.
    async fn cancel_once(&self, id: ExecutionId) -> Result<Option<()>, Refusal> {
        const REASON: &str = "cancelled by DELETE /executions";
        let inner = &self.inner;
        // Before the record is read, so that an end between the two is not missed.
        let mut statuses = inner.broker.listen(&subject::statuses_of(id)).await?;
        let record = match inner.store.execution(id).await? {
            Some(record) => record,
            None => inner.record_in_flight(id).ok_or_else(|| Inner::execution_not_found(id))?,
        };
        if record.is_terminal() {
            return Err(already_terminal(&record));
        }
        let outcome = cancelled(REASON);
        if record.lane == Lane::Invoke {
            // The next attempt's message may be where the record does not say: the record may not tell of the last
            // attempt's end yet, a retry that was due was moved, and what was published again after a loss has its
            // new place in the record later. Before agents are asked: one that starts it after that reads this first.
            // And before it is taken back: on a full disk a queue takes back what is there again after its death.
            inner.broker.put(Table::Cancelled, &id.to_string(), REASON.into()).await?;
        }
        inner.take_back(&record).await?;
        let answer = if inner.nobody_holds(&record, REASON).await {
            CancelAnswer::NobodyHolds
        } else {
            tokio::select! {
                answer = inner.cancel_on_agents(id, REASON, record.agent_id.as_ref()) => answer?,
                status = next_terminal(&mut statuses) => match status.outcome.map(|outcome| outcome.status) {
                    Some(OutcomeStatus::Cancelled) => CancelAnswer::Cancelled,
                    _ => CancelAnswer::EndedItself,
                },
            }
        };
        match answer {
            CancelAnswer::NobodyHolds => inner.end(&record, outcome).await?,
            CancelAnswer::Cancelled | CancelAnswer::EndedItself => {}
            CancelAnswer::Unconfirmed => {
                return Err(Refusal::new(
                    ErrorCode::DeadlineExceeded,
                    format!(
                        "the agent that runs `{id}` was told to cancel it and has not confirmed within {} s; GET /executions/{id} tells when it has",
                        PATIENCE.as_secs()
                    ),
                ));
            }
        }
        // The first end that was recorded is the one, and it may be of before this. And what an agent says and nobody has
        // written down goes with the agent: its message would start it again.
        let within = if answer == CancelAnswer::EndedItself { RECORDED_WITHIN } else { PATIENCE };
        match inner.settled(id, record.attempt, within).await {
            Some(record) if !record.is_terminal() => Ok(None),
            Some(record) if record.outcome.as_ref().is_none_or(|end| end.status != OutcomeStatus::Cancelled) => {
                Err(already_terminal(&record))
            }
            None if answer == CancelAnswer::EndedItself => Ok(None),
            None => Err(Refusal::new(
                ErrorCode::DeadlineExceeded,
                format!(
                    "`{id}` runs nowhere now, but its end was not recorded within {} s; GET /executions/{id} tells once it is",
                    PATIENCE.as_secs()
                ),
            )),
            Some(_) => Ok(Some(())),
        }
    }
}

fn already_terminal(record: &ExecutionRecord) -> Refusal {
    Refusal::new(
        ErrorCode::AlreadyTerminal,
        format!("`{}` has ended already: {}", record.execution_id, record.status_text()),
    )
    .with_details(serde_json::json!({ "status": record.status_text() }))
}

pub(super) fn queue_of(record: &ExecutionRecord) -> QueueName {
    QueueName::new(record.lane, record.pool.clone(), record.function.clone())
}

impl Inner {
    /// Ends a call that nobody waits for any more: out of the queue, or off its agent.
    ///
    /// Here the queue's word is enough: a call lies in its memory, so that what was killed and forgot deliveries has lost
    /// the call as well, and says so by its epoch.
    pub(super) async fn withdraw(self: &Arc<Self>, record: &ExecutionRecord, outcome: Outcome, recorded: bool) {
        let ended = match self.take_back(record).await {
            Ok(Some(TakenBack::NeverDelivered)) if !recorded => return,
            Ok(Some(TakenBack::NeverDelivered)) => true,
            Ok(_) | Err(_) => false,
        };
        if !ended {
            let reason = outcome.error.as_ref().map_or("cancelled", |error| error.message.as_str());
            match self.cancel_on_agents(record.execution_id, reason, record.agent_id.as_ref()).await {
                Ok(CancelAnswer::NobodyHolds) if recorded || record.agent_id.is_some() => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(
                        execution_id = %record.execution_id,
                        error = &error as &dyn std::error::Error,
                        "cannot cancel an abandoned call; its deadline ends it"
                    );
                    return;
                }
            }
        }
        if let Err(error) = self.end(record, outcome).await {
            tracing::warn!(
                execution_id = %record.execution_id,
                error = &error as &dyn std::error::Error,
                "an abandoned call's record could not be ended; the reconciler will"
            );
        }
    }

    /// Removes the record's message, where its place is known and the queue can. `None`: it cannot be told whether
    /// it ran.
    pub(super) async fn take_back(&self, record: &ExecutionRecord) -> Result<Option<TakenBack>, BrokerError> {
        let Some(position) = record.position.as_ref().filter(|_| self.broker.capabilities().take_back) else {
            return Ok(None);
        };
        match self.broker.take_back(&queue_of(record), position).await {
            Ok(taken) => Ok(Some(taken)),
            Err(BrokerError::NotFound { .. } | BrokerError::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Publishes a terminal status for an execution that no agent has, and tells whoever waits for a reply.
    pub(super) async fn end(&self, record: &ExecutionRecord, outcome: Outcome) -> Result<(), BrokerError> {
        let buried = record.lane == Lane::Invoke && outcome.status == OutcomeStatus::Failed;
        let status = StatusMessage {
            execution_id: record.execution_id,
            function: record.function.clone(),
            version: record.version,
            // The end of a failed attempt is in the log already; what ends is the one that would have followed.
            attempt: record.attempt + u32::from(record.phase == Phase::Ended),
            lane: record.lane,
            pool: record.pool.clone(),
            phase: Phase::Ended,
            agent_id: None,
            queued_at: record.queued_at,
            started_at: record.started_at,
            at: now(),
            deadline: record.deadline,
            traceparent: record.traceparent.clone(),
            outcome: Some(outcome),
            invocation: record.invocation.clone().filter(|_| buried).map(Box::new),
            notes: Vec::new(),
        };
        let reply_to = record.invocation.as_ref().and_then(|invocation| invocation.reply_to.clone());
        self.end_with(status, reply_to).await
    }

    /// In the order that agents keep too: the reply, then the status.
    pub(super) async fn end_with(&self, status: StatusMessage, reply_to: Option<String>) -> Result<(), BrokerError> {
        let encoded = bytes::Bytes::from(
            serde_json::to_vec(&status).map_err(|error| BrokerError::refused("encode a status", error))?,
        );
        if let Some(reply_to) = reply_to.filter(|reply_to| subject::may_reply_to(reply_to)) {
            self.broker.signal(reply_to, encoded.clone()).await?;
        }
        self.broker.publish_status_bytes(self.id.as_str(), &status, encoded).await?;
        if let Some(call) = self.in_flight.find_execution(status.execution_id) {
            call.tell(super::in_flight::CallEvent::Ended(Box::new(status)));
        }
        Ok(())
    }

    /// Tells every agent until one answers, or the lease of whoever had it has ended.
    pub(super) async fn cancel_on_agents(
        &self,
        id: ExecutionId,
        reason: &str,
        holder: Option<&AgentId>,
    ) -> Result<CancelAnswer, BrokerError> {
        let request = serde_json::to_vec(&CancelRequest { reason: reason.to_owned() })
            .map_err(|error| BrokerError::refused("encode a cancel", error))?;
        let request = bytes::Bytes::from(request);
        let began = Instant::now();
        loop {
            let asked = self.broker.ask(subject::cancel(id), request.clone(), ASK).await?;
            let reply = asked.and_then(|signal| serde_json::from_slice::<CancelReply>(&signal.body).ok());
            if let Some(reply) = reply {
                return Ok(if reply.cancelled { CancelAnswer::Cancelled } else { CancelAnswer::EndedItself });
            }
            let waited = began.elapsed();
            let lives = holder.is_some_and(|agent| self.fleet.is_online(agent));
            if waited >= PATIENCE {
                return Ok(if lives { CancelAnswer::Unconfirmed } else { CancelAnswer::NobodyHolds });
            }
            if waited >= LEASE && !lives {
                return Ok(CancelAnswer::NobodyHolds);
            }
            // Answers "nobody listens" at once.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether every agent there may be has said that it does not hold an execution that was not seen running, and will not
    /// start it. Its message is removed by now or its cancel is in the table, so none of them gets it later than that minute.
    async fn nobody_holds(&self, record: &ExecutionRecord, reason: &str) -> bool {
        if record.position.is_none() || record.phase == Phase::Running {
            return false;
        }
        self.withdrawn_everywhere(record.execution_id, reason).await
    }

    /// The same of an execution whose message was taken back.
    pub(super) async fn withdrawn_everywhere(&self, id: ExecutionId, reason: &str) -> bool {
        // One that fell silent with the queue, or was not heard of yet, may come back and hold it: its lease has to end.
        if self.fleet.may_have_silent() {
            return false;
        }
        let online = self.agents_online();
        match self.ask_withdrawn(id, reason, online.len()).await {
            Ok(held) => held.by_nobody(id, &online),
            Err(_) => false,
        }
    }

    /// A call that this gateway waits for and that has no record yet.
    fn record_in_flight(&self, id: ExecutionId) -> Option<ExecutionRecord> {
        let call = self.in_flight.find_execution(id)?;
        let known = call.known();
        Some(ExecutionRecord {
            execution_id: id,
            function: call.queue.function.clone(),
            version: 0,
            attempt: known.attempt,
            lane: call.queue.lane,
            pool: call.queue.pool.clone(),
            phase: if known.holder.is_some() { Phase::Running } else { Phase::Queued },
            agent_id: known.holder,
            queued_at: id.created_at(),
            started_at: None,
            status_at: now(),
            deadline: None,
            traceparent: None,
            outcome: None,
            terminal_seq: None,
            position: known.position,
            invocation: None,
            redrive_of: None,
            notes: Vec::new(),
        })
    }

    /// Waits until the store has the end of an execution too, or that another attempt follows this one.
    async fn settled(&self, id: ExecutionId, attempt: u32, within: Duration) -> Option<ExecutionRecord> {
        let until = Instant::now() + within;
        let mut pause = Duration::from_millis(2);
        while Instant::now() < until {
            if let Ok(Some(record)) = self.store.execution(id).await
                && (record.is_terminal() || record.attempt > attempt)
            {
                return Some(record);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        None
    }
}
