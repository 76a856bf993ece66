//! What this agent holds, by execution: the one place that decides whether a delivery starts something, belongs to what
//! runs already, or was cancelled before it came.
//!
//! A delivery and a cancel of one execution can come in any order, so both are looked at under one lock: a cancel either
//! finds the execution or is remembered before the delivery looks.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use flux_protocol::{
    ExecutionId, Lane, OutputLog,
    agent::{HoldersReply, Redelivery, RunningCount},
    execution::QueuePosition,
    limits,
    output::{OutputCollector, OutputRoom},
    subject::QueueName,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// Cancels of executions that were not here; the oldest go first when there are more.
const CANCELS_REMEMBERED: usize = 65_536;
/// Executions that left the table and whose message may come again; the oldest go first when there are more.
const LEFT_REMEMBERED: usize = 8_192;

/// Why a running execution is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// With the words of who cancelled it.
    Cancelled(String),
    /// The agent goes away: no outcome, another agent starts the next attempt.
    Abandoned,
}

/// How this agent's hold on an execution ended: what becomes of its deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The outcome is recorded: whatever delivers it is acked.
    Recorded,
    /// Another agent may have it.
    GivenUp,
}

/// One execution that this agent has taken on.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) id: ExecutionId,
    pub(crate) queue: QueueName,
    attempt: AtomicU32,
    position: QueuePosition,
    /// The others are asked whether one of them holds it.
    in_doubt: AtomicBool,
    /// All that it printed in this attempt so far.
    pub(crate) output: Mutex<OutputCollector>,
    stop: OnceLock<Stop>,
    stop_asked: Notify,
    /// Its process is over; what is left is to publish the outcome.
    ended: AtomicBool,
    /// Told once the processes are gone: whether the cancel was what ended them.
    waiting_for_end: Mutex<Vec<oneshot::Sender<bool>>>,
    settled: OnceLock<Settled>,
}

