//! What stands behind every hint and every signal: one gateway at a time (a lease in the store) compares what should be with
//! what is, and puts right the difference. It takes no input, keeps nothing that matters, and may stop anywhere.
//!
//! Each round:
//! 1. queues with messages that are cold, or do not move, are made hot; messages for unknown functions are taken;
//! 2. open executions that were silent for a while are looked after ([`reconcile_plan`](super::reconcile_plan));
//! 3. hot queues without work for long are cooled;
//! 4. now and then: history that is old enough goes, with its blobs; once a day archives that no version names.
//!
//! The first of these each gateway does once when its connection comes, whoever has the lease: a gateway that died keeps
//! the lease for some seconds, and what it had accepted is not to wait for that.
//!
//! It does not touch what agents do by themselves: redelivery, deadlines and retries are theirs and the recorder's.

use std::{collections::HashMap, sync::Arc, time::Duration};

use flux_broker::{BrokerError, QueueDepth, TakenBack};
use flux_protocol::{
    AgentId, ErrorKind, ExecutionError, ExecutionId, ExecutionRecord, Lane, Outcome, OutcomeStatus, Phase, PoolName,
    Timestamp, limits, subject::QueueName, time::now,
};
use flux_store::StoreError;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Inner,
    cancel::queue_of,
    lost_calls::Held,
    reconcile_plan::{Action, Facts, is_overdue, is_suspect, plan},
};
use crate::refusal::Refusal;

const LEASE: &str = flux_store::RECONCILER_LEASE;
/// Survives two missed rounds.
const LEASE_TTL: Duration = Duration::from_secs(6);
/// Executions looked at in one round; the next goes on where it ended. Each costs a question to the broker, except
/// after a stream was lost, when the answer is known.
const LOOKED_AT: usize = 1_000;
const SWEPT: usize = 20_000;
/// Whole records, payload included: a few at a time, since each may have half a MB.
const PAGE: usize = 64;
/// Round trips to the broker at once.
const AT_ONCE: usize = 64;
/// Agents of a queue that are told of its messages in turn, a look each.
const RANKS: usize = 3;
/// Fewer statuses than this in the log are a steady flow, of which each is recorded within a moment.
const STEADY_BACKLOG: u64 = 256;
/// With a steady flow, how long nothing was heard of what is judged.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// After the connection came (back), agents get this long to come back too before anything is judged lost.
const SETTLE: Duration = Duration::from_secs(3);
const COOLED_AT_ONCE: usize = 50;
const EXPIRE_EVERY: Duration = Duration::from_secs(30);
const EXPIRED_AT_ONCE: usize = 500;
/// Whether a day is over since archives were collected; also after it failed.
const COLLECT_TRIED_EVERY: Duration = Duration::from_secs(600);

/// Runs for as long as the gateway does.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut reconciler = Reconciler::default();
    let mut ticks = tokio::time::interval(limits::RECONCILE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut connection = (0, Instant::now());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = inner.reconcile_now.notified() => {}
        }
        let connects = *inner.broker.connection().borrow();
        if connects == 0 {
            continue;
        }
        if connects != connection.0 {
            connection = (connects, Instant::now());
            reconciler.woken = false;
        }
        // Agents lost the broker when this gateway did, and are silent until they are back.
        reconciler.settled = connection.1.elapsed() >= SETTLE;
        if reconciler.settled
            && let Err(error) = inner.search_orphaned_calls().await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot ask who runs the calls of silent agents");
        }
        metrics::gauge!("flux_calls_in_flight")
            .set(f64::from(u32::try_from(inner.in_flight.len()).unwrap_or(u32::MAX)));
        let lead = match Lead::take(&inner).await {
            Ok(Some(lead)) => lead,
            Ok(None) => {
                // Not this gateway's turn. Work that waited while none was there does not wait for a dead one's lease.
                if !reconciler.woken
                    && let Err(error) = reconciler.wake_queues(&inner).await
                {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot look at what is queued");
                }
                continue;
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the reconciler cannot get its lease");
                continue;
            }
        };
        if let Err(refusal) = reconciler.round(&inner, &lead).await {
            metrics::counter!("flux_reconciler_errors_total").increment(1);
            tracing::warn!(
                error = &refusal as &dyn std::error::Error,
                "a round of the reconciler did not end; the next begins anew"
            );
        }
    }
}

