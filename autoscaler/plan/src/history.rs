//! What was seen before, as far back as any rule looks.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use flux_protocol::{FunctionName, Timestamp};

use crate::{Decision, Phase, Policy, Rule, Snapshot, Wait, demand::service_seconds};

/// Seen at one moment, all machines together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) at: Timestamp,
    pub(crate) waiting: f64,
    pub(crate) running: f64,
    pub(crate) finished: f64,
    /// Of what waited for longer than a backlog is to take: for how long, and when that was told.
    late: Vec<Late>,
    /// What was decided then, once it was.
    wanted: Option<f64>,
    panicked: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Late {
    function: FunctionName,
    oldest: Duration,
    told: Timestamp,
}

/// Seen of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    at: Timestamp,
    cpu_percent: f64,
    memory_percent: f64,
}

/// Grows by [`History::observe`] and [`History::decided`], and forgets what no rule looks at any more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    samples: VecDeque<Sample>,
    nodes: BTreeMap<String, VecDeque<Measured>>,
    /// When thresholds, or what waited too long, last moved something.
    by_thresholds: Option<Timestamp>,
    /// For which a node was bought, or there, while none of them ran, until one runs or none waits any more: when, and whether it
    /// came.
    tried_for: BTreeMap<FunctionName, (Timestamp, bool)>,
    /// Seconds that an execution took when any ended lately.
    service_seconds: Option<f64>,
    /// The largest wish of each minute of the last hour, with the minute's number.
    minutes: VecDeque<(i64, f64)>,
}

const MINUTE_MICROS: i64 = 60_000_000;
const MINUTES: usize = 60;
/// How often the slots that ran have to have been filled anew before a mean length is believed for later.
const TURNOVERS: f64 = 10.0;
/// The smallest of some bursts is not the next one.
const RECURS_LARGER: f64 = 1.2;
/// Gaps that have to be seen before another is expected.
const GAPS_SEEN: usize = 2;

impl History {
    /// Adds what is there now. The same moment twice is one.
    pub fn observe(&mut self, snapshot: &Snapshot, policy: &Policy) {
        if self.samples.back().is_some_and(|last| last.at >= snapshot.at) {
            return;
        }
        let late = self.late(snapshot, policy);
        self.samples.push_back(Sample {
            at: snapshot.at,
            waiting: count(snapshot.waiting),
            running: f64::from(snapshot.running()),
            finished: count(snapshot.finished),
            late,
            wanted: None,
            panicked: false,
        });
        let from = snapshot.at.minus(policy.remembers());
        // One from before the window stays: the window is then covered whole.
        while self.samples.get(1).is_some_and(|second| second.at <= from) {
            self.samples.pop_front();
        }
        for node in snapshot.managed().filter(|node| node.phase == Phase::Ready) {
            let Some(load) = node.load else { continue };
            let (cpu_percent, memory_percent) = (load.cpu_percent, load.memory_percent);
            let seen = self.nodes.entry(node.name.clone()).or_default();
            seen.push_back(Measured { at: snapshot.at, cpu_percent, memory_percent });
            while seen.get(1).is_some_and(|second| second.at <= from) {
                seen.pop_front();
            }
        }
        // So many have ended that those which run on at either end of the window do not matter.
        let first = self.window(policy.load_window).next().map_or(0.0, |first| first.finished);
        let most = self.window(policy.load_window).map(|sample| sample.running).fold(1.0, f64::max);
        if self.samples.back().is_some_and(|last| last.finished - first >= TURNOVERS * most) {
            self.service_seconds = Some(service_seconds(policy, self));
        }
        let came = |when: Timestamp| snapshot.managed().any(|node| node.phase == Phase::Ready && node.since >= when);
        self.tried_for.retain(|function, (when, has_come)| {
            *has_come |= came(*when);
            let mut of_it = snapshot.waits.iter().filter(|wait| wait.function == *function).peekable();
            (snapshot.untold || of_it.peek().is_some()) && of_it.all(|wait: &Wait| wait.running == 0)
        });
        // Who was away has to sustain anew.
        let at = snapshot.at;
        self.nodes.retain(|_, seen| seen.back().is_some_and(|last| last.at == at));
    }

    /// What waits for too long; of what is not told, what did so lately.
    fn late(&self, snapshot: &Snapshot, policy: &Policy) -> Vec<Late> {
        let (at, target) = (snapshot.at, policy.target_queue);
        let late = snapshot.waits.iter().filter(|wait| !target.is_zero() && wait.oldest >= target);
        let late = late.map(|wait| Late { function: wait.function.clone(), oldest: wait.oldest, told: at });
        let mut late: Vec<Late> = late.collect();
        let last = self.samples.back().filter(|_| snapshot.untold && snapshot.waiting > 0);
        if let Some(last) = last {
            let lately = |one: &&Late| at.since(one.told) <= policy.cooldown;
            let aged = |one: &Late| Late { oldest: one.oldest + at.since(last.at), ..one.clone() };
            late.extend(last.late.iter().filter(lately).map(aged));
        }
        late
    }

