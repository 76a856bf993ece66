//! How many slots are needed: the queue's rule, and the same over the short window.
//!
//! By Little's law the offered load is the executions that run, when all that come can run; while a backlog grows, those too
//! that could not: service time × growth. A random load varies by its square root, so that much is added. What waits already
//! is to be worked off in `target_queue`. No invocation needs more than one slot.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    History, Policy, Snapshot,
    history::{Sample, count},
};

/// What the queue asks for, and from which numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Demand {
    /// Slots. Zero where the queue has no say.
    pub wanted: f64,
    /// The short window's load counts, and nothing is given back.
    pub panic: bool,
    /// The wish of the short window.
    pub short: f64,
    /// The same, where it is a burst beside the long one; else `wanted`. What comes again is told by it.
    pub peak: f64,
    /// Seconds that an execution takes.
    pub service_seconds: f64,
    /// Slots that the load of the long and of the short window takes.
    pub load: f64,
    pub burst: f64,
    pub waiting: u64,
    /// For how long the oldest waits.
    pub oldest_seconds: f64,
    pub running: u32,
    /// Slots that are there or on their way.
    pub capacity: f64,
}

pub(crate) fn demand(snapshot: &Snapshot, policy: &Policy, history: &History, capacity: f64, ready: f64) -> Demand {
    let (waiting, running) = (snapshot.waiting, snapshot.running());
    let oldest_seconds = snapshot.oldest().as_secs_f64();
    let mut demand = Demand { waiting, oldest_seconds, running, capacity, ..Demand::default() };
    if policy.target_queue.is_zero() {
        return demand;
    }
    let service = service_seconds(policy, history);
    let wish = |load: Offered| {
        // Nobody needs a slot who is not there.
        let growing = (service * load.growth).min(count(waiting));
        let offered = (load.running + growing).max(0.0);
        // What is bought now finds what has come until then.
        let waiting = count(waiting) + load.growth.max(0.0) * policy.expected_boot.as_secs_f64();
        let backlog = (waiting * service / policy.target_queue.as_secs_f64()).min(waiting - growing.max(0.0));
        (offered, offered + policy.headroom * offered.sqrt() + backlog)
    };
    let (load, long) = wish(offered(history, policy.load_window));
    let (burst, short) = wish(offered(history, policy.panic_window));
    let bursts = short > policy.panic_threshold * ready.max(1.0);
    demand.panic = bursts;
    // Where nothing is any more, what was is no load.
    let idle = history.window(policy.panic_window).all(|sample| sample.running + sample.waiting == 0.0);
    let (load, long, burst, short) = if idle { (0.0, 0.0, 0.0, 0.0) } else { (load, long, burst, short) };
    let in_panic = bursts || history.panicked_within(policy.load_window);
    demand.wanted = if in_panic { long.max(short) } else { long };
    demand.short = short;
    demand.peak = if short >= policy.panic_threshold * long { short } else { demand.wanted };
    Demand { service_seconds: service, load, burst, ..demand }
}

/// As many executions of the length that was known before are counted in, so that the first ones are no surprise.
const KNOWN_BEFORE: f64 = 5.0;

/// The mean of what ran, over what ended.
pub(crate) fn service_seconds(policy: &Policy, history: &History) -> f64 {
    let known = history.service_seconds().unwrap_or(policy.assumed_service.as_secs_f64());
    let window: Vec<&Sample> = history.window(policy.load_window).collect();
    let Some((first, last)) = window.first().zip(window.last()) else { return known };
    let ended = (last.finished - first.finished).max(0.0);
    (KNOWN_BEFORE * known + busy_seconds(&window)) / (KNOWN_BEFORE + ended)
}

struct Offered {
    /// Slots that ran, on average.
    running: f64,
    /// How many more wait, a second; negative where a backlog is worked off, which is no load.
    growth: f64,
}

fn offered(history: &History, window: Duration) -> Offered {
    let window: Vec<&Sample> = history.window(window).collect();
    let Some((first, last)) = window.first().zip(window.last()) else {
        return Offered { running: 0.0, growth: 0.0 };
    };
    let seconds = last.at.since(first.at).as_secs_f64();
    if seconds == 0.0 {
        return Offered { running: last.running, growth: 0.0 };
    }
    let growth = (last.waiting - first.waiting) / seconds;
    Offered { running: busy_seconds(&window) / seconds, growth }
}

/// Slot-seconds that were used between the samples. What runs at the end of one may have begun just now: it counts from the
/// next one on.
fn busy_seconds(window: &[&Sample]) -> f64 {
    window.windows(2).map(|pair| pair[0].running * pair[1].at.since(pair[0].at).as_secs_f64()).sum()
}