/// The lease as a round holds it. A gateway that was stopped in the middle of a round finds another one at work when it goes
/// on, and what it was about to do may have been done long since: so it asks again before it does anything to an execution.
struct Lead {
    token: u64,
    /// By a clock that nobody sets.
    until: Mutex<Instant>,
}

impl Lead {
    async fn take(inner: &Inner) -> Result<Option<Self>, StoreError> {
        let until = Instant::now() + LEASE_TTL;
        let lease = inner.store.lease(LEASE, inner.id.as_str(), now(), LEASE_TTL).await?;
        Ok(lease.map(|lease| Self { token: lease.token, until: Mutex::new(until) }))
    }

    /// Renews it. False: it ran out meanwhile, whoever has it now.
    async fn goes_on(&self, inner: &Inner) -> Result<bool, StoreError> {
        let Some(now) = Self::take(inner).await?.filter(|now| now.token == self.token) else { return Ok(false) };
        *self.until.lock() = now.until.into_inner();
        Ok(true)
    }

    /// Whether nobody else can have it yet.
    fn is_sure(&self) -> bool {
        Instant::now() < *self.until.lock()
    }
}

/// What one round leaves to the next: only so as not to do the same again.
#[derive(Default)]
struct Reconciler {
    /// Queues that had messages in the last round, and how many.
    last: HashMap<QueueName, u64>,
    /// The same of the round before that, where the queue does not count what is worked on.
    before_last: HashMap<QueueName, u64>,
    /// Where in the open executions the next round goes on.
    cursor: Option<ExecutionId>,
    epochs: HashMap<(Lane, PoolName), Timestamp>,
    /// A stream was made anew: all open executions are looked at, however lately they were heard of.
    sweeping: bool,
    expired_at: Option<Instant>,
    /// Asked whether it is time to.
    collected_at: Option<Instant>,
    /// The connection has been there for [`SETTLE`].
    settled: bool,
    /// Queues were looked at since the connection came.
    woken: bool,
    /// At the queues, so far.
    looks: usize,
}

/// What is the same for all executions of a round.
struct Round {
    now: Timestamp,
    epochs: HashMap<(Lane, PoolName), Timestamp>,
    depths: HashMap<QueueName, u64>,
}

impl Round {
    async fn look(inner: &Inner) -> Result<Self, BrokerError> {
        let mut round = Self { now: now(), epochs: HashMap::new(), depths: HashMap::new() };
        for pool in &inner.pools {
            for lane in Lane::ALL {
                round.epochs.insert((lane, pool.clone()), inner.broker.epoch(lane, pool).await?);
                for QueueDepth { queue, messages } in inner.broker.depths(lane, pool).await? {
                    round.depths.insert(queue, messages);
                }
            }
        }
        Ok(round)
    }

    fn stream_lost(&self, record: &ExecutionRecord) -> bool {
        let epoch = self.epochs.get(&(record.lane, record.pool.clone()));
        match (&record.position, epoch) {
            (Some(position), Some(epoch)) => position.epoch != *epoch,
            _ => false,
        }
    }
}