impl Execution {
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt.load(Ordering::Acquire)
    }

    /// Another had the attempt of this number, which the queue does not know any more.
    pub(crate) fn count_on(&self) {
        self.attempt.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn position(&self) -> &QueuePosition {
        &self.position
    }

    pub(crate) fn set_in_doubt(&self, in_doubt: bool) {
        self.in_doubt.store(in_doubt, Ordering::Release);
    }

    /// Asks it to end. The first reason stays.
    pub(crate) fn stop(&self, why: Stop) {
        let _ = self.stop.set(why);
        self.stop_asked.notify_one();
    }

    /// Waits until it is asked to end. For the one task that runs it.
    pub(crate) async fn until_stopped(&self) -> &Stop {
        loop {
            if let Some(stop) = self.stop.get() {
                return stop;
            }
            self.stop_asked.notified().await;
        }
    }

    /// The processes are gone, by a cancel or not: answers those who wait to know.
    pub(crate) fn processes_gone(&self, by_cancel: bool) {
        self.ended.store(true, Ordering::Release);
        for waiting in self.waiting_for_end.lock().drain(..) {
            let _ = waiting.send(by_cancel);
        }
    }

    /// Before the ledger hears of it. The first word stays.
    pub(crate) fn settle(&self, how: Settled) {
        let _ = self.settled.set(how);
    }

    pub(crate) fn settled(&self) -> Option<Settled> {
        self.settled.get().copied()
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn output_so_far(&self) -> OutputLog {
        self.output.lock().log()
    }
}

/// What a delivery is.
#[derive(Debug)]
pub(crate) enum Begin {
    Start(Arc<Execution>),
    /// It runs here already: only the right to end the delivery is new.
    AlreadyHere(Arc<Execution>),
    /// Its outcome is recorded, and the ack that said so was lost: nothing is to do but to ack again.
    Recorded,
}

/// How an execution left the table.
#[derive(Debug)]
struct Left {
    position: QueuePosition,
    attempt: u32,
    recorded: bool,
}

/// What a cancel found.
#[derive(Debug)]
pub(crate) enum Cancel {
    /// It ends now; the receiver hears when its processes are gone, and whether the cancel was what ended them.
    Stopping(oneshot::Receiver<bool>),
    /// It is not here, and is cancelled should it come within a minute.
    Remembered,
}

#[derive(Debug, Default)]
struct Inner {
    /// That left, since the start.
    finished: u64,
    executions: HashMap<ExecutionId, Arc<Execution>>,
    cancels: HashMap<ExecutionId, (Instant, String)>,
    cancel_order: VecDeque<(Instant, ExecutionId)>,
    /// A queue that is killed forgets the last acks and deliveries that it heard of.
    left: HashMap<ExecutionId, Left>,
    left_order: VecDeque<ExecutionId>,
}

/// The table of what is held.
#[derive(Debug)]
pub(crate) struct Held {
    inner: Mutex<Inner>,
    /// For the output of all.
    room: Arc<OutputRoom>,
    /// Something left the table.
    left: Notify,
}

impl Default for Held {
    fn default() -> Self {
        Self { inner: Mutex::default(), room: Arc::new(OutputRoom::new(limits::OUTPUTS)), left: Notify::default() }
    }
}

impl Held {
    /// Takes a delivery's execution into the table, unless it is there. One that was cancelled before it came starts
    /// as stopped.
    pub(crate) fn begin(&self, id: ExecutionId, queue: &QueueName, attempt: u32, position: &QueuePosition) -> Begin {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        match inner.executions.entry(id) {
            hash_map::Entry::Occupied(entry) => {
                let here = entry.get();
                // Published again under a later number (its first message was lost): a retry must come after that one.
                // Only the number in the outcome changes; the function goes on with what it was told.
                if here.position != *position {
                    here.attempt.fetch_max(attempt, Ordering::AcqRel);
                }
                Begin::AlreadyHere(Arc::clone(here))
            }
            hash_map::Entry::Vacant(entry) => {
                let left = inner.left.get(&id);
                if left.is_some_and(|left| left.recorded && left.position == *position) {
                    return Begin::Recorded;
                }
                let attempt = left.map_or(attempt, |left| attempt.max(left.attempt.saturating_add(1)));
                let execution = Arc::new(Execution {
                    id,
                    queue: queue.clone(),
                    attempt: AtomicU32::new(attempt),
                    position: position.clone(),
                    in_doubt: AtomicBool::new(false),
                    output: Mutex::new(OutputCollector::in_room(Arc::clone(&self.room))),
                    stop: OnceLock::new(),
                    stop_asked: Notify::new(),
                    ended: AtomicBool::new(false),
                    waiting_for_end: Mutex::default(),
                    settled: OnceLock::new(),
                });
                if let Some((_, reason)) = inner.cancels.get(&id).filter(|(at, _)| is_remembered(*at)) {
                    execution.stop(Stop::Cancelled(reason.clone()));
                }
                Begin::Start(Arc::clone(entry.insert(execution)))
            }
        }
    }

    /// It is over, or given up.
    pub(crate) fn end(&self, id: ExecutionId) {
        let mut inner = self.inner.lock();
        if let Some(execution) = inner.executions.remove(&id) {
            inner.remember_left(&execution);
            inner.finished += 1;
        }
        drop(inner);
        self.left.notify_waiters();
    }

    pub(crate) fn cancel(&self, id: ExecutionId, reason: &str) -> Cancel {
        let mut inner = self.inner.lock();
        if let Some(execution) = inner.executions.get(&id) {
            let (tell, told) = oneshot::channel();
            let mut waiting = execution.waiting_for_end.lock();
            if execution.is_running() {
                waiting.push(tell);
                drop(waiting);
                execution.stop(Stop::Cancelled(reason.to_owned()));
            } else {
                let _ = tell.send(false);
            }
            return Cancel::Stopping(told);
        }
        inner.remember_cancel(id, reason);
        Cancel::Remembered
    }

    /// Whether it is held. If not, it is cancelled should it come within a minute.
    pub(crate) fn holds_or_refuses(&self, id: ExecutionId, reason: &str) -> bool {
        let mut inner = self.inner.lock();
        let held = inner.executions.contains_key(&id);
        if !held {
            inner.remember_cancel(id, reason);
        }
        held
    }

    pub(crate) fn get(&self, id: ExecutionId) -> Option<Arc<Execution>> {
        self.inner.lock().executions.get(&id).cloned()
    }

    pub(crate) fn those_held(&self, ids: &[ExecutionId]) -> Vec<ExecutionId> {
        let inner = self.inner.lock();
        ids.iter().filter(|id| inner.executions.contains_key(id)).copied().collect()
    }

    /// What another agent asks of deliveries that it got. Of two that both ask, the smaller attempt goes on, and of equal
    /// ones that of the agent that `is_first`.
    pub(crate) fn answer<'a>(&self, deliveries: impl Iterator<Item = &'a Redelivery>, is_first: bool) -> HoldersReply {
        let inner = self.inner.lock();
        let mut reply = HoldersReply::default();
        for Redelivery { execution_id, position, attempt } in deliveries {
            match (inner.executions.get(execution_id), inner.left.get(execution_id)) {
                (Some(here), _) if here.position == *position => {
                    let own = here.attempt();
                    let yields =
                        here.in_doubt.load(Ordering::Acquire) && (own > *attempt || (own == *attempt && !is_first));
                    if !yields {
                        reply.held.push(*execution_id);
                    }
                }
                (None, Some(left)) if left.recorded && left.position == *position => {
                    reply.recorded.push(*execution_id);
                }
                _ => {}
            }
        }
        reply
    }

    /// How many ended here, or were given up, since the start.
    pub(crate) fn finished(&self) -> u64 {
        self.inner.lock().finished
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inner.lock().executions.is_empty()
    }

    /// Ends when nothing is held.
    pub(crate) async fn until_empty(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.is_empty() {
                return;
            }
            left.await;
        }
    }

    pub(crate) fn abandon_all(&self) {
        for execution in self.inner.lock().executions.values() {
            execution.stop(Stop::Abandoned);
        }
    }

    /// What runs now, per function and lane. Cost grows with what runs.
    pub(crate) fn running_counts(&self) -> Vec<RunningCount> {
        let inner = self.inner.lock();
        let mut counts: HashMap<&str, RunningCount> = HashMap::new();
        for execution in inner.executions.values().filter(|execution| execution.is_running()) {
            let function = &execution.queue.function;
            let count = counts.entry(function.as_str()).or_insert_with(|| RunningCount {
                function: function.clone(),
                calls: 0,
                invokes: 0,
                warm: 0,
            });
            match execution.queue.lane {
                Lane::Call => count.calls += 1,
                Lane::Invoke => count.invokes += 1,
            }
        }
        counts.into_values().collect()
    }
}

