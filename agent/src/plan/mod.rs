//! The credit planner: which queues to pull on, for how many messages, and for how long. Pure: it is told
//! what happened and what time it is, and answers with grants.
//!
//! **Credit.** A message that was delivered must be startable at once, so a pull's batch is room that is
//! spent from the moment it is sent. A credit becomes free again only when its pull ended (then it was not
//! used) or the execution that it brought ended:
//!
//! ```text
//!            plan()              delivered()               finished()
//!   free ───────────► credit ─────────────────► slot ───────────────────► free
//!     ▲                 │ ended(): the pull is over, this much was left
//!     └─────────────────┘
//! ```
//!
//! [`Credit`] and [`Slot`] cannot be cloned and are consumed by what frees them, so that freeing twice does
//! not compile.
//!
//! **Who gets it.** A queue that is known to have work is *busy*; one without a credit and not known to have
//! work is *bare*. Each free slot goes to the queue with the smallest dominant share of the node (running and
//! credit together), among equals to the one served longest ago. Round robin by count alone would hand the
//! node to whoever runs longest: with a function of 10 s beside one of 10 ms, equal turns mean that nearly
//! all slots are the slow one's. By share, either has half, and a queue that holds nothing is always next.
//!
//! Bare queues are given a credit too, or a message for them would never be heard of; but only a quarter of the
//! slots while others are known to have work, and only three by long pulls, since a pull cannot be taken back. Where hot
//! queues are more than that, a gateway tells one agent of each message ([`Planner::ring`]), an eighth of the slots goes round
//! in case nobody did, and an eighth stays free for what is told. A queue that works gets a larger share in short pulls,
//! so that a caller who comes again finds a credit waiting; its first one goes before the turns of idle queues.
//!
//! Idle queues leave room for the largest function that may be told of ([`Largest`]): their pulls cannot be taken back, and
//! a call would wait for the end of one of them. Where they have no room together, the large ones take turns, and who was kept out
//! for a second goes first.
//!
//! A queue whose need does not fit what is free, while smaller ones are served past it, *claims*: for a while
//! nobody else is granted anything, until what is freed adds up. Claims are limited in time, since the room may be
//! held by something that runs for a day: at the worst they cost a fifth of the node.
//!
//! **Enough is enough.** Where as many pulls wait as may, one more is refused: the queue is *covered* by other agents,
//! and this one leaves it to them for some seconds, unless it is rung for. So with many agents a queue has as many
//! pulls as with few.
//!
//! **Cost.** An event costs O(log hot queues), whatever is queued and however many functions exist.

mod amount;
mod credit;
mod grant;
mod idle;
mod largest;
mod lately;
mod order;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use flux_protocol::{FunctionName, Lane, subject::QueueName};

pub(crate) use amount::Amount;
use credit::Kind;
pub(crate) use credit::{Credit, Grant, Need, PullEnd, QueueId, Recost, Slot};
use largest::Largest;
use lately::Lately;

/// A queue whose last two deliveries are no further apart, and no longer ago, is expected to have work again before a pull on
/// it is over.
const WARM_MS: u64 = 250;
/// For this long after a queue was known to wait, no more than a quarter of the slots stands idle.
const CONTENDED_MS: u64 = 1_000;
/// A busy queue that was passed over for this long claims what gets free; a bare one, which may have no work at all,
/// after longer.
const CLAIM_AFTER_MS: u64 = 1_000;
const BARE_CLAIM_AFTER_MS: u64 = 10_000;
/// The first claim takes this long at most; each that was in vain doubles the next, up to several times the longest
/// pull. Between two claims is a pause of several times the last.
const FIRST_CLAIM_MS: u64 = 1_000;
const LAST_CLAIM_MS: u64 = 33_000;
const PAUSE_PER_CLAIM: u64 = 4;
/// A queue that idle ones keep out goes first after this long: a message may lie there that nobody tells of.
const KEPT_OUT_MS: u64 = 1_000;
/// Where something did not fit, no long pulls are made for this long: what they hold cannot be had for so long.
const NO_STANDING_MS: u64 = 60_000;
/// A queue that others cover is left to them for this long and a little more, not the same for each queue. Twice as long after
/// each time that they still do, up to a minute: with many agents most would ask in vain most of the time.
const COVERED_MS: u64 = 2_000;
const COVERED_SPREAD_MS: u64 = 4_000;
const COVERED_DOUBLINGS: u32 = 5;
/// Rings remembered for queues that are not known yet.
const EARLY_RINGS: usize = 64;
/// Queues looked at for one that fits; those that were passed over claim in turn.
const LOOKED_AT: usize = 64;

