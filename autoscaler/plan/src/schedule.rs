//! Minimums that hold at certain times, such as on weekdays from eight.

use std::{str::FromStr as _, time::Duration};

use chrono::{DateTime, Utc};
use croner::Cron;
use flux_protocol::Timestamp;

/// From each time of a cron expression (UTC) on, for a while, at least so many nodes.
#[derive(Debug, Clone)]
pub struct ScheduledMinimum {
    pub text: String,
    cron: Cron,
    pub lasts: Duration,
    pub min_nodes: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a cron expression (minute hour day month weekday, UTC)")]
pub struct ScheduleError {
    text: String,
    #[source]
    source: croner::errors::CronError,
}

impl ScheduledMinimum {
    /// # Errors
    /// It is not a cron expression.
    pub fn try_new(text: &str, lasts: Duration, min_nodes: u32) -> Result<Self, ScheduleError> {
        match Cron::from_str(text) {
            Ok(cron) => Ok(Self { text: text.to_owned(), cron, lasts, min_nodes }),
            Err(source) => Err(ScheduleError { text: text.to_owned(), source }),
        }
    }

    /// Whether it holds at that time. An expression that never comes true holds never.
    pub(crate) fn holds(&self, at: Timestamp) -> bool {
        let Some(now) = DateTime::<Utc>::from_timestamp_micros(at.as_micros()) else { return false };
        let Ok(began) = self.cron.find_previous_occurrence(&now, true) else { return false };
        at.since(Timestamp::from_micros(began.timestamp_micros())) < self.lasts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn it_holds_from_its_time_on_for_as_long_as_it_says() {
        let mornings = ScheduledMinimum::try_new("0 8 * * 1-5", Duration::from_secs(3600), 3).expect("an expression");
        // A Monday.
        for (when, holds) in [
            ("2026-11-30T07:59:59Z", false),
            ("2026-11-30T08:00:00Z", true),
            ("2026-11-30T08:59:59Z", true),
            ("2026-11-30T09:00:00Z", false),
            ("2026-11-29T08:10:00Z", false),
        ] {
            assert_eq!(mornings.holds(at(when)), holds, "{when}");
        }
    }

    #[test]
    fn what_is_no_expression_is_named() {
        let error = ScheduledMinimum::try_new("at eight", Duration::ZERO, 1).expect_err("no expression");
        assert!(error.to_string().contains("at eight"), "{error}");
    }
}
