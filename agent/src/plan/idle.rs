//! First credits: for queues that nobody knows to have work, and for the one that works and is called again.

use std::time::Duration;

use flux_protocol::{agent::waits_everywhere, limits};

use super::{
    Amount, BARE_CLAIM_AFTER_MS, KEPT_OUT_MS, Key, Kind, LOOKED_AT, NO_STANDING_MS, Planner, amount::WHOLE,
    grant::Draft,
};

/// The turn of an idle queue that takes more than a quarter of the node keeps known work from it: it is long enough
/// for a round trip to the broker and back, and no longer.
const SHORT_TURN: Duration = Duration::from_millis(20);

impl Planner {
    /// The first bare queue that fits. While others wait no more than a quarter of the slots idles, but for the long pulls
    /// that are out already, beside which an eighth still takes turns. Where this agent cannot wait everywhere, the reserve
    /// stays free for what it is told of, and an eighth goes round where nobody may have told.
    pub(super) fn first_bare(&mut self, now_ms: u64) -> Option<Key> {
        let eighth = (self.total.tasks / 8).max(1);
        let few_idle = self.idle_credit < (self.total.tasks / 4).max(1) || self.turns < eighth;
        let spare = self.used.tasks + self.reserve() < self.total.tasks;
        let everywhere = waits_everywhere(self.total.tasks, self.hot);
        if !everywhere {
            if self.idle_credit >= eighth || !spare {
                return None;
            }
        } else if !few_idle && !spare {
            return None;
        }
        let (mut found, mut kept_out, mut passed_over) = (None, Vec::new(), Vec::new());
        for key in self.bare.iter().take(LOOKED_AT) {
            let queue = key.2;
            if !((few_idle && (everywhere || spare)) || (spare && !self.others_wait(queue, now_ms))) {
                continue;
            }
            if self.leaves_room(queue, self.used) && self.fits(queue, 1) {
                found = Some(*key);
                break;
            }
            if self.others_wait(queue, now_ms) || !self.could_run(queue) {
                passed_over.push(queue);
                continue;
            }
            kept_out.push(queue);
            if self.goes_first(queue, now_ms) && self.standing == Amount::default() {
                // What keeps it out is over soon, and then it is its turn.
                break;
            }
        }
        for queue in kept_out {
            self.keep_out(queue, now_ms);
        }
        self.pass_over(&passed_over, BARE_CLAIM_AFTER_MS, now_ms);
        found
    }

    /// Whether what runs leaves it room: then others' credit keeps it out.
    fn could_run(&self, queue: usize) -> bool {
        self.each(queue).is_some_and(|each| self.running.plus(each).fits_in(self.total))
    }

    /// Idle ones have no room together: from now on those that are large take turns, and the others' long pulls leave room
    /// for turns.
    fn keep_out(&mut self, queue: usize, now_ms: u64) {
        if self.each(queue).is_some_and(|each| each.dominant_share(self.total) > WHOLE / 8) {
            self.no_standing_before_ms = now_ms + NO_STANDING_MS;
        }
        self.crowded_until_ms = now_ms + NO_STANDING_MS;
        self.note_kept_out(queue, now_ms);
    }

    pub(super) fn note_kept_out(&mut self, queue: usize, now_ms: u64) {
        if let Some(queue) = self.queues.get_mut(queue).and_then(Option::as_mut) {
            queue.kept_out_since.get_or_insert(now_ms);
        }
    }

    /// Whether it was kept out for so long that others let it go first.
    pub(super) fn goes_first(&self, queue: usize, now_ms: u64) -> bool {
        let since_ms = self.queue(queue).and_then(|queue| queue.kept_out_since);
        since_ms.is_some_and(|since_ms| now_ms >= since_ms + KEPT_OUT_MS)
    }

    /// Whether the largest that may be told of still fits beside a pull of an idle queue. One such pull there always may be.
    fn leaves_room(&self, queue: usize, used: Amount) -> bool {
        let Some(each) = self.each(queue) else { return false };
        self.idle_credit == 0 || used.plus(each).plus(self.largest.within(self.total)).fits_in(self.total)
    }

