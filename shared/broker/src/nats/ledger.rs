//! Which of a consumer's outstanding pulls a message belongs to.
//!
//! A delivery does not say which pull request it answers (its subject is the message's own), only the end of a
//! request does. Of one consumer the requests are therefore fungible: a delivery fills the oldest open pull, and
//! the end of a request takes what the server still owed it from the pulls that are open, its own first. So the
//! sum of what is open here is what is open at the server, whichever request the server chose to fill.
//!
//! Pure: the channels are a type parameter.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// A request's end that the server never told is assumed this long after it was due.
const OVERDUE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Slot<T> {
    token: u64,
    open: usize,
    opened: Instant,
    until: Instant,
    beats: bool,
    out: T,
}

/// The open pulls of one consumer.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    slots: VecDeque<Slot<T>>,
    /// When the first of those was opened that may be open still.
    first_opened: Instant,
    last_until: Instant,
    last_heard: Instant,
}

/// Where a message goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<T> {
    Open(T),
    /// It is the last of its pull.
    Last(T),
    /// No pull is open: it came too late.
    Nobody,
}

impl<T: Clone> Ledger<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self { slots: VecDeque::new(), first_opened: now, last_until: now, last_heard: now }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// A request is about to be sent. `beats`: heartbeats were asked for.
    pub(super) fn opened(&mut self, token: u64, batch: usize, until: Instant, beats: bool, now: Instant, out: T) {
        if self.slots.is_empty() {
            self.last_heard = now;
            self.first_opened = now;
        }
        self.last_until = self.last_until.max(until);
        self.slots.push_back(Slot { token, open: batch.max(1), opened: now, until, beats, out });
    }

    /// The next message was sent after this at the earliest: it answers a request of then, or of later.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.slots.front().map(|slot| slot.opened)
    }

    /// A message came.
    pub(super) fn delivered(&mut self, now: Instant) -> Place<T> {
        self.last_heard = now;
        let Some(slot) = self.slots.front_mut() else { return Place::Nobody };
        slot.open -= 1;
        if slot.open > 0 {
            return Place::Open(slot.out.clone());
        }
        self.slots.pop_front().map_or(Place::Nobody, |slot| Place::Last(slot.out))
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// The server ended a request with `missing` of its batch not delivered (`None`: it did not say, so what is
    /// open of it here). Which pulls end by that.
    pub(super) fn request_ended(&mut self, token: u64, missing: Option<usize>) -> Vec<T> {
        let own = self.slots.iter().position(|slot| slot.token == token);
        let mut missing = missing.unwrap_or_else(|| own.map_or(0, |at| self.slots[at].open));
        let (last_until, first_opened) = (self.last_until, self.first_opened);
        if let Some(slot) = own.and_then(|at| self.slots.get_mut(at)) {
            let taken = missing.min(slot.open);
            slot.open -= taken;
            missing -= taken;
            // It lives on as the pull of another request, which was thought to be filled.
            slot.until = last_until;
            slot.opened = first_opened;
        }
        for slot in self.slots.iter_mut().rev() {
            let taken = missing.min(slot.open);
            slot.open -= taken;
            missing -= taken;
        }
        self.take_where(|slot| slot.open == 0)
    }

    /// Its reader has gone. What the server still sends for it fills others or comes too late: until when.
    pub(super) fn abandoned(&mut self, token: u64) -> Option<Instant> {
        let at = self.slots.iter().position(|slot| slot.token == token)?;
        self.slots.remove(at).map(|slot| slot.until)
    }

    /// The consumer is gone, or the connection is.
    pub(super) fn all_ended(&mut self) -> Vec<T> {
        self.slots.drain(..).map(|slot| slot.out).collect()
    }

    /// Whether an end or a heartbeat is late by more than `spare`.
    pub(super) fn is_quiet(&self, now: Instant, heartbeat: Duration, spare: Duration) -> bool {
        let unheard = self.last_heard + heartbeat + spare < now;
        self.slots.iter().any(|slot| slot.until + spare < now || (slot.beats && unheard))
    }

    /// Pulls whose end is overdue, and all of them when heartbeats were asked for and none came for `silence`.
    pub(super) fn overdue(&mut self, now: Instant, silence: Duration) -> Vec<T> {
        if self.last_heard + silence < now && self.slots.iter().any(|slot| slot.beats) {
            return self.all_ended();
        }
        self.take_where(|slot| slot.until + OVERDUE < now)
    }

    fn take_where(&mut self, ended: impl Fn(&Slot<T>) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        self.slots.retain(|slot| {
            let ends = ended(slot);
            if ends {
                taken.push(slot.out.clone());
            }
            !ends
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SILENCE: Duration = Duration::from_secs(7);

    fn ledger(batches: &[usize]) -> (Ledger<u64>, Instant) {
        let now = Instant::now();
        let mut ledger = Ledger::new(now);
        for (token, batch) in (1..).zip(batches) {
            ledger.opened(token, *batch, now + Duration::from_secs(token), false, now, token);
        }
        (ledger, now)
    }

    fn open(ledger: &Ledger<u64>) -> usize {
        ledger.slots.iter().map(|slot| slot.open).sum()
    }

    #[test]
    fn the_oldest_pull_is_filled_first() {
        let (mut ledger, now) = ledger(&[2, 1]);
        assert_eq!(ledger.delivered(now), Place::Open(1));
        assert_eq!(ledger.delivered(now), Place::Last(1));
        assert_eq!(ledger.delivered(now), Place::Last(2));
        assert_eq!(ledger.delivered(now), Place::Nobody);
    }

    #[test]
    fn an_end_takes_what_was_missing_wherever_it_is_open() {
        // The server gave one message to each; both were counted on the first.
        let (mut ledger, now) = ledger(&[2, 4]);
        ledger.delivered(now);
        ledger.delivered(now);
        assert_eq!(ledger.request_ended(2, Some(3)), Vec::<u64>::new(), "one is still open at the server: the first's");
        assert_eq!(open(&ledger), 1);
        assert_eq!(ledger.request_ended(1, Some(1)), vec![2]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn an_end_without_a_number_ends_its_own() {
        let (mut ledger, _) = ledger(&[2, 4]);
        assert_eq!(ledger.request_ended(1, None), vec![1]);
        assert_eq!(ledger.request_ended(9, None), Vec::<u64>::new());
        assert_eq!(open(&ledger), 4);
    }

    #[test]
    fn silence_and_overdue_ends_are_noticed() {
        let (mut quiet, now) = ledger(&[1, 1]);
        assert_eq!(quiet.overdue(now + Duration::from_millis(3_500), SILENCE), vec![1]);
        assert_eq!(quiet.overdue(now + Duration::from_secs(60), SILENCE), vec![2]);

        let mut beating = Ledger::new(now);
        beating.opened(1, 1, now + Duration::from_secs(600), true, now, 1_u64);
        assert!(beating.overdue(now + Duration::from_secs(6), SILENCE).is_empty());
        beating.heard(now + Duration::from_secs(6));
        assert!(beating.overdue(now + Duration::from_secs(12), SILENCE).is_empty());
        assert_eq!(beating.overdue(now + Duration::from_secs(14), SILENCE), vec![1]);
    }

    proptest! {
        /// Whatever order the server fills requests in, what is open here is what is open there, and a pull
        /// gets at most its batch.
        #[test]
        fn the_sums_agree(batches in prop::collection::vec(1_usize..6, 1..6), steps in prop::collection::vec((any::<bool>(), 0_usize..6), 0..40)) {
            let (mut ledger, now) = ledger(&batches);
            let mut server: Vec<(u64, usize)> = (1..).zip(batches.iter().copied()).collect();
            let mut got = vec![0_usize; batches.len() + 1];
            for (deliver, pick) in steps {
                if server.is_empty() {
                    break;
                }
                let at = pick % server.len();
                if deliver {
                    server[at].1 -= 1;
                    match ledger.delivered(now) {
                        Place::Open(token) | Place::Last(token) => got[usize::try_from(token).expect("small")] += 1,
                        Place::Nobody => prop_assert!(false, "the server owed one and nobody was open"),
                    }
                    if server[at].1 == 0 {
                        server.remove(at);
                    }
                } else {
                    let (token, missing) = server.remove(at);
                    ledger.request_ended(token, Some(missing));
                }
                prop_assert_eq!(open(&ledger), server.iter().map(|(_, open)| open).sum::<usize>());
            }
            for (token, batch) in (1_usize..).zip(&batches) {
                prop_assert!(got[token] <= *batch);
            }
        }
    }
}
