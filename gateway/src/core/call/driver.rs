//! One sync call from its publish to its end: what may happen to it, in any order, and what is done then.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_broker::{BrokerError, Stored, TakenBack};
use flux_protocol::{
    AgentId, ErrorCode, ErrorKind, ExecutionError, ExecutionId, ExecutionRecord, Invocation, Lane, Outcome,
    OutcomeStatus, Payload, Phase, StatusMessage, Timestamp, limits, subject, time::now,
};
use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::Instant;

use super::{
    super::{
        Called, Inner,
        admission::{Admission, Shortage, decide, not_picked_up, refusal},
        cancel::cancelled,
        function_cache::Runnable,
        in_flight::{CallEvent, Place},
        payloads::payload_of,
        publish_again::queued_record,
        verdict::{Holders, Verdict},
    },
    ACK_LATE, LOOK_EVERY, PUBLISH_PATIENCE, TELL_AGENT_AFTER, may_be_stored, message_of,
};
use crate::refusal::Refusal;

/// How a driven call ended.
pub(super) enum End {
    Called(Called),
    /// Refused, and nothing of it is left anywhere.
    Refused(Refusal),
    /// It ran to its end, or is recorded, and what becomes of it cannot be told.
    Untold(Refusal),
    /// Given up on; whatever is left of it is to be ended behind the answer.
    Abandoned(Refusal),
    /// Nothing was published, since another took its key over and was first.
    Anothers,
}

pub(super) struct Timers {
    pub(super) deadline: Instant,
    /// When to tell one agent by name.
    pub(super) tell_agent: Option<Instant>,
    /// When to call every agent, not only those that wait at its queue.
    pub(super) call_agents: Option<Instant>,
    /// When to look whether an agent picked it up.
    pub(super) pickup: Option<Instant>,
    /// When to give it a record.
    pub(super) record: Option<Instant>,
    /// When to ask the store, should the reply have been lost.
    pub(super) look: Instant,
}

impl Timers {
    fn next(&self) -> Instant {
        [Some(self.deadline), self.tell_agent, self.call_agents, self.pickup, self.record, Some(self.look)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.deadline)
    }
}

type Publishing = BoxFuture<'static, Result<Stored, BrokerError>>;

pub(super) struct Driver {
    pub(super) inner: Arc<Inner>,
    pub(super) function: Arc<Runnable>,
    pub(super) id: ExecutionId,
    pub(super) queued_at: Timestamp,
    pub(super) place: Place,
    pub(super) invocation: Invocation,
    /// Until it is in the invocation, or in the blob seam.
    pub(super) payload: Bytes,
    pub(super) holders: Holders,
    pub(super) holder: Option<AgentId>,
    /// The publish whose ack has not come yet.
    pub(super) publishing: Option<Publishing>,
    pub(super) publish_until: Instant,
    pub(super) publish_backoff: Duration,
    pub(super) timers: Timers,
    pub(super) probed: Option<Shortage>,
    /// Agents that were told of it.
    pub(super) told: usize,
    /// Nobody took it in its grace although there was room, and all agents were called once more.
    pub(super) called_again: bool,
    /// What agents were told that it is refused with, where not all of them heard: the others may start it, those may not.
    pub(super) withdrawn: Option<Refusal>,
    pub(super) recorded: bool,
}

