//! What was measured, round by round, and what follows from it. No I/O.

use std::collections::BTreeMap;

/// Figures by name, one value for each round.
#[derive(Debug, Default, Clone)]
pub(super) struct Figures {
    values: BTreeMap<&'static str, Vec<f64>>,
}

/// A figure over all rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figure {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    AtMost,
    AtLeast,
}

impl Reach {
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::AtMost => "≤",
            Self::AtLeast => "≥",
        }
    }
}

/// A figure over its yardstick, and what it is to reach.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) number: &'static str,
    pub(super) what: &'static str,
    pub(super) beside: &'static str,
    pub(super) reach: Reach,
    pub(super) target: f64,
    over: &'static [&'static str],
    /// Added up.
    under: &'static [&'static str],
}

/// A target, and how far we are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio {
    pub(super) target: &'static Target,
    pub(super) value: f64,
}

impl Ratio {
    pub(super) fn is_reached(&self) -> bool {
        self.headroom() >= 1.0
    }

    /// How many times better than asked for: 1 is just reached.
    pub(super) fn headroom(&self) -> f64 {
        match self.target.reach {
            Reach::AtMost => self.target.target / self.value,
            Reach::AtLeast => self.value / self.target.target,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Results {
    pub(super) figures: BTreeMap<&'static str, Figure>,
    /// Those whose figures were all measured, in the order of the targets.
    pub(super) ratios: Vec<Ratio>,
}

impl Figures {
    pub(super) fn add(&mut self, name: &'static str, value: f64) {
        self.values.entry(name).or_default().push(value);
    }

    pub(super) fn extend(&mut self, other: &Self) {
        for (name, values) in &other.values {
            self.values.entry(name).or_default().extend(values);
        }
    }

    pub(super) fn results(&self) -> Results {
        let figures: BTreeMap<_, _> = self.values.iter().map(|(name, values)| (*name, summary(values))).collect();
        let sum = |names: &[&'static str]| {
            names.iter().map(|name| figures.get(name).map(|figure| figure.median)).sum::<Option<f64>>()
        };
        let ratios = TARGETS.iter().filter_map(|target| {
            let under = if target.under.is_empty() { 1.0 } else { sum(target.under)? };
            Some(Ratio { target, value: sum(target.over)? / under })
        });
        Results { ratios: ratios.collect(), figures }
    }
}

pub(super) fn summary(values: &[f64]) -> Figure {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() / 2;
    let median =
        if sorted.len().is_multiple_of(2) { f64::midpoint(at(middle.wrapping_sub(1)), at(middle)) } else { at(middle) };
    Figure { median, least: at(0), most: at(sorted.len().wrapping_sub(1)) }
}

const fn target(
    number: &'static str,
    [what, beside]: [&'static str; 2],
    (reach, target): (Reach, f64),
    over: &'static [&'static str],
    under: &'static [&'static str],
) -> Target {
    Target { number, what, beside, reach, target, over, under }
}

const fn at_most(target: f64) -> (Reach, f64) {
    (Reach::AtMost, target)
}

const fn at_least(target: f64) -> (Reach, f64) {
    (Reach::AtLeast, target)
}

const TARGETS: &[Target] = &[
    target(
        "P1",
        ["sync, a warm Python handler, p50 at c=1", "bare NATS route, whose worker echoes"],
        at_most(1.2),
        &["warm_p50_us"],
        &["warm_route_p50_us"],
    ),
    target(
        "P2",
        ["sync, a warm Python handler, req/s at c=16", "bare NATS route, whose worker echoes"],
        at_least(0.7),
        &["warm_per_s"],
        &["warm_route_per_s"],
    ),
    target(
        "P3",
        ["sync, p50 at c=1", "bare NATS route + bare spawn, p50s added"],
        at_most(1.3),
        &["sync_p50_us"],
        &["route_p50_us", "spawn_p50_us"],
    ),
    target(
        "P4",
        ["sync, executions/s at c=16", "bare spawn loop, 2 threads, same pipes"],
        at_least(0.9),
        &["sync_per_s"],
        &["spawn_per_s"],
    ),
    target("P6", ["async, accepted/s", "HTTP echo, req/s"], at_least(0.35), &["accepted_per_s"], &["echo_per_s"]),
    target(
        "P7",
        ["direct NATS publishes, executed/s, a process each", "whole pipe of bare JetStream"],
        at_least(0.3),
        &["direct_per_s"],
        &["pipe_per_s"],
    ),
    target(
        "P7",
        ["direct NATS publishes, executed/s, by warm Python workers", "whole pipe of bare JetStream"],
        at_least(0.3),
        &["warm_direct_per_s"],
        &["pipe_per_s"],
    ),
    target(
        "P8",
        ["dispatch (accepted → started), p95", "JetStream publish → delivered + bare spawn, p50s added"],
        at_most(3.0),
        &["dispatch_p95_us"],
        &["delivered_p50_us", "spawn_p50_us"],
    ),
    target(
        "P9",
        ["live output (written → at the client), p50", "core NATS request + HTTP echo, p50s added"],
        at_most(3.0),
        &["output_p50_us"],
        &["core_p50_us", "echo_p50_us"],
    ),
    target(
        "F",
        ["sync, a forked Python handler (`fresh: true`), p50 at c=1", "bare `python3 -I -c 'import json'`"],
        at_most(0.2),
        &["fresh_p50_us"],
        &["python_p50_us"],
    ),
    target(
        "L",
        ["sync, a warm Lambda package (awslambdaric), p50 at c=1", "a warm Python handler over the framed protocol"],
        at_most(2.0),
        &["lambda_p50_us"],
        &["framed_p50_us"],
    ),
    target("P11", ["gateway, idle, resident MB", "a fixed size"], at_most(30.0), &["gateway_mb"], &[]),
    target("P11", ["agent, idle, resident MB", "a fixed size"], at_most(20.0), &["agent_mb"], &[]),
    target("P11", ["launcher, idle, resident MB", "a fixed size"], at_most(5.0), &["launcher_mb"], &[]),
    target("Q1", ["sync, req/s at c=16", "busybox httpd + CGI"], at_least(1.1), &["sync_per_s"], &["cgi_per_s"]),
    target("Q1", ["sync, p50 at c=1", "busybox httpd + CGI"], at_most(1.3), &["sync_p50_us"], &["cgi_p50_us"]),
    target(
        "Q2",
        ["sync, a warm Python handler, req/s at c=16", "functions-framework (gunicorn)"],
        at_least(6.0),
        &["warm_per_s"],
        &["framework_per_s"],
    ),
    target(
        "Q2",
        ["sync, a warm Python handler, p50 at c=1", "functions-framework (gunicorn)"],
        at_most(0.9),
        &["warm_p50_us"],
        &["framework_p50_us"],
    ),
    target(
        "Q3",
        ["async, executed/s", "Celery, prefork 2, subprocess"],
        at_least(2.5),
        &["executed_per_s"],
        &["celery_per_s"],
    ),
    target("Q3", ["async, executed/s", "BullMQ, spawn"], at_least(2.5), &["executed_per_s"], &["bullmq_per_s"]),
    target(
        "Q5",
        ["dispatch (asked → started), p50", "BullMQ"],
        at_most(0.5),
        &["asked_p50_us"],
        &["bullmq_dispatch_p50_us"],
    ),
    target(
        "Q5",
        ["dispatch (asked → started), p95", "BullMQ"],
        at_most(0.5),
        &["asked_p95_us"],
        &["bullmq_dispatch_p95_us"],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(summary(&[3.0, 1.0, 2.0]), Figure { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(summary(&[4.0, 1.0, 2.0, 3.0]), Figure { median: 2.5, least: 1.0, most: 4.0 });
    }

    #[test]
    fn ratios_are_of_medians_and_of_what_was_measured() {
        let mut figures = Figures::default();
        for (name, value) in [("sync_p50_us", 1300.0), ("route_p50_us", 500.0), ("spawn_p50_us", 500.0)] {
            figures.add(name, value);
        }
        for (name, value) in [("sync_per_s", 300.0), ("spawn_per_s", 1000.0), ("launcher_mb", 2.0)] {
            figures.add(name, value);
        }
        let found: Vec<_> = figures
            .results()
            .ratios
            .iter()
            .map(|ratio| (ratio.target.number, format!("{:.2}", ratio.value), ratio.is_reached()))
            .collect();
        let wanted = [("P3", "1.30", true), ("P4", "0.30", false), ("P11", "2.00", true)];
        assert_eq!(found, wanted.map(|(number, value, reached)| (number, value.to_owned(), reached)));
    }

    #[test]
    fn headroom_is_more_than_one_where_a_target_is_reached() {
        let ratio = |index: usize, value| Ratio { target: &TARGETS[index], value };
        assert!((ratio(0, 0.6).headroom() - 2.0).abs() < 1e-9, "at most 1.2");
        assert!((ratio(1, 0.35).headroom() - 0.5).abs() < 1e-9, "at least 0.7");
    }
}