impl Reconciler {
    async fn round(&mut self, inner: &Arc<Inner>, lead: &Lead) -> Result<(), Refusal> {
        let round = Round::look(inner).await?;
        let anew = |(stream, epoch): &(&(Lane, PoolName), &Timestamp)| {
            round.epochs.get(*stream).is_some_and(|now| now != *epoch)
        };
        let lost: Vec<Lane> = self.epochs.iter().filter(anew).map(|((lane, _), _)| *lane).collect();
        if !lost.is_empty() {
            if lost.contains(&Lane::Invoke) {
                tracing::warn!("the queue's storage was made anew; looking after every open execution");
            } else {
                tracing::info!(
                    "the queue restarted, and sync calls wait in its memory; looking after every open execution"
                );
            }
            self.sweeping = true;
            self.cursor = None;
            inner.hot.forget();
        }
        self.epochs.clone_from(&round.epochs);
        self.look_after_queues(inner, &round).await;
        if !self.settled {
            tracing::debug!("the connection is new; nothing is judged lost before agents are back too");
        } else if inner.recorder_health.is_behind() {
            tracing::debug!("statuses wait to be recorded; nothing is judged lost meanwhile");
        } else {
            self.look_after_executions(inner, &round, lead).await?;
        }
        self.cool(inner, &round).await;
        self.expire(inner).await?;
        self.collect(inner).await;
        Ok(())
    }

    /// Makes queues with messages hot, which any gateway may do at any time.
    async fn wake_queues(&mut self, inner: &Arc<Inner>) -> Result<(), BrokerError> {
        let round = Round::look(inner).await?;
        self.look_after_queues(inner, &round).await;
        Ok(())
    }

    async fn look_after_queues(&mut self, inner: &Arc<Inner>, round: &Round) {
        let last = &self.last;
        self.looks = self.looks.wrapping_add(1);
        let rank = self.looks % RANKS;
        futures::stream::iter(&round.depths)
            .for_each_concurrent(AT_ONCE, |(queue, messages)| async move {
                if !inner.hot.touch(queue) {
                    return inner.answer_ring(queue).await;
                }
                // What was given back by silence, or told to an agent that went, is told to another each time.
                inner.hot.tell_if_needed(queue, rank, inner.functions.known(&queue.function));
                // It looks hot and does not move: perhaps it only looks it.
                let before = last.get(queue).copied();
                let stuck = before == Some(*messages);
                // More than may wait at once, and no less than before: those who have it cannot keep up.
                if *messages > limits::PULLS_WAITING.into() && before.is_some_and(|before| before <= *messages) {
                    inner.hot.call_agents(queue);
                }
                if stuck {
                    match inner.functions.current(&queue.function).await {
                        Ok(None) => inner.take_unknown(queue).await,
                        Ok(Some(_)) if !inner.fleet.runs(&queue.function) => match inner.hot.heat_again(queue).await {
                            Ok(()) => inner.hot.call_agents(queue),
                            Err(error) => {
                                tracing::debug!(error = &error as &dyn std::error::Error, "cannot make a queue hot")
                            }
                        },
                        Ok(Some(_)) | Err(_) => {}
                    }
                }
            })
            .await;
        if !inner.broker.capabilities().counts_held {
            self.before_last = std::mem::take(&mut self.last);
        }
        self.last.clone_from(&round.depths);
        self.woken = true;
    }

    async fn look_after_executions(&mut self, inner: &Arc<Inner>, round: &Round, lead: &Lead) -> Result<(), Refusal> {
        let before = if self.sweeping { round.now } else { before(round.now, limits::LOST_AFTER) };
        let most = if self.sweeping { SWEPT } else { LOOKED_AT };
        let mut looked_at = 0;
        while looked_at < most {
            let page = inner.store.open_executions(before, self.cursor, PAGE).await?;
            looked_at += page.len();
            let full = page.len() >= PAGE;
            self.cursor = page.last().map(|record| record.execution_id).filter(|_| full);
            // Asked after the page was read: whatever it does not tell yet is in the log.
            let backlog = inner.broker.backlog().await?;
            if !look_after(inner, round, &self.before_last, judged(page, round.now, backlog), lead).await? {
                tracing::info!("this gateway stood still, and another one reconciles");
                self.cursor = None;
                return Ok(());
            }
            if !full {
                self.sweeping = false;
                break;
            }
        }
        Ok(())
    }