/// Work waits, and nobody said how much.
const UNKNOWN: u64 = u64::MAX;

/// Work waits, as somebody who rang knew. The first delivery says how much more: taking the whole node for it would leave
/// no pull at other queues, for whose calls somebody would ring next.
const RUNG: u64 = 1;

/// Ticks begin here: what was never served has smaller ones, by which each agent has an order of its own.
const FIRST_TICK: u64 = 1 << 16;

#[derive(Debug)]
struct Queue {
    name: QueueName,
    function: usize,
    hot: bool,
    outstanding: u64,
    running: u64,
    /// What waits at the broker by the last that was heard; [`RUNG`] after a ring.
    backlog: u64,
    /// The backlog is known from a ring alone.
    rung: bool,
    /// Rung for while a pull was out, which may be filled by what came before.
    rung_again: bool,
    last_work_ms: Option<u64>,
    /// Between the last two deliveries.
    work_gap_ms: u64,
    active: bool,
    /// The tick of its last grant: smaller is longer ago.
    served: u64,
    passed_over_since: Option<u64>,
    /// Since when others that are idle, the credit kept for one that works, or the function's other lane keep it from a first
    /// credit.
    kept_out_since: Option<u64>,
    /// Others wait there; until then nothing is pulled that is not known to be there.
    covered_until_ms: Option<u64>,
    /// How many times it was in a row.
    covered_times: u32,
    place: Place,
    /// What it counts for among the largest.
    counted: Option<Amount>,
}

/// Order among those who want credit: share, tick of the last grant, index.
type Key = (u64, u64, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Busy(Key),
    Bare(Key),
}

#[derive(Debug)]
struct Function {
    name: FunctionName,
    /// Unknown, or nothing that this agent can run.
    need: Option<Need>,
    /// Running and credit, over both lanes.
    in_use: u64,
    lanes: [Option<usize>; 2],
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    queue: usize,
    since_ms: u64,
    until_ms: u64,
}

/// All that decides about pulls. See the module's text.
#[derive(Debug)]
pub(crate) struct Planner {
    total: Amount,
    /// Running and credit.
    used: Amount,
    running: Amount,
    /// Credit of [`Kind::Standing`].
    standing: Amount,
    /// Tasks of [`Kind::Turn`] and [`Kind::Standing`].
    idle_credit: u64,
    /// Tasks of [`Kind::Turn`].
    turns: u64,
    queues: Vec<Option<Queue>>,
    free_queues: Vec<usize>,
    by_name: HashMap<QueueName, usize>,
    functions: Vec<Option<Function>>,
    free_functions: Vec<usize>,
    by_function: HashMap<FunctionName, usize>,
    busy: BTreeSet<Key>,
    bare: BTreeSet<Key>,
    /// What one execution of each hot queue takes.
    largest: Largest,
    /// Covered queues, by when that ends.
    covered: BTreeSet<(u64, usize)>,
    /// Queues that worked lately.
    active: u64,
    hot: u64,
    tick: u64,
    /// Of this agent: in which order it comes to queues that it never served. If all agents had the same, all would wait
    /// at the same queues and none at the others, wherever more are hot than an agent has credit for.
    seed: u64,
    /// Which were known to wait.
    waited_lately: Lately,
    /// Which had a delivery.
    worked_lately: Lately,
    claim: Option<Claim>,
    no_claim_before_ms: u64,
    /// How long the next claim may take.
    claim_for_ms: u64,
    no_standing_before_ms: u64,
    /// Until then long pulls leave room for the largest too.
    crowded_until_ms: u64,
    paused: bool,
    /// Queues with an event since the last plan.
    touched: Vec<usize>,
    /// Rings that came before word that their queue is hot.
    early: VecDeque<QueueName>,
}

