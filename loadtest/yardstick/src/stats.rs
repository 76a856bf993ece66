//! What is said about many durations.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// Durations, to be summed up once all are there.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    nanos: Vec<u64>,
}

impl Samples {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { nanos: Vec::with_capacity(capacity) }
    }

    pub(crate) fn record(&mut self, duration: Duration) {
        self.nanos.push(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.nanos.extend(other.nanos);
    }

    pub(crate) fn len(&self) -> usize {
        self.nanos.len()
    }

    /// The duration that `per_mille` of a thousand do not exceed (nearest rank), in microseconds with one decimal.
    fn percentile_us(&self, per_mille: usize) -> f64 {
        let rank = (self.nanos.len() * per_mille).div_ceil(1000).max(1);
        self.nanos.get(rank - 1).copied().map_or(0.0, micros)
    }

    /// `{prefix}p50_us`, `p90_us`, `p99_us`, `max_us`.
    pub(crate) fn summary(mut self, prefix: &str) -> Map<String, Value> {
        self.nanos.sort_unstable();
        let mut map = Map::new();
        for (name, per_mille) in [("p50_us", 500), ("p90_us", 900), ("p99_us", 990), ("max_us", 1000)] {
            map.insert(format!("{prefix}{name}"), json!(self.percentile_us(per_mille)));
        }
        map
    }
}

#[allow(clippy::cast_precision_loss)] // tenths of a microsecond, of less than years
fn micros(nanos: u64) -> f64 {
    (nanos / 100) as f64 / 10.0
}

/// `count` per second, to a whole number.
#[allow(clippy::cast_precision_loss)] // counts of one run
pub(crate) fn rate(count: usize, elapsed: Duration) -> f64 {
    (count as f64 / elapsed.as_secs_f64()).round()
}

/// A duration in seconds, to milliseconds.
pub(crate) fn seconds(elapsed: Duration) -> f64 {
    (elapsed.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Samples, rate};

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut samples = Samples::default();
        for us in (1..=100).rev() {
            samples.record(Duration::from_micros(us));
        }
        let summary = samples.summary("x_");
        assert_eq!(summary["x_p50_us"], 50.0);
        assert_eq!(summary["x_p99_us"], 99.0);
        assert_eq!(summary["x_max_us"], 100.0);
    }

    #[test]
    fn nothing_measured_is_zero_and_not_a_panic() {
        assert_eq!(Samples::default().summary("")["p50_us"], 0.0);
    }

    #[test]
    fn rates_are_per_second() {
        assert!((rate(500, Duration::from_millis(250)) - 2000.0).abs() < f64::EPSILON);
    }
}
