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
    /// Seconds that an execution takes.
    pub service_seconds: f64,
    /// Slots that the load of the long and of the short window takes.
    pub load: f64,
    pub burst: f64,
    pub waiting: u64,
    pub running: u32,
    /// Slots that are there or on their way.
    pub capacity: f64,
}

pub(crate) fn demand(snapshot: &Snapshot, policy: &Policy, history: &History, capacity: f64, ready: f64) -> Demand {
    let (waiting, running) = (snapshot.waiting, snapshot.running());
    let mut demand = Demand { waiting, running, capacity, ..Demand::default() };
    if policy.target_queue.is_zero() {
        return demand;
    }
    let service = service_seconds(policy, history);
    let wish = |load: Offered| {
        let growing = load.growing.min(count(waiting));
        let offered = load.running + growing;
        // What waits is there already, or it would not grow.
        let backlog = (count(waiting) * service / policy.target_queue.as_secs_f64()).min(count(waiting) - growing);
        (offered, offered + policy.headroom * offered.sqrt() + backlog)
    };
    let (load, long) = wish(offered(history, policy.load_window, service));
    let (burst, short) = wish(offered(history, policy.panic_window, service));
    let bursts = short >= policy.panic_threshold * ready.max(1.0);
    demand.panic = bursts;
    let in_panic = bursts || history.panicked_within(policy.load_window);
    demand.wanted = if in_panic { long.max(short) } else { long };
    Demand { service_seconds: service, load, burst, ..demand }
}

/// The mean of what ran, over what ended; with one execution of the assumed length, so that a first one is no surprise.
fn service_seconds(policy: &Policy, history: &History) -> f64 {
    let window: Vec<&Sample> = history.window(policy.load_window).collect();
    let Some((first, last)) = window.first().zip(window.last()) else { return policy.assumed_service.as_secs_f64() };
    let ended = (last.finished - first.finished).max(0.0);
    (policy.assumed_service.as_secs_f64() + busy_seconds(&window)) / (1.0 + ended)
}

struct Offered {
    /// Slots that ran, on average.
    running: f64,
    /// Slots that those would take that came and could not.
    growing: f64,
}

fn offered(history: &History, window: Duration, service: f64) -> Offered {
    let window: Vec<&Sample> = history.window(window).collect();
    let Some((first, last)) = window.first().zip(window.last()) else {
        return Offered { running: 0.0, growing: 0.0 };
    };
    let seconds = last.at.since(first.at).as_secs_f64();
    if seconds == 0.0 {
        return Offered { running: last.running, growing: 0.0 };
    }
    let growth = (last.waiting - first.waiting).max(0.0) / seconds;
    Offered { running: busy_seconds(&window) / seconds, growing: service * growth }
}

/// Slot-seconds that were used between the samples.
fn busy_seconds(window: &[&Sample]) -> f64 {
    window
        .windows(2)
        .map(|pair| (pair[0].running + pair[1].running) / 2.0 * pair[1].at.since(pair[0].at).as_secs_f64())
        .sum()
}