    async fn cool(&self, inner: &Arc<Inner>, round: &Round) {
        let idle = inner.hot.idle_for(inner.cool_after);
        let idle = idle.into_iter().filter(|queue| !round.depths.contains_key(queue));
        for queue in idle.take(COOLED_AT_ONCE) {
            if inner.fleet.runs(&queue.function) {
                inner.hot.touch(&queue);
                continue;
            }
            match inner.hot.cool(&queue).await {
                Ok(true) => tracing::debug!(queue = %queue.key(), "cooled"),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(queue = %queue.key(), error = &error as &dyn std::error::Error, "cannot cool a queue");
                    return;
                }
            }
        }
    }

    /// Beside the rounds, which do not wait for it.
    async fn collect(&mut self, inner: &Arc<Inner>) {
        if self.collected_at.is_some_and(|at| at.elapsed() < COLLECT_TRIED_EVERY) {
            return;
        }
        self.collected_at = Some(Instant::now());
        let collecting = Arc::clone(inner);
        inner.tasks.spawn("collect archives", async move {
            let killed = collecting.tasks.shutdown().kill_token();
            tokio::select! {
                () = collecting.collect_daily() => {}
                () = killed.cancelled() => {}
            }
        });
    }

    async fn expire(&mut self, inner: &Arc<Inner>) -> Result<(), Refusal> {
        if self.expired_at.is_some_and(|at| at.elapsed() < EXPIRE_EVERY) {
            return Ok(());
        }
        let expired = inner.store.expire(before(now(), inner.history), EXPIRED_AT_ONCE).await?;
        for record in &expired {
            inner.delete_blobs_of(record).await;
        }
        // A full hand means that there is more.
        self.expired_at = (expired.len() < EXPIRED_AT_ONCE).then(Instant::now);
        Ok(())
    }
}

/// Of a page of open records, those that the statuses that wait to be recorded cannot be about, or hardly: judging by
/// a record whose end waits in the log would run it a second time.
///
/// With an empty log that is all of them. A few statuses are always on their way under load, none of them for long; so
/// then it is what was silent for [`SILENT_FOR`]. A log that is truly behind hides the ends of anything.
fn judged(page: Vec<ExecutionRecord>, now: Timestamp, backlog: u64) -> Vec<ExecutionRecord> {
    match backlog {
        0 => page,
        1..STEADY_BACKLOG => page.into_iter().filter(|record| now.since(record.status_at) >= SILENT_FOR).collect(),
        _ => {
            tracing::debug!(backlog, "statuses wait to be recorded; nothing is judged lost meanwhile");
            Vec::new()
        }
    }
}

fn before(now: Timestamp, ago: Duration) -> Timestamp {
    Timestamp::from_micros(now.as_micros().saturating_sub(i64::try_from(ago.as_micros()).unwrap_or(i64::MAX)))
}