    /// A first credit for a queue that has none.
    pub(super) fn grant_bare(&mut self, queue: usize, now_ms: u64, drafts: &mut Vec<Draft>) {
        let Some(each) = self.each(queue) else { return };
        let large = each.dominant_share(self.total) > WHOLE / 4;
        // One that worked a moment ago may get more, and would wait for the whole turn.
        let no_room_beside = |other| self.each(other).is_some_and(|more| !each.plus(more).fits_in(self.room()));
        let beside_work = large && self.worked_lately.others(queue, now_ms).any(no_room_beside);
        if beside_work || self.goes_first(queue, now_ms) || self.others_wait(queue, now_ms) {
            let turn = if large { SHORT_TURN } else { limits::PULL_EXPIRES_CONTENDED };
            return self.take(queue, 1, Kind::Turn, turn, drafts);
        }
        // In long pulls, as long as those take no more than three quarters of the node. One credit: what it brings says
        // how much more there is.
        let crowded = now_ms < self.crowded_until_ms;
        let beside = if crowded { self.largest.within(self.total) } else { Amount::default() };
        let long = self.standing.plus(each).plus(beside).fits_in(self.total.times(3).over(4));
        if self.takes_the_last(queue) || now_ms < self.no_standing_before_ms || !long {
            self.take(queue, 1, Kind::Turn, limits::PULL_EXPIRES_CONTENDED, drafts);
        } else {
            // What runs may be given up, and must not come back on a pull that was left behind.
            let works = self.queue(queue).is_some_and(|queue| queue.running > 0);
            let expires = if works { limits::PULL_EXPIRES_WARM } else { limits::PULL_EXPIRES_IDLE };
            self.take(queue, 1, Kind::Standing, expires, drafts);
        }
    }

    /// A queue that works keeps a credit, before idle ones get theirs: whoever calls again would have to be told of, or wait for
    /// the end of a turn. An idle one that has no room beside it gets a short turn now and then.
    pub(super) fn keep_one_waiting(&mut self, queue: usize, now_ms: u64, drafts: &mut Vec<Draft>) {
        let Some(state) = self.queue(queue) else { return };
        let wants = state.hot && state.outstanding == 0 && state.covered_until_ms.is_none() && state.is_warm(now_ms);
        if !wants || self.claim.is_some() || self.another_waits(queue) {
            return;
        }
        if self.lets_go_first(queue, now_ms) {
            return;
        }
        if let Some(other) = self.kept_out_by(queue) {
            self.note_kept_out(other, now_ms);
        }
        self.top_up(queue, now_ms, drafts);
        let has_none = self.queue(queue).is_some_and(|state| state.outstanding == 0);
        let spare = self.used.tasks + self.reserve() < self.total.tasks;
        if has_none && spare && self.fits(queue, 1) && self.room_beside_sibling(queue) > 0 {
            self.take(queue, 1, Kind::Work, limits::PULL_EXPIRES_CONTENDED, drafts);
        }
    }

    /// Whether an idle queue goes first now that would have no room beside one more of this. Not where what runs leaves it none, or
    /// long pulls, which are not over soon.
    pub(super) fn lets_go_first(&self, queue: usize, now_ms: u64) -> bool {
        let keeps_out = |other: usize| {
            let (Some(each), Some(others)) = (self.each(queue), self.each(other)) else { return false };
            self.could_run(other)
                && self.goes_first(other, now_ms)
                && !self.used.plus(each).plus(others).fits_in(self.total)
        };
        self.standing == Amount::default() && self.bare.iter().take(2).any(|key| key.2 != queue && keeps_out(key.2))
    }

    /// The idle queue whose turn it would be, if there is no room for it once this one has a credit.
    fn kept_out_by(&self, queue: usize) -> Option<usize> {
        let other = self.bare.iter().take(2).map(|key| key.2).find(|other| *other != queue)?;
        let (each, others) = (self.each(queue)?, self.each(other)?);
        let fits_now = self.fits(other, 1) && self.leaves_room(other, self.used);
        (fits_now && !each.plus(others).fits_in(self.room())).then_some(other)
    }
}
