//! What the answers of one load come to.

use std::{collections::BTreeMap, time::Duration};

use super::generator::{Answer, Answers};

/// Of answers of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Latency {
    pub(super) count: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Latency {
    pub(super) fn of(answers: impl Iterator<Item = Answer>) -> Self {
        let mut ms: Vec<f64> = answers.map(|answer| answer.took.as_secs_f64() * 1000.0).collect();
        ms.sort_by(f64::total_cmp);
        let rank = |percent: usize| ms.get((ms.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or_default();
        Self { count: ms.len(), p50_ms: rank(50), p99_ms: rank(99) }
    }
}

/// What became of the requests of one load.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) sent: usize,
    pub(super) accepted: Latency,
    pub(super) refused: Latency,
    /// Refusals by status.
    pub(super) statuses: BTreeMap<u16, usize>,
    /// Refusals that do not say when to try again, and answers that are neither a success nor 429 or 503.
    pub(super) without_retry_after: usize,
    pub(super) other: usize,
    pub(super) broken: usize,
    pub(super) unsent: usize,
    /// How late the generator itself was.
    pub(super) late: Latency,
}

impl Outcome {
    pub(super) fn of(answers: &Answers) -> Self {
        let accepted = |answer: &&Answer| (200..300).contains(&answer.status);
        let refused = |answer: &&Answer| matches!(answer.status, 429 | 503);
        let mut statuses = BTreeMap::new();
        for answer in answers.all.iter().filter(|answer| !accepted(answer)) {
            *statuses.entry(answer.status).or_default() += 1;
        }
        let all = answers.all.iter();
        Self {
            sent: answers.all.len() + answers.broken,
            accepted: Latency::of(all.clone().filter(accepted).copied()),
            refused: Latency::of(all.clone().filter(refused).copied()),
            statuses,
            without_retry_after: all.clone().filter(refused).filter(|answer| !answer.retry_after).count(),
            other: all.filter(|answer| !accepted(answer) && !refused(answer)).count(),
            broken: answers.broken,
            unsent: answers.unsent,
            late: Latency::of(answers.all.iter().map(|answer| Answer { took: answer.late, ..*answer })),
        }
    }

    pub(super) fn accepted_per_s(&self, length: Duration) -> f64 {
        per_s(self.accepted.count, length)
    }
}

#[allow(clippy::cast_precision_loss)] // counts of one run
pub(super) fn per_s(count: usize, length: Duration) -> f64 {
    count as f64 / length.as_secs_f64()
}

/// When, after the load's end, calls were as they should be for good: the last moment at which one was refused, failed
/// or took longer than `bound`.
pub(super) fn recovered_after(probes: &Answers, bound: Duration) -> Duration {
    let bad = |answer: &&Answer| !(200..300).contains(&answer.status) || answer.took > bound;
    probes.all.iter().filter(bad).map(|answer| answer.due + answer.took).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(due_ms: u64, took_ms: u64, status: u16) -> Answer {
        let (due, took) = (Duration::from_millis(due_ms), Duration::from_millis(took_ms));
        Answer { due, took, late: Duration::ZERO, status, retry_after: status == 429 }
    }

    #[test]
    fn answers_are_told_apart() {
        let all = vec![answer(0, 5, 200), answer(1, 7, 202), answer(2, 1, 429), answer(3, 2, 503), answer(4, 9, 500)];
        let outcome = Outcome::of(&Answers { all, broken: 1, unsent: 2 });
        assert_eq!(outcome.accepted, Latency { count: 2, p50_ms: 5.0, p99_ms: 7.0 });
        assert_eq!(outcome.refused.count, 2);
        assert_eq!((outcome.without_retry_after, outcome.other, outcome.broken, outcome.sent), (1, 1, 1, 6));
    }

    #[test]
    fn recovery_is_when_the_last_bad_answer_came() {
        let all = vec![answer(0, 5, 200), answer(10, 90, 200), answer(200, 3, 503), answer(900, 5, 200)];
        let bound = Duration::from_millis(50);
        assert_eq!(recovered_after(&Answers { all, ..Answers::default() }, bound), Duration::from_millis(203));
        assert_eq!(recovered_after(&Answers::default(), bound), Duration::ZERO);
    }
}
