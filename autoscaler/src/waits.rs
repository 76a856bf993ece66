//! For how long the oldest waits, of each function: told from counts, since who reads a message's time reads the message.
//!
//! At each look what waits is marked: by how many deliveries later all of it was given to somebody, and which place of the lane
//! none of it is behind. The oldest mark that neither was reached of says since when at least one waits. So an age is at most a
//! look too small, a restart forgets it, and what is delivered a second time makes it smaller: what is delivered again and
//! again may hide altogether that others wait. What is taken back counts until a later message is delivered. It errs on the side of machines that are not bought.

use std::collections::{HashMap, HashSet, VecDeque};

use flux_broker::Progress;
use flux_protocol::{Timestamp, subject::QueueName};

/// More of them are thinned out: the oldest stays.
const MARKS: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Waits {
    of: HashMap<QueueName, Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    delivered: u64,
    stored_to: u64,
    marks: VecDeque<Mark>,
}

/// What waited at one look.
#[derive(Debug)]
struct Mark {
    at: Timestamp,
    delivered: u64,
    stored_to: u64,
}

impl Waits {
    /// Nothing waits in any other queue.
    pub(crate) fn forget_others(&mut self, queues: &HashSet<QueueName>) {
        self.of.retain(|queue, _| queues.contains(queue));
    }

    /// Since when the oldest waits; `None`: nothing does.
    pub(crate) fn see(&mut self, progress: &Progress, at: Timestamp) -> Option<Timestamp> {
        if progress.waiting == 0 {
            self.of.remove(&progress.queue);
            return None;
        }
        let watched = self.of.entry(progress.queue.clone()).or_default();
        if progress.delivered < watched.delivered || progress.stored_to < watched.stored_to {
            // The queue was made anew: nothing follows from what was counted before.
            watched.marks.clear();
        }
        (watched.delivered, watched.stored_to) = (progress.delivered, progress.stored_to);
        let reached = |mark: &Mark| progress.delivered >= mark.delivered || progress.delivered_to >= mark.stored_to;
        while watched.marks.front().is_some_and(reached) {
            watched.marks.pop_front();
        }
        let delivered = progress.delivered + progress.waiting;
        let same = |last: &Mark| (last.delivered, last.stored_to) == (delivered, progress.stored_to);
        if !watched.marks.back().is_some_and(same) {
            watched.marks.push_back(Mark { at, delivered, stored_to: progress.stored_to });
        }
        if watched.marks.len() > MARKS {
            let mut keep = false;
            watched.marks.retain(|_| {
                keep = !keep;
                keep
            });
        }
        watched.marks.front().map(|oldest| oldest.at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flux_protocol::{FunctionName, Lane, PoolName};

    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::new(Lane::Invoke, PoolName::default(), FunctionName::parse(name).expect("a name"))
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::from_micros(0).plus(Duration::from_secs(second))
    }

    /// A lane with one queue of ours: messages by their places, and when they came.
    #[derive(Default)]
    struct Lived {
        waiting: VecDeque<(u64, u64)>,
        delivered: u64,
        delivered_to: u64,
        stored_to: u64,
    }

    impl Lived {
        fn come(&mut self, second: u64) {
            self.stored_to += 1;
            self.waiting.push_back((self.stored_to, second));
        }

        fn others_come(&mut self, many: u64) {
            self.stored_to += many;
        }

        fn give(&mut self) {
            if let Some((place, _)) = self.waiting.pop_front() {
                self.delivered += 1;
                self.delivered_to = place;
            }
        }

        fn progress(&self) -> Progress {
            Progress {
                queue: queue("hello"),
                waiting: u64::try_from(self.waiting.len()).expect("a few"),
                delivered: self.delivered,
                delivered_to: self.delivered_to,
                stored_to: self.stored_to,
            }
        }
    }

    /// The truth is kept beside it: an age is never larger, and at most a look smaller while there are few enough looks to mark.
    #[test]
    fn an_age_is_right_to_a_look_however_fast_it_comes_and_goes() {
        for (comes_every, given_every, look_every) in
            [(3, 4, 5), (1, 3, 5), (2, 7, 3), (5, 2, 4), (40, 50, 5), (1, 2, 1)]
        {
            let (mut lived, mut waits) = (Lived::default(), Waits::default());
            let mut checked = 0;
            for second in 0..200 {
                if second % comes_every == 0 {
                    lived.come(second);
                }
                lived.others_come(second % 3);
                if second % given_every == given_every - 1 {
                    lived.give();
                }
                if second % look_every != 0 {
                    continue;
                }
                let since = waits.see(&lived.progress(), at(second));
                let truth = lived.waiting.front().map(|(_, came)| *came);
                let told = since.map(|since| since.as_micros() / 1_000_000);
                let (Some(truth), Some(told)) = (truth, told) else {
                    assert_eq!(truth.is_none(), told.is_none(), "{second}");
                    continue;
                };
                let truth = i64::try_from(truth).expect("a few");
                let thinned = if second / look_every > 64 { 4 } else { 1 };
                let most = i64::try_from(look_every * thinned).expect("a few");
                assert!((truth..=truth + most).contains(&told), "{told} is not within {most} s after {truth}");
                checked += 1;
            }
            assert!(checked > 2, "nothing ever waited");
        }
    }

    #[test]
    fn what_is_taken_back_ages_no_longer_than_until_a_later_one_is_given() {
        let (mut lived, mut waits) = (Lived::default(), Waits::default());
        for _ in 0..5 {
            lived.come(0);
        }
        assert_eq!(waits.see(&lived.progress(), at(0)), Some(at(0)));
        lived.waiting.clear();
        for _ in 0..5 {
            lived.come(50);
        }
        waits.see(&lived.progress(), at(50));
        lived.give();
        assert_eq!(waits.see(&lived.progress(), at(60)), Some(at(50)), "of one that came later");
    }

    #[test]
    fn an_empty_queue_and_one_made_anew_begin_anew() {
        let (mut lived, mut waits) = (Lived::default(), Waits::default());
        lived.come(0);
        lived.come(0);
        lived.give();
        assert_eq!(waits.see(&lived.progress(), at(0)), Some(at(0)));
        assert_eq!(waits.see(&lived.progress(), at(30)), Some(at(0)));
        let mut anew = Lived::default();
        anew.come(40);
        assert_eq!(waits.see(&anew.progress(), at(40)), Some(at(40)));
        anew.give();
        assert_eq!(waits.see(&anew.progress(), at(50)), None);
        anew.come(60);
        assert_eq!(waits.see(&anew.progress(), at(60)), Some(at(60)));
        // Nothing waits there, says somebody else.
        waits.forget_others(&HashSet::new());
        assert_eq!(waits.see(&anew.progress(), at(70)), Some(at(70)));
    }
}