fn is_remembered(at: Instant) -> bool {
    at.elapsed() < limits::CANCEL_REMEMBERED
}

impl Inner {
    fn remember_left(&mut self, execution: &Execution) {
        let left = Left {
            position: execution.position.clone(),
            attempt: execution.attempt(),
            recorded: execution.settled() == Some(Settled::Recorded),
        };
        if self.left.insert(execution.id, left).is_none() {
            self.left_order.push_back(execution.id);
        }
        if self.left_order.len() > LEFT_REMEMBERED
            && let Some(oldest) = self.left_order.pop_front()
        {
            self.left.remove(&oldest);
        }
    }

    fn remember_cancel(&mut self, id: ExecutionId, reason: &str) {
        let now = Instant::now();
        self.forget_old_cancels();
        self.cancels.insert(id, (now, reason.to_owned()));
        self.cancel_order.push_back((now, id));
    }

    fn forget_old_cancels(&mut self) {
        while let Some((at, id)) = self.cancel_order.front().copied() {
            if is_remembered(at) && self.cancel_order.len() < CANCELS_REMEMBERED {
                return;
            }
            self.cancel_order.pop_front();
            // Cancelled again since: that entry has its own place in the order.
            if self.cancels.get(&id).is_some_and(|(noted, _)| *noted == at) {
                self.cancels.remove(&id);
            }
        }
    }
}

