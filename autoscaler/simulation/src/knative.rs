//! Knative's KPA with its defaults: desired = mean concurrency / (slots × 70 %) over 60 s; over 6 s in panic, which begins where
//! that is twice what is ready, and in which nothing is removed until 60 s after; at most half is removed at once; the last one goes
//! after 30 s more. Concurrency counts what waits too, as its activator does.

use std::collections::VecDeque;

use flux_plan::{Action, Phase, Snapshot};

use crate::{Scaler, Setting, policies::to_count};

const STABLE: f64 = 60.0;
const PANIC: f64 = 6.0;
const UTILISATION: f64 = 0.7;
const PANIC_THRESHOLD: f64 = 2.0;
const ZERO_GRACE: f64 = 30.0;

pub(crate) struct Knative {
    target: f64,
    max_nodes: u32,
    /// Seconds, concurrency.
    seen: VecDeque<(f64, f64)>,
    panic: Option<(f64, f64)>,
    idle_since: Option<f64>,
}

impl Knative {
    pub(crate) fn new(setting: &Setting) -> Self {
        let target = f64::from(setting.slots) * UTILISATION;
        Self { target, max_nodes: setting.max_nodes, seen: VecDeque::new(), panic: None, idle_since: None }
    }

    fn mean(&self, now: f64, window: f64) -> f64 {
        let seen: Vec<f64> = self.seen.iter().filter(|(at, _)| *at > now - window).map(|(_, value)| *value).collect();
        let count: f64 = seen.iter().map(|_| 1.0).sum();
        seen.iter().sum::<f64>() / f64::max(count, 1.0)
    }
}

impl Scaler for Knative {
    fn name(&self) -> String {
        "knative".to_owned()
    }

    #[allow(clippy::cast_precision_loss)] // seconds and counts
    fn decide(&mut self, snapshot: &Snapshot) -> Vec<Action> {
        let now = snapshot.at.as_micros() as f64 / 1e6;
        let running: f64 = snapshot.nodes.iter().filter_map(|node| node.load).map(|load| f64::from(load.running)).sum();
        self.seen.push_back((now, running + snapshot.waiting as f64));
        while self.seen.front().is_some_and(|(at, _)| *at <= now - STABLE) {
            self.seen.pop_front();
        }
        let ready = snapshot.nodes.iter().filter(|node| node.phase == Phase::Ready).count() as f64;
        let stable = (self.mean(now, STABLE) / self.target).ceil();
        let short = (self.mean(now, PANIC) / self.target).ceil();
        if short >= PANIC_THRESHOLD * ready.max(1.0) {
            let most = self.panic.map_or(0.0, |(_, most)| most);
            self.panic = Some((now, f64::max(most, short)));
        } else if self.panic.is_some_and(|(since, _)| now - since >= STABLE) {
            self.panic = None;
        }
        let mut desired = match self.panic {
            Some((_, most)) => most.max(short),
            None => stable.max((ready / 2.0).floor()),
        };
        if desired == 0.0 {
            let since = *self.idle_since.get_or_insert(now);
            if now - since < ZERO_GRACE {
                desired = desired.max(ready.min(1.0));
            }
        } else {
            self.idle_since = None;
        }
        to_count(snapshot, whole(desired).min(self.max_nodes))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative, and saturating
fn whole(value: f64) -> u32 {
    value as u32
}