impl Planner {
    pub(crate) fn new(total: Amount, seed: u64) -> Self {
        Self {
            total,
            used: Amount::default(),
            running: Amount::default(),
            standing: Amount::default(),
            idle_credit: 0,
            turns: 0,
            queues: Vec::new(),
            free_queues: Vec::new(),
            by_name: HashMap::new(),
            functions: Vec::new(),
            free_functions: Vec::new(),
            by_function: HashMap::new(),
            busy: BTreeSet::new(),
            bare: BTreeSet::new(),
            largest: Largest::default(),
            covered: BTreeSet::new(),
            active: 0,
            hot: 0,
            tick: FIRST_TICK,
            seed,
            waited_lately: Lately::new(),
            worked_lately: Lately::new(),
            claim: None,
            no_claim_before_ms: 0,
            claim_for_ms: FIRST_CLAIM_MS,
            no_standing_before_ms: 0,
            crowded_until_ms: 0,
            paused: false,
            touched: Vec::new(),
            early: VecDeque::new(),
        }
    }

    /// What running executions leave of the budget. Credit is not taken off: it is room for calls.
    pub(crate) fn free(&self) -> Amount {
        self.total.minus(self.running)
    }

    /// From now on nothing is granted, until [`Self::resume`].
    pub(crate) fn pause(&mut self) {
        self.paused = true;
        self.place_all();
    }

    pub(crate) fn resume(&mut self) {
        self.paused = false;
        self.place_all();
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Work waits at the queue, as somebody who tells this agent alone knows.
    pub(crate) fn ring(&mut self, name: &QueueName) {
        match self.by_name.get(name) {
            Some(&index) if self.queue(index).is_some_and(|queue| queue.hot) => self.ring_known(index),
            _ => {
                // Word that it is hot is on its way.
                if self.early.len() >= EARLY_RINGS {
                    self.early.pop_front();
                }
                self.early.push_back(name.clone());
            }
        }
    }

    fn ring_known(&mut self, index: usize) {
        self.uncover(index);
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) {
            queue.covered_times = 0;
            queue.ring();
        }
        self.set_active(index);
        self.place(index);
    }