impl Driver {
    pub(super) async fn run(&mut self, keyed: bool) -> End {
        if keyed && let Some(end) = self.record_first().await {
            return end;
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
        let tell = self.inner.hot.waits_to_be_told(&queue.pool);
        self.publish(Duration::ZERO);
        if tell {
            // Once it was sent, so that the agent finds it.
            if let Some(stored) = self.publishing.as_mut().and_then(|publishing| publishing.now_or_never()) {
                self.publishing = None;
                if let Some(end) = self.on_published(stored).await {
                    return end;
                }
            }
            self.tell_agent();
        }
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

    /// The key stands for this execution: whoever attaches to it must find a record. Who took the key over, as this gateway stood
    /// still or another's clock is ahead, may have been first: then the record is theirs, and so is the execution.
    async fn record_first(&mut self) -> Option<End> {
        let store = Arc::clone(&self.inner.store);
        if let Err(error) = store.insert_queued(self.queued_record()).await {
            return Some(End::Refused(error.into()));
        }
        match store.execution(self.id).await {
            Ok(Some(record)) if record.lane == Lane::Call && !record.is_terminal() => {
                self.recorded = true;
                None
            }
            Ok(_) => Some(End::Anothers),
            // There is a record, of whomever: another execution must not be made for the key. If it is this call's, the reconciler ends it.
            Err(error) => Some(End::Untold(error.into())),
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
                Some(outcome) => Some(self.ended(status.attempt, status.agent_id.clone(), outcome).await),
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
                self.timers.tell_agent = None;
                self.timers.call_agents = None;
                self.timers.pickup = None;
                self.was_picked_up();
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
            Verdict::Ended => {
                self.was_picked_up();
                Some(self.ended(reply.attempt, reply.agent_id, reply.outcome?).await)
            }
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

    /// What was doubtful when it was admitted.
    fn was_picked_up(&mut self) {
        if self.probed.take().is_some() {
            self.place.found_room();
        }
    }

    /// An agent said how it ended. One that was told that it is refused refuses it: nothing ran, and that is the answer.
    async fn ended(&mut self, attempt: u32, agent_id: Option<AgentId>, outcome: Outcome) -> End {
        let said = outcome.error.as_ref().map(|error| error.message.as_str());
        let as_told = outcome.status == OutcomeStatus::Cancelled
            && self.withdrawn.as_ref().is_some_and(|refusal| said == Some(refusal.message.as_str()));
        match self.withdrawn.take() {
            Some(refusal) if as_told => End::Refused(refusal),
            _ => self.called(attempt, agent_id, outcome).await,
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
        if self.timers.tell_agent.is_some_and(|due| at >= due) {
            self.tell_agent();
        }
        if self.timers.call_agents.take_if(|due| at >= *due).is_some() {
            self.inner.hot.call_agents(self.function.queue(Lane::Call));
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

    /// Tells one agent that the call waits. It may have no credit to spare, or be gone: some milliseconds later another.
    fn tell_agent(&mut self) {
        self.inner.hot.tell_one(self.function.queue(Lane::Call), self.told, Some(Arc::clone(&self.function)));
        self.told += 1;
        self.timers.tell_agent = (self.told == 1).then(|| Instant::now() + TELL_AGENT_AFTER);
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
        if self.probed.is_none() && !self.called_again && decide(spec, &fleet, &mine) == Admission::Admit {
            // There is room, by heartbeats: agents that were busy with much else get the same time again, by the end of which
            // each has said anew what it has.
            self.called_again = true;
            inner.hot.call_agents(queue);
            self.timers.pickup = Some(Instant::now() + limits::PICKUP_GRACE);
            return None;
        }
        // A probe that was not picked up within its grace is what heartbeats said it would be.
        let shortage = self.probed.or_else(|| not_picked_up(spec, &fleet, &mine))?;
        if !inner.broker.capabilities().take_back {
            return self.withdraw_from_agents(refusal(spec, &fleet, &mine, shortage)).await;
        }
        match inner.broker.was_delivered(queue, &position).await {
            Ok(Some(false)) => {}
            Ok(Some(true)) => {
                self.was_picked_up();
                return None;
            }
            Ok(None) | Err(_) => return None,
        }
        match inner.broker.take_back(queue, &position).await {
            Ok(TakenBack::NeverDelivered) => {
                if self.probed.is_some() {
                    self.place.found_none();
                }
                Some(self.refused(refusal(spec, &fleet, &mine, shortage)).await)
            }
            Ok(TakenBack::Delivered) | Err(_) => None,
        }
    }

    /// Where the queue gives nothing back: every agent says whether it has it, and refuses it from then on.
    async fn withdraw_from_agents(&mut self, refusal: Refusal) -> Option<End> {
        let inner = Arc::clone(&self.inner);
        let online = inner.agents_online();
        let held = match inner.ask_withdrawn(self.id, &refusal.message, online.len()).await {
            Ok(held) => held,
            Err(_) => {
                self.withdrawn = Some(refusal);
                return None;
            }
        };
        if held.holds(self.id) {
            self.was_picked_up();
            return None;
        }
        if !held.by_nobody(self.id, &online) {
            self.withdrawn = Some(refusal);
            return None;
        }
        if self.probed.is_some() {
            self.place.found_none();
        }
        Some(self.refused(refusal).await)
    }

    /// Refused, with nothing of it in the queue. A record that was made already must end too.
    async fn refused(&mut self, refusal: Refusal) -> End {
        if self.recorded {
            let error = ExecutionError::new(ErrorKind::Throttled, refusal.message.clone());
            let outcome = Outcome::without_process(OutcomeStatus::Failed, error);
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
        Some(self.ended(record.attempt, record.agent_id, outcome).await)
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
        // The queue may have lost its tables too.
        let version = &self.function.version;
        if let Err(refusal) = self.inner.say_version(version.name(), version.version).await {
            tracing::debug!(
                error = &refusal as &dyn std::error::Error,
                "cannot put its version where agents find it yet"
            );
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
        let invocation = Invocation { payload: Payload::default(), args: Vec::new(), ..self.invocation.clone() };
        let (queue, version) = (self.function.queue(Lane::Call), self.function.version.version);
        let position = self.place.call.known().position;
        let record = queued_record(self.id, queue, version, invocation, position, self.queued_at);
        ExecutionRecord { status_at: now(), ..record }
    }

    /// Ends what is left of a call that nobody waits for any more. Its place is held until then: the agent's slot
    /// is not free before.
    pub(super) async fn abandon(mut self: Box<Self>) {
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
            let error = ExecutionError::new(ErrorKind::Expired, "its deadline passed before it ended");
            Outcome::without_process(OutcomeStatus::Failed, error)
        } else {
            cancelled("the caller disconnected")
        };
        inner.withdraw(&record, outcome, self.recorded).await;
        inner.discard_payload(&self.invocation);
    }
}
