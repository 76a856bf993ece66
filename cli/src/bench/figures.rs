//! What was measured, round by round, and what follows from it. No I/O.

use std::collections::BTreeMap;

/// Figures by name, one value for each round.
#[derive(Debug, Default)]
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

/// A target: a figure over its yardstick.
#[derive(Debug, Clone)]
pub(super) struct Ratio {
    pub(super) number: &'static str,
    pub(super) what: &'static str,
    pub(super) beside: &'static str,
    pub(super) value: f64,
    pub(super) reach: Reach,
    pub(super) target: f64,
}

impl Ratio {
    pub(super) fn is_reached(&self) -> bool {
        match self.reach {
            Reach::AtMost => self.value <= self.target,
            Reach::AtLeast => self.value >= self.target,
        }
    }
}

#[derive(Debug)]
pub(super) struct Results {
    pub(super) figures: BTreeMap<&'static str, Figure>,
    pub(super) ratios: Vec<Ratio>,
}

impl Figures {
    pub(super) fn add(&mut self, name: &'static str, value: f64) {
        self.values.entry(name).or_default().push(value);
    }

    pub(super) fn results(&self) -> Results {
        let figures: BTreeMap<_, _> = self.values.iter().map(|(name, values)| (*name, summary(values))).collect();
        let median = |name: &str| figures.get(name).map_or(f64::NAN, |figure| figure.median);
        let ratio = |number, what, beside, value, reach, target| Ratio { number, what, beside, value, reach, target };
        let ratios = vec![
            ratio(
                "P3",
                "sync, p50 at c=1",
                "bare NATS route + bare spawn, p50s added",
                median("sync_p50_us") / (median("route_p50_us") + median("spawn_p50_us")),
                Reach::AtMost,
                1.3,
            ),
            ratio(
                "P4",
                "sync, executions/s at c=16",
                "bare spawn loop, 2 threads, same pipes",
                median("sync_per_s") / median("spawn_per_s"),
                Reach::AtLeast,
                0.9,
            ),
            ratio(
                "P6",
                "async, accepted/s",
                "HTTP echo, req/s",
                median("accepted_per_s") / median("echo_per_s"),
                Reach::AtLeast,
                0.35,
            ),
            ratio(
                "P8",
                "dispatch (accepted → started), p95",
                "JetStream publish → delivered + bare spawn, p50s added",
                median("dispatch_p95_us") / (median("delivered_p50_us") + median("spawn_p50_us")),
                Reach::AtMost,
                3.0,
            ),
        ];
        Results { figures, ratios }
    }
}

fn summary(values: &[f64]) -> Figure {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() / 2;
    let median =
        if sorted.len().is_multiple_of(2) { f64::midpoint(at(middle.wrapping_sub(1)), at(middle)) } else { at(middle) };
    Figure { median, least: at(0), most: at(sorted.len().wrapping_sub(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(summary(&[3.0, 1.0, 2.0]), Figure { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(summary(&[4.0, 1.0, 2.0, 3.0]), Figure { median: 2.5, least: 1.0, most: 4.0 });
    }

    #[test]
    fn ratios_are_of_medians() {
        let mut figures = Figures::default();
        for (name, value) in [("sync_p50_us", 1300.0), ("route_p50_us", 500.0), ("spawn_p50_us", 500.0)] {
            figures.add(name, value);
        }
        let results = figures.results();
        assert!(results.ratios[0].is_reached() && (results.ratios[0].value - 1.3).abs() < 1e-9);
        assert!(!results.ratios[1].is_reached(), "what was not measured is not reached");
    }
}