    /// The queue can be pulled, and `waits`: there is work, as somebody knows.
    pub(crate) fn heat(&mut self, name: &QueueName, need: Option<Need>, waits: bool) {
        let early = self.early.iter().position(|rung| rung == name);
        let waits = early.and_then(|at| self.early.remove(at)).is_some() || waits;
        if let Some(&index) = self.by_name.get(name) {
            if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut)
                && !queue.hot
            {
                queue.hot = true;
                self.hot += 1;
            }
            if waits {
                self.ring_known(index);
            } else {
                self.uncover(index);
                self.place(index);
            }
            return;
        }
        let function = self.function_of(name, need);
        let queue = Queue {
            name: name.clone(),
            function,
            hot: true,
            outstanding: 0,
            running: 0,
            backlog: if waits { RUNG } else { 0 },
            rung: waits,
            rung_again: false,
            last_work_ms: None,
            work_gap_ms: u64::MAX,
            active: false,
            served: self.first_served(name),
            passed_over_since: None,
            kept_out_since: None,
            covered_until_ms: None,
            covered_times: 0,
            place: Place::Nowhere,
            counted: None,
        };
        let index = insert(&mut self.queues, &mut self.free_queues, queue);
        self.by_name.insert(name.clone(), index);
        if let Some(function) = self.functions.get_mut(function).and_then(Option::as_mut) {
            function.lanes[lane_index(name.lane)] = Some(index);
        }
        self.hot += 1;
        if waits {
            self.set_active(index);
        }
        self.place(index);
    }

    fn first_served(&self, name: &QueueName) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, name).hash(&mut hasher);
        hasher.finish() % FIRST_TICK
    }

    /// The queue is cold: nothing more is pulled there. What is outstanding or runs is still counted.
    pub(crate) fn cool(&mut self, name: &QueueName) {
        let Some(&index) = self.by_name.get(name) else { return };
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut)
            && queue.hot
        {
            queue.hot = false;
            queue.kept_out_since = None;
            queue.backlog = 0;
            (queue.rung, queue.rung_again) = (false, false);
            self.hot -= 1;
        }
        self.uncover(index);
        self.set_inactive(index);
        self.place(index);
        self.forget_if_done(index);
    }

    /// Whether a queue of this function is hot here.
    pub(crate) fn knows(&self, function: &FunctionName) -> bool {
        self.by_function.contains_key(function)
    }

    /// Functions that have a queue here.
    pub(crate) fn functions(&self) -> Vec<FunctionName> {
        self.by_function.keys().cloned().collect()
    }

    /// The function's need changed; `None` when this agent cannot run it.
    pub(crate) fn set_need(&mut self, function: &FunctionName, need: Option<Need>) {
        let Some(&index) = self.by_function.get(function) else { return };
        let Some(function) = self.functions.get_mut(index).and_then(Option::as_mut) else { return };
        function.need = need;
        for queue in function.lanes.into_iter().flatten() {
            self.place(queue);
        }
    }

    /// A pull brought a message: its credit is now a slot. `pending` is how many more wait, if that is known.
    pub(crate) fn delivered(&mut self, credit: &mut Credit, pending: Option<u64>, now_ms: u64) -> Slot {
        credit.left = credit.left.saturating_sub(1);
        self.unreserve(credit.kind, credit.each, 1);
        self.running = self.running.plus(credit.each);
        let index = credit.queue.0;
        self.worked_lately.note(index, now_ms + WARM_MS);
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) {
            queue.outstanding -= 1;
            queue.running += 1;
            queue.work_gap_ms = queue.last_work_ms.map_or(u64::MAX, |last| now_ms.saturating_sub(last));
            queue.last_work_ms = Some(now_ms);
            queue.covered_times = 0;
            match pending {
                Some(pending) => queue.backlog = pending,
                // An engine that does not say: a pull that gets filled had more behind it, as far as we know.
                None if credit.left == 0 => queue.backlog = UNKNOWN,
                None => {}
            }
            queue.rung = false;
            if std::mem::take(&mut queue.rung_again) && queue.backlog == 0 {
                (queue.backlog, queue.rung) = (RUNG, true);
            }
        }
        self.uncover(index);
        self.set_active(index);
        self.touch(index);
        self.place(index);
        Slot { queue: credit.queue, cost: credit.each }
    }

    /// A pull ended; what is left of its credit is free.
    pub(crate) fn ended(&mut self, credit: Credit, how: PullEnd, now_ms: u64) {
        self.unreserve(credit.kind, credit.each, credit.left);
        self.used = self.used.minus(credit.each.times(credit.left));
        let index = credit.queue.0;
        let mut cooled_down = false;
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) {
            queue.outstanding -= credit.left;
            if credit.left > 0 && how != PullEnd::Failed {
                queue.backlog = 0;
                queue.rung_again = false;
            }
            if how == PullEnd::Expired {
                queue.covered_times = 0;
            }
            cooled_down = queue.backlog == 0 && !queue.is_warm(now_ms);
        }
        self.release_function(index, credit.left);
        match how {
            PullEnd::Covered => self.cover(index, now_ms),
            // One of those that waited there may have been this agent's own: there is room for another.
            PullEnd::Expired => self.uncover(index),
            PullEnd::Failed => {}
        }
        if cooled_down {
            self.set_inactive(index);
        }
        self.touch(index);
        self.place_with_sibling(index);
        self.forget_if_done(index);
    }

    /// An execution ended; its slot is free.
    pub(crate) fn finished(&mut self, slot: Slot) {
        self.used = self.used.minus(slot.cost);
        self.running = self.running.minus(slot.cost);
        let index = slot.queue.0;
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) {
            queue.running -= 1;
        }
        self.release_function(index, 1);
        self.touch(index);
        self.place_with_sibling(index);
        self.forget_if_done(index);
    }

    pub(crate) fn recosted(&mut self, change: &Recost) {
        self.used = self.used.minus(change.from).plus(change.to);
        self.running = self.running.minus(change.from).plus(change.to);
    }

    fn unreserve(&mut self, kind: Kind, each: Amount, count: u64) {
        match kind {
            Kind::Work => {}
            Kind::Turn => {
                self.idle_credit -= count;
                self.turns -= count;
            }
            Kind::Standing => {
                self.idle_credit -= count;
                self.standing = self.standing.minus(each.times(count));
            }
        }
    }

    fn release_function(&mut self, queue: usize, count: u64) {
        if let Some(function) = self.function_index(queue)
            && let Some(function) = self.functions.get_mut(function).and_then(Option::as_mut)
        {
            function.in_use -= count;
        }
    }

    fn function_index(&self, queue: usize) -> Option<usize> {
        self.queues.get(queue).and_then(Option::as_ref).map(|queue| queue.function)
    }

    fn function(&self, index: usize) -> Option<&Function> {
        self.functions.get(index).and_then(Option::as_ref)
    }

    fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index).and_then(Option::as_ref)
    }

    fn function_of(&mut self, name: &QueueName, need: Option<Need>) -> usize {
        if let Some(&index) = self.by_function.get(&name.function) {
            return index;
        }
        let function = Function { name: name.function.clone(), need, in_use: 0, lanes: [None, None] };
        let index = insert(&mut self.functions, &mut self.free_functions, function);
        self.by_function.insert(name.function.clone(), index);
        index
    }

    fn set_active(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut)
            && !queue.active
        {
            queue.active = true;
            self.active += 1;
        }
    }

    fn set_inactive(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut)
            && queue.active
        {
            queue.active = false;
            self.active -= 1;
        }
    }

    fn cover(&mut self, index: usize, now_ms: u64) {
        self.uncover(index);
        let spread_ms = index as u64 * 997 % COVERED_SPREAD_MS;
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut).filter(|queue| queue.hot) {
            let until_ms = now_ms + (COVERED_MS << queue.covered_times) + spread_ms;
            queue.covered_times = (queue.covered_times + 1).min(COVERED_DOUBLINGS);
            queue.covered_until_ms = Some(until_ms);
            self.covered.insert((until_ms, index));
        }
    }

    fn uncover(&mut self, index: usize) {
        let queue = self.queues.get_mut(index).and_then(Option::as_mut);
        if let Some(until_ms) = queue.and_then(|queue| queue.covered_until_ms.take()) {
            self.covered.remove(&(until_ms, index));
        }
    }

    fn uncover_due(&mut self, now_ms: u64) {
        while let Some(&(_, index)) = self.covered.first().filter(|(until_ms, _)| *until_ms <= now_ms) {
            self.uncover(index);
            self.place(index);
        }
    }

    fn touch(&mut self, index: usize) {
        if self.touched.last() != Some(&index) {
            self.touched.push(index);
        }
    }

    fn forget_if_done(&mut self, index: usize) {
        let done = self.queue(index).is_some_and(|q| !q.hot && q.outstanding == 0 && q.running == 0);
        if !done {
            return;
        }
        let Some(queue) = self.queues.get_mut(index).and_then(Option::take) else { return };
        self.free_queues.push(index);
        self.by_name.remove(&queue.name);
        self.touched.retain(|touched| *touched != index);
        let Some(function) = self.functions.get_mut(queue.function).and_then(Option::as_mut) else { return };
        function.lanes[lane_index(queue.name.lane)] = None;
        if function.lanes == [None, None] {
            self.by_function.remove(&function.name);
            self.functions[queue.function] = None;
            self.free_functions.push(queue.function);
        }
    }
}

impl Queue {
    /// There is work: more than a pull that is out may bring.
    fn ring(&mut self) {
        if self.outstanding > 0 {
            self.rung_again = true;
        } else if self.backlog == 0 {
            (self.backlog, self.rung) = (RUNG, true);
        }
    }

    fn is_warm(&self, now_ms: u64) -> bool {
        self.work_gap_ms <= WARM_MS && self.last_work_ms.is_some_and(|at| now_ms.saturating_sub(at) <= WARM_MS)
    }
}

const fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Call => 0,
        Lane::Invoke => 1,
    }
}

fn insert<T>(slab: &mut Vec<Option<T>>, free: &mut Vec<usize>, value: T) -> usize {
    if let Some(index) = free.pop() {
        slab[index] = Some(value);
        return index;
    }
    slab.push(Some(value));
    slab.len() - 1
}
