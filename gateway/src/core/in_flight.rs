//! The sync calls that this gateway waits for: the only thing that it holds and nobody else does.
//!
//! A reply finds its call by the nonce in its subject: 128 random bits, so that knowing the subject is the
//! permission. What is counted here (calls of a function, their share of budgets) is what admission takes for
//! certain, so the decision and the counting are one step under one short lock.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flux_broker::Subscription;
use flux_protocol::{
    AgentId, ErrorCode, ExecutionId, FunctionName, FunctionSpec, PoolName, StatusMessage, execution::QueuePosition,
    function::Resources, subject::QueueName,
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::admission::{Admission, Mine, Summary, decide};
use crate::refusal::Refusal;

/// Replies waiting in one call's mailbox; its driver takes them at once, so more is somebody's mischief.
const MAILBOX: usize = 8;

/// What a call's driver is told.
#[derive(Debug)]
pub(super) enum CallEvent {
    /// A reply as it came in; whether it counts is the driver's to check.
    Reply(Bytes),
    /// Somebody ended the execution through this gateway.
    Ended(Box<StatusMessage>),
    /// The queue lost the message, and no agent holds the execution.
    Lost,
}

/// One call. Its driver writes what it learns; cancel and the search for lost calls read it.
pub(super) struct Call {
    pub(super) execution_id: ExecutionId,
    pub(super) queue: QueueName,
    known: Mutex<CallKnown>,
    mailbox: Mutex<VecDeque<CallEvent>>,
    rung: Notify,
}

#[derive(Debug, Clone, Default)]
pub(super) struct CallKnown {
    pub(super) position: Option<QueuePosition>,
    pub(super) attempt: u32,
    /// Who said that it runs it.
    pub(super) holder: Option<AgentId>,
}

impl Call {
    pub(super) fn known(&self) -> CallKnown {
        self.known.lock().clone()
    }

    pub(super) fn learn(&self, change: impl FnOnce(&mut CallKnown)) {
        change(&mut self.known.lock());
    }

    pub(super) fn tell(&self, event: CallEvent) {
        let mut mailbox = self.mailbox.lock();
        if mailbox.len() >= MAILBOX {
            drop(mailbox);
            metrics::counter!("flux_signals_dropped_total", "kind" => "reply_flood").increment(1);
            return;
        }
        mailbox.push_back(event);
        drop(mailbox);
        self.rung.notify_one();
    }

    /// The next event. Cancel-safe: an event is either returned or still there.
    pub(super) async fn event(&self) -> CallEvent {
        loop {
            let rung = self.rung.notified();
            if let Some(event) = self.mailbox.lock().pop_front() {
                return event;
            }
            rung.await;
        }
    }

    pub(super) fn has_event(&self) -> bool {
        !self.mailbox.lock().is_empty()
    }
}

#[derive(Default)]
struct Calls {
    by_nonce: HashMap<u128, Arc<Call>>,
    /// Those expected to run now, by function and by pool.
    by_function: HashMap<FunctionName, u64>,
    by_pool: HashMap<PoolName, Mine>,
    /// Those that wait for room, by function.
    waiting: HashMap<FunctionName, usize>,
    /// Functions that nobody had room for when it was last tried.
    full: HashMap<FunctionName, Full>,
}

/// A probe was not picked up. Until one is, one at a time is enough to find out: the others would each be published,
/// wait for the grace, and be taken back, to be told the same.
#[derive(Debug, Clone, Copy, Default)]
struct Full {
    /// Under way now.
    scout: Option<u128>,
}

/// Every call in flight. Clones share it.
#[derive(Clone)]
pub(super) struct InFlight {
    calls: Arc<Mutex<Calls>>,
    most: usize,
    ended: Arc<Notify>,
}

impl InFlight {
    pub(super) fn new(most: usize) -> Self {
        Self { calls: Arc::default(), most: most.max(1), ended: Arc::default() }
    }

    /// Decides about one more call and, unless it is refused, counts it in: one step, so that a burst of one more
    /// than fits refuses exactly one.
    pub(super) fn admit(
        &self,
        nonce: u128,
        execution_id: ExecutionId,
        queue: &QueueName,
        spec: &FunctionSpec,
        fleet: &Summary,
    ) -> Result<(Admission, Place), (Admission, Mine)> {
        let mut calls = self.calls.lock();
        let mine = calls.mine(spec);
        let admission = calls.scouted(nonce, spec, decide(spec, fleet, &mine));
        if matches!(admission, Admission::Refuse(_)) {
            return Err((admission, mine));
        }
        let occupies = !matches!(admission, Admission::Wait(_));
        let call = Arc::new(Call {
            execution_id,
            queue: queue.clone(),
            known: Mutex::new(CallKnown { position: None, attempt: 1, holder: None }),
            mailbox: Mutex::default(),
            rung: Notify::new(),
        });
        calls.by_nonce.insert(nonce, Arc::clone(&call));
        if occupies {
            calls.count_in(spec);
        } else {
            calls.wait(&spec.name);
        }
        drop(calls);
        let place = Place {
            in_flight: self.clone(),
            nonce,
            call,
            function: spec.name.clone(),
            pool: spec.pool.clone(),
            resources: spec.resources,
            occupies,
        };
        Ok((admission, place))
    }

    /// Room for one more call. The last quarter of it is not for a function whose calls fill another quarter by waiting:
    /// one that is called more than it can run must not keep out the others.
    pub(super) fn require_room(&self, function: &FunctionName) -> Result<(), Refusal> {
        let calls = self.calls.lock();
        let held = calls.by_nonce.len();
        let waiting = calls.waiting.get(function).copied().unwrap_or(0);
        drop(calls);
        if held >= self.most {
            return Err(Refusal::new(
                ErrorCode::TooManyRequests,
                format!(
                    "this gateway holds {} sync calls, its limit (`gateway.max_in_flight`); try again, or use POST /execute/{{name}}/async",
                    self.most
                ),
            ));
        }
        let quarter = self.most / 4;
        if quarter > 0 && held >= self.most - quarter && waiting >= quarter {
            return Err(Refusal::new(
                ErrorCode::TooManyRequests,
                format!(
                    "{waiting} calls of `{function}` wait for room on this gateway, which holds {held} of the {} that it takes \
                     (`gateway.max_in_flight`): the rest is for other functions; try again, or use POST /execute/{function}/async",
                    self.most
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn mine(&self, spec: &FunctionSpec) -> Mine {
        self.calls.lock().mine(spec)
    }

    pub(super) fn len(&self) -> usize {
        self.calls.lock().by_nonce.len()
    }

    pub(super) fn find(&self, nonce: u128) -> Option<Arc<Call>> {
        self.calls.lock().by_nonce.get(&nonce).cloned()
    }

    /// Reads every call: for cancel and the search for lost ones, not for the path of a call.
    pub(super) fn find_execution(&self, id: ExecutionId) -> Option<Arc<Call>> {
        self.calls.lock().by_nonce.values().find(|call| call.execution_id == id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Call>> {
        self.calls.lock().by_nonce.values().cloned().collect()
    }

    /// Ends when no call is in flight.
    pub(super) async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Hands each reply to its call. Ends with the subscription.
    pub(super) async fn deliver(&self, mut replies: Subscription) {
        while let Some(signal) = replies.next().await {
            match nonce_of(&signal.subject).and_then(|nonce| self.find(nonce)) {
                Some(call) => call.tell(CallEvent::Reply(signal.body)),
                // Late (the caller went) or forged: either way nobody waits for it.
                None => metrics::counter!("flux_signals_dropped_total", "kind" => "reply_unknown").increment(1),
            }
        }
    }
}

impl Calls {
    fn mine(&self, spec: &FunctionSpec) -> Mine {
        let of_function = self.by_function.get(&spec.name).copied().unwrap_or(0);
        Mine { of_function, ..self.by_pool.get(&spec.pool).copied().unwrap_or_default() }
    }

    /// A probe of a function that was full when it was last tried: goes on if no other does.
    fn scouted(&mut self, nonce: u128, spec: &FunctionSpec, admission: Admission) -> Admission {
        let Admission::Probe(shortage) = admission else {
            if admission == Admission::Admit && !self.full.is_empty() {
                self.full.remove(&spec.name);
            }
            return admission;
        };
        match self.full.get_mut(&spec.name) {
            Some(Full { scout: Some(_) }) => Admission::Refuse(shortage),
            Some(full) => {
                full.scout = Some(nonce);
                admission
            }
            None => admission,
        }
    }

    fn wait(&mut self, function: &FunctionName) {
        match self.waiting.get_mut(function) {
            Some(waiting) => *waiting += 1,
            None => {
                self.waiting.insert(function.clone(), 1);
            }
        }
    }

    fn wait_no_more(&mut self, function: &FunctionName) {
        if let Some(waiting) = self.waiting.get_mut(function) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(function);
            }
        }
    }

    fn count_in(&mut self, spec: &FunctionSpec) {
        self.count(&spec.name, &spec.pool, spec.resources, true);
    }

    fn count(&mut self, function: &FunctionName, pool: &PoolName, resources: Resources, in_: bool) {
        let step = |value: &mut u64, by: u64| *value = if in_ { *value + by } else { value.saturating_sub(by) };
        match self.by_function.get_mut(function) {
            Some(count) => step(count, 1),
            None if in_ => {
                self.by_function.insert(function.clone(), 1);
            }
            None => {}
        }
        if !in_ && self.by_function.get(function) == Some(&0) {
            self.by_function.remove(function);
        }
        if !self.by_pool.contains_key(pool) {
            self.by_pool.insert(pool.clone(), Mine::default());
        }
        if let Some(sum) = self.by_pool.get_mut(pool) {
            step(&mut sum.tasks, 1);
            step(&mut sum.cpu_millicores, u64::from(resources.cpu));
            step(&mut sum.memory_mb, u64::from(resources.memory));
        }
    }
}

/// A call's place in the table; given back when dropped.
pub(super) struct Place {
    in_flight: InFlight,
    nonce: u128,
    pub(super) call: Arc<Call>,
    function: FunctionName,
    pool: PoolName,
    resources: Resources,
    occupies: bool,
}

impl Place {
    /// A call that waited for room runs now.
    pub(super) fn occupy(&mut self) {
        if !self.occupies {
            self.occupies = true;
            let mut calls = self.in_flight.calls.lock();
            calls.wait_no_more(&self.function);
            calls.count(&self.function, &self.pool, self.resources, true);
        }
    }

    /// It was published although heartbeats saw no room, and there was none.
    pub(super) fn found_none(&self) {
        self.in_flight.calls.lock().full.insert(self.function.clone(), Full::default());
    }

    /// The same, and there was some.
    pub(super) fn found_room(&self) {
        let mut calls = self.in_flight.calls.lock();
        if !calls.full.is_empty() {
            calls.full.remove(&self.function);
        }
    }

    /// What this gateway has in flight apart from this call.
    pub(super) fn others(&self, spec: &FunctionSpec) -> Mine {
        let mut mine = self.in_flight.mine(spec);
        if self.occupies {
            mine.of_function = mine.of_function.saturating_sub(1);
            mine.tasks = mine.tasks.saturating_sub(1);
            mine.cpu_millicores = mine.cpu_millicores.saturating_sub(u64::from(self.resources.cpu));
            mine.memory_mb = mine.memory_mb.saturating_sub(u64::from(self.resources.memory));
        }
        mine
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut calls = self.in_flight.calls.lock();
        calls.by_nonce.remove(&self.nonce);
        if self.occupies {
            calls.count(&self.function, &self.pool, self.resources, false);
        } else {
            calls.wait_no_more(&self.function);
        }
        if !calls.full.is_empty()
            && let Some(full) = calls.full.get_mut(&self.function)
            && full.scout == Some(self.nonce)
        {
            // It went without having found out.
            full.scout = None;
        }
        let empty = calls.by_nonce.is_empty();
        drop(calls);
        if empty {
            self.in_flight.ended.notify_waiters();
        }
    }
}

/// The nonce in `flux.reply.<gateway>.<nonce>`.
pub(super) fn nonce_of(subject: &str) -> Option<u128> {
    let (_, nonce) = subject.rsplit_once('.')?;
    (nonce.len() == 32).then(|| u128::from_str_radix(nonce, 16).ok()).flatten()
}