/// False: the lease is gone, and nothing more is to be done.
async fn look_after(
    inner: &Arc<Inner>,
    round: &Round,
    before_last: &HashMap<QueueName, u64>,
    page: Vec<ExecutionRecord>,
    lead: &Lead,
) -> Result<bool, Refusal> {
    // What can be told without asking anyone: most are queued, in a stream that is there.
    let suspects: Vec<_> =
        page.into_iter().filter(|record| is_suspect(record, round.now, round.stream_lost(record))).collect();
    let found: Vec<(ExecutionRecord, Option<bool>)> = futures::stream::iter(suspects)
        .map(|record| async move {
            let stored = is_stored(inner, round, &record).await;
            (record, stored)
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(|(record, stored)| std::future::ready(stored.ok().map(|stored| (record, stored))))
        .collect()
        .await;
    let questionable: Vec<_> = found
        .into_iter()
        .filter(|(record, stored)| *stored != Some(true) || is_overdue(record, round.now) || record.lane == Lane::Call)
        .collect();
    if questionable.is_empty() {
        return Ok(true);
    }
    let ids: Vec<_> = questionable.iter().map(|(record, _)| record.execution_id).collect();
    let held = inner.ask_holds(&ids).await?;
    let online = inner.agents_online();
    if online.is_empty() && inner.fleet.may_have_silent() {
        // All answered, since there is none that could: that says nothing yet.
        return Ok(true);
    }
    if !lead.goes_on(inner).await? {
        return Ok(false);
    }
    futures::stream::iter(questionable)
        .for_each_concurrent(AT_ONCE, |(record, stored)| {
            let (held, online) = (&held, &online);
            async move {
                let action = plan_for(inner, round, before_last, &record, stored, held, online).await;
                let id = record.execution_id;
                if !lead.is_sure() {
                    return;
                }
                if let Err(error) = act(inner, record, action).await {
                    tracing::warn!(
                        execution_id = %id,
                        error = &error as &dyn std::error::Error,
                        "an execution could not be put right; the next round tries again"
                    );
                }
            }
        })
        .await;
    Ok(lead.is_sure())
}

async fn plan_for(
    inner: &Inner,
    round: &Round,
    before_last: &HashMap<QueueName, u64>,
    record: &ExecutionRecord,
    stored: Option<bool>,
    held: &Held,
    online: &[AgentId],
) -> Action {
    let queue = queue_of(record);
    let delivered = match &record.position {
        Some(position) if is_overdue(record, round.now) => {
            inner.broker.was_delivered(&queue, position).await.ok().flatten()
        }
        _ => None,
    };
    let is_held = held.holds(record.execution_id);
    let facts = Facts {
        now: round.now,
        stream_lost: round.stream_lost(record),
        stored,
        delivered,
        // What was taken between the count and the question to agents is in neither: so it must have been empty before too.
        queue_empty: !round.depths.contains_key(&queue) && !before_last.contains_key(&queue),
        held: is_held,
        all_answered: is_held || held.by_nobody(record.execution_id, online),
        agent_online: record.agent_id.as_ref().is_some_and(|agent| inner.fleet.is_online(agent)),
    };
    plan(record, &facts)
}

/// Whether the message is where it was put; `None` where its place is not known.
async fn is_stored(inner: &Inner, round: &Round, record: &ExecutionRecord) -> Result<Option<bool>, BrokerError> {
    if round.stream_lost(record) {
        return Ok(Some(false));
    }
    match &record.position {
        Some(position) if inner.broker.capabilities().positions => {
            inner.broker.is_stored(&queue_of(record), position).await.map(Some)
        }
        _ => Ok(None),
    }
}

async fn act(inner: &Arc<Inner>, record: ExecutionRecord, action: Action) -> Result<(), BrokerError> {
    match action {
        Action::Keep => Ok(()),
        Action::Republish => inner.republish(&record).await,
        Action::Expire => {
            if inner.take_back(&record).await? == Some(TakenBack::Delivered) {
                // An agent got it meanwhile: it checks the deadline itself. Were it lost, the next round finds it gone.
                return Ok(());
            }
            tracing::info!(execution_id = %record.execution_id, function = %record.function, "expired in the queue");
            inner.end(&record, expired(&record)).await
        }
        Action::EndAsLost => {
            tracing::warn!(
                execution_id = %record.execution_id,
                function = %record.function,
                attempt = record.attempt,
                "lost with its agent, and nothing to start it again from"
            );
            let running = record.phase == Phase::Running;
            inner.end(&record, lost(running)).await
        }
    }
}

fn expired(record: &ExecutionRecord) -> Outcome {
    let message = match record.deadline {
        Some(deadline) if deadline < now() => format!("it was not started before its deadline, {deadline}"),
        _ => format!("it was not started within {} hours", limits::EVENT_AGE.as_secs() / 3600),
    };
    Outcome::without_process(OutcomeStatus::Failed, ExecutionError::new(ErrorKind::Expired, message))
}

fn lost(running: bool) -> Outcome {
    let message = if running {
        "the agent that ran it is gone, and so is its message; invoke it again"
    } else {
        "the queue lost its message; invoke it again"
    };
    Outcome::without_process(OutcomeStatus::Failed, ExecutionError::new(ErrorKind::AgentLost, message))
}