    /// Adds what was decided and is being done.
    pub fn decided(&mut self, decision: &Decision) {
        if let Some(sample) = self.samples.iter_mut().rev().find(|sample| sample.at == decision.at) {
            sample.wanted = Some(decision.demand.wanted);
            sample.panicked = decision.demand.panic;
        }
        let minute = decision.at.as_micros().div_euclid(MINUTE_MICROS);
        match self.minutes.back_mut().filter(|(last, _)| *last == minute) {
            Some((_, most)) => *most = most.max(decision.demand.peak),
            None => self.minutes.push_back((minute, decision.demand.peak)),
        }
        while self.minutes.len() > MINUTES {
            self.minutes.pop_front();
        }
        let by_thresholds = |rule: Rule| matches!(rule, Rule::Pressure | Rule::Late | Rule::Quiet | Rule::Replace);
        if decision.actions.iter().any(|act| by_thresholds(act.reason.rule)) {
            self.by_thresholds = Some(decision.at);
        }
        self.tried_for.extend(decision.tried_for.clone().map(|(function, there)| (function, (decision.at, there))));
    }

    /// Samples since `window` before the last one, and the one before them.
    pub(crate) fn window(&self, window: Duration) -> impl Iterator<Item = &Sample> {
        let from = self.samples.back().map(|last| last.at.minus(window));
        let before = self.samples.iter().rposition(|sample| from.is_some_and(|from| sample.at <= from)).unwrap_or(0);
        self.samples.iter().skip(before)
    }

    /// The largest wish of the window; `None` while it is not covered.
    pub(crate) fn most_wanted(&self, window: Duration) -> Option<f64> {
        let last = self.samples.back()?.at;
        let first = self.samples.front()?.at;
        if last.since(first) < window {
            return None;
        }
        Some(self.window(window).filter_map(|sample| sample.wanted).fold(0.0, f64::max))
    }

    /// The largest wish that comes again and again: the last gaps between its comings were no longer than `gap`, and the one now
    /// is not either. Keeping what it needs is cheaper than buying it each time.
    pub(crate) fn recurring(&self, at: Timestamp, gap: Duration) -> f64 {
        let gap = i64::try_from(gap.as_micros()).unwrap_or(i64::MAX) / MINUTE_MICROS;
        let now = at.as_micros().div_euclid(MINUTE_MICROS);
        let recurs = |level: f64| {
            // Minutes in a row are one coming.
            let mut comings: Vec<(i64, i64)> = Vec::new();
            for (minute, _) in self.minutes.iter().filter(|(_, most)| *most >= level) {
                match comings.last_mut().filter(|(_, to)| minute - *to <= 1) {
                    Some((_, to)) => *to = *minute,
                    None => comings.push((*minute, *minute)),
                }
            }
            let gaps = comings.windows(2).map(|pair| pair[1].0 - pair[0].1);
            let last = comings.last().is_some_and(|(_, to)| now - to <= gap);
            last && comings.len() > GAPS_SEEN && gaps.rev().take(GAPS_SEEN).all(|between| between <= gap)
        };
        RECURS_LARGER * self.minutes.iter().map(|(_, most)| *most).filter(|level| recurs(*level)).fold(0.0, f64::max)
    }

    /// At the beginning of the window, if it waited for too long then: when that was, and for how long it did.
    pub(crate) fn was_late(&self, function: &FunctionName, window: Duration) -> Option<(Timestamp, Duration)> {
        let sample = self.window(window).next()?;
        let of_it = sample.late.iter().filter(|late| late.function == *function);
        of_it.map(|late| late.oldest).max().map(|oldest| (sample.at, oldest))
    }

    /// What waited for too long when that was last told, and may still.
    pub(crate) fn untold_late(&self) -> impl Iterator<Item = &FunctionName> {
        let last = self.samples.back();
        let late = last.into_iter().flat_map(|last| last.late.iter().filter(|late| late.told < last.at));
        late.map(|late| &late.function)
    }

    /// Whether a node came for it, and none of it runs yet.
    pub(crate) fn was_tried_for(&self, function: &FunctionName) -> bool {
        self.tried_for.get(function).is_some_and(|(_, has_come)| *has_come)
    }

    pub(crate) fn service_seconds(&self) -> Option<f64> {
        self.service_seconds
    }

    pub(crate) fn panicked_within(&self, window: Duration) -> bool {
        self.window(window).any(|sample| sample.panicked)
    }

    pub(crate) fn cools_down(&self, at: Timestamp, cooldown: Duration) -> bool {
        self.by_thresholds.is_some_and(|last| at.since(last) < cooldown)
    }

    /// Whether the node was seen for the whole window, and each time `holds` of (CPU, memory).
    pub(crate) fn sustained(&self, node: &str, window: Duration, holds: impl Fn(f64, f64) -> bool) -> bool {
        let Some(seen) = self.nodes.get(node) else { return false };
        let (Some(first), Some(last)) = (seen.front(), seen.back()) else { return false };
        let from = last.at.minus(window);
        first.at <= from
            && seen.iter().filter(|one| one.at >= from).all(|one| holds(one.cpu_percent, one.memory_percent))
    }
}

#[allow(clippy::cast_precision_loss)] // a count of invocations
pub(crate) fn count(value: u64) -> f64 {
    value as f64
}
