//! How many requests a second somebody may make: the generic cell rate algorithm in one atomic number, since each request
//! asks. The `governor` crate does the same and brings a clock, a map and six crates with it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// A second's worth may come at once.
const BURST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Rate {
    /// `None` is without limit.
    each: Option<Duration>,
    began: Instant,
    /// When all that was let in would have come at an even pace, in nanoseconds since `began`.
    paid_until: AtomicU64,
}

impl Rate {
    pub fn new(per_second: Option<u32>) -> Self {
        let each = per_second.filter(|number| *number > 0).map(|number| BURST / number);
        Self { each, began: Instant::now(), paid_until: AtomicU64::new(0) }
    }

    /// Lets one request in, or says when to come again.
    ///
    /// # Errors
    /// There were too many: the time until there is room.
    pub fn take(&self) -> Result<(), Duration> {
        if self.each.is_none() {
            return Ok(());
        }
        self.take_at(self.began.elapsed())
    }

    fn take_at(&self, at: Duration) -> Result<(), Duration> {
        let Some(each) = self.each else { return Ok(()) };
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let (at, each) = (nanos(at), nanos(each));
        let latest = at.saturating_add(nanos(BURST));
        let taken = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
            let paid = paid.max(at).saturating_add(each);
            (paid <= latest).then_some(paid)
        });
        taken.map(|_| ()).map_err(|paid| Duration::from_nanos(paid.saturating_add(each).saturating_sub(latest)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_seconds_worth_at_once_and_then_one_by_one() {
        let rate = Rate::new(Some(4));
        let take = |millis: u64| rate.take_at(Duration::from_millis(millis));
        (0..4).for_each(|_| take(0).expect("in the burst"));
        assert_eq!(take(0), Err(Duration::from_millis(250)));
        assert_eq!(take(100), Err(Duration::from_millis(150)));
        take(250).expect("one more");
        assert_eq!(take(250), Err(Duration::from_millis(250)));
        (0..4).for_each(|_| take(10_000).expect("idle, and no more than a burst saved"));
        assert!(take(10_000).is_err());
    }

    #[test]
    fn without_a_number_there_is_no_limit() {
        let rate = Rate::new(None);
        (0..10_000).for_each(|_| rate.take().expect("let in"));
    }

    proptest! {
        /// Whatever comes when: never more than the burst and what the time since then allows, and who waits as long as
        /// was said is let in.
        #[test]
        fn never_more_than_is_due(per_second in 1_u32..1000, gaps in proptest::collection::vec(0_u64..50, 1..300)) {
            let rate = Rate::new(Some(per_second));
            let (mut at, mut let_in) = (Duration::ZERO, 0_u64);
            for gap in gaps {
                at += Duration::from_millis(gap);
                match rate.take_at(at) {
                    Ok(()) => let_in += 1,
                    Err(wait) => {
                        prop_assert!(wait <= BURST / per_second + Duration::from_nanos(1), "{wait:?}");
                        prop_assert_eq!(rate.take_at(at + wait), Ok(()));
                        let_in += 1;
                        at += wait;
                    }
                }
                let nanos = at.as_nanos() * u128::from(per_second);
                let due = u128::from(per_second) + nanos.div_ceil(1_000_000_000) + 1;
                prop_assert!(u128::from(let_in) <= due, "{let_in} in {at:?}");
            }
        }
    }
}