/// How long a cancel's answer is waited for before the asker is left to its own timeout.
pub(crate) const CANCEL_ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use flux_protocol::{FunctionName, PoolName, Timestamp};

    use super::*;

    fn position(sequence: u64) -> QueuePosition {
        QueuePosition { stream: "FLUX_INVOKE".to_owned(), sequence, epoch: Timestamp::default() }
    }

    fn begin(held: &Held, id: ExecutionId, attempt: u32, sequence: u64) -> Begin {
        let function = FunctionName::parse("f").expect("a name");
        held.begin(id, &QueueName::new(Lane::Invoke, PoolName::default(), function), attempt, &position(sequence))
    }

    fn leave(held: &Held, id: ExecutionId, sequence: u64, how: Settled) {
        let Begin::Start(execution) = begin(held, id, 1, sequence) else { panic!("it is not here") };
        execution.settle(how);
        held.end(id);
    }

    #[test]
    fn what_is_recorded_and_comes_again_is_only_acked() {
        let (held, id) = (Held::default(), ExecutionId::new());
        leave(&held, id, 1, Settled::Recorded);
        assert!(matches!(begin(&held, id, 2, 1), Begin::Recorded));
        // A retry, or what was published again, is another message.
        assert!(matches!(begin(&held, id, 2, 2), Begin::Start(_)));
    }

    #[test]
    fn an_attempt_s_number_grows_though_the_queue_forgot_a_delivery() {
        let (held, id) = (Held::default(), ExecutionId::new());
        leave(&held, id, 1, Settled::GivenUp);
        let Begin::Start(again) = begin(&held, id, 1, 1) else { panic!("it is not here") };
        assert_eq!(again.attempt(), 2);
    }

    #[test]
    fn what_is_held_is_said_of_the_same_message_alone() {
        let held = Held::default();
        let (runs, over, given_up) = (ExecutionId::new(), ExecutionId::new(), ExecutionId::new());
        let Begin::Start(_runs) = begin(&held, runs, 1, 1) else { panic!("it is not here") };
        leave(&held, over, 2, Settled::Recorded);
        leave(&held, given_up, 3, Settled::GivenUp);
        let ask = |execution_id, sequence, attempt| {
            held.answer([Redelivery { execution_id, position: position(sequence), attempt }].iter(), false)
        };
        assert_eq!(ask(runs, 1, 2).held, [runs]);
        assert_eq!(ask(runs, 1, 1).held, [runs], "a server that restarted counts anew");
        assert_eq!(ask(over, 2, 2).recorded, [over]);
        for silent in [ask(runs, 9, 2), ask(over, 9, 2), ask(given_up, 3, 2), ask(ExecutionId::new(), 1, 2)] {
            assert_eq!(silent, HoldersReply::default());
        }
    }

    #[test]
    fn of_two_that_ask_for_the_same_one_goes_on() {
        for (here, there, here_is_first) in [(1, 2, false), (2, 1, true), (2, 2, true), (2, 2, false)] {
            let (a, b) = (Held::default(), Held::default());
            let id = ExecutionId::new();
            let take = |held: &Held, attempt| {
                let Begin::Start(execution) = begin(held, id, attempt, 1) else { panic!("it is not here") };
                execution.set_in_doubt(true);
                execution
            };
            let _both = (take(&a, here), take(&b, there));
            let ask = |held: &Held, attempt, is_first| {
                held.answer([Redelivery { execution_id: id, position: position(1), attempt }].iter(), is_first)
            };
            let (a_says, b_says) = (ask(&a, there, here_is_first), ask(&b, here, !here_is_first));
            assert_eq!(a_says.held.len() + b_says.held.len(), 1, "{here} {there} {here_is_first}");
        }
    }

    #[test]
    fn what_left_is_not_remembered_without_end() {
        let held = Held::default();
        let first = ExecutionId::new();
        leave(&held, first, 1, Settled::Recorded);
        for _ in 0..LEFT_REMEMBERED {
            leave(&held, ExecutionId::new(), 1, Settled::Recorded);
        }
        assert_eq!(held.inner.lock().left.len(), LEFT_REMEMBERED);
        assert!(matches!(begin(&held, first, 1, 1), Begin::Start(_)));
    }
}
