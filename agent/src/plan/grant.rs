//! Handing out what is free: known work and turns by share, then larger shares for queues that worked lately.

use std::time::Duration;

use flux_protocol::limits;

use super::{
    Amount, CLAIM_AFTER_MS, CONTENDED_MS, Claim, Credit, FIRST_CLAIM_MS, Grant, Key, Kind, LAST_CLAIM_MS, LOOKED_AT,
    NO_STANDING_MS, PAUSE_PER_CLAIM, Place, Planner, QueueId,
};

/// What was granted to one queue so far in this plan.
pub(super) struct Draft {
    queue: usize,
    count: u64,
    kind: Kind,
    each: Amount,
    expires: Duration,
}

impl Planner {
    /// Hands out what is free, and appends the pulls to be sent. To be called after every event.
    pub(crate) fn plan(&mut self, now_ms: u64, grants: &mut Vec<Grant>) {
        self.uncover_due(now_ms);
        let mut touched = std::mem::take(&mut self.touched);
        if !self.paused {
            let mut drafts = Vec::new();
            for queue in &touched {
                self.keep_one_waiting(*queue, now_ms, &mut drafts);
            }
            self.grant_by_share(now_ms, &mut drafts);
            for queue in touched.drain(..) {
                self.top_up(queue, now_ms, &mut drafts);
            }
            grants.extend(drafts.into_iter().filter_map(|draft| self.grant(draft)));
        }
        touched.clear();
        self.touched = touched;
    }

    /// When to plan again although nothing happened: a claim that runs out, or a queue that others no longer cover.
    pub(crate) fn wake_at_ms(&self) -> Option<u64> {
        let claim = self.claim.map(|claim| claim.until_ms);
        let covered = self.covered.first().map(|(until_ms, _)| *until_ms);
        claim.into_iter().chain(covered).min()
    }

    fn grant(&self, draft: Draft) -> Option<Grant> {
        let name = self.queue(draft.queue)?.name.clone();
        let credit = Credit { queue: QueueId(draft.queue), left: draft.count, each: draft.each, kind: draft.kind };
        Some(Grant { credit, name, expires: draft.expires })
    }

    pub(super) fn room(&self) -> Amount {
        self.total.minus(self.used)
    }

    pub(super) fn another_waits(&self, queue: usize) -> bool {
        self.busy.iter().take(2).any(|key| key.2 != queue)
    }

    /// Whether another queue is known to wait, or was a moment ago.
    pub(super) fn others_wait(&self, queue: usize, now_ms: u64) -> bool {
        self.another_waits(queue) || self.waited_lately.another(queue, now_ms)
    }

    /// Slots that larger shares leave free, so that a queue that gets hot is heard at once.
    pub(super) fn reserve(&self) -> u64 {
        match self.total.tasks {
            0 | 1 => 0,
            tasks => (tasks / 8).max(1),
        }
    }

    /// One credit at a time to whoever has the smallest share, until nothing more fits.
    fn grant_by_share(&mut self, now_ms: u64, drafts: &mut Vec<Draft>) {
        while self.used.tasks < self.total.tasks {
            let (busy, bare) = match self.claimant(now_ms) {
                Some(Place::Busy(key)) => (Some(key), None),
                Some(Place::Bare(key)) => (None, Some(key)),
                Some(Place::Nowhere) => return,
                None => (self.first_busy(now_ms), self.first_bare(now_ms)),
            };
            match (busy, bare) {
                // What waits and found no room goes before the turns of idle queues, which may be the whole node's.
                (Some(busy), Some(bare)) if bare < busy && !self.was_passed_over(busy.2) => {
                    self.grant_bare(bare.2, now_ms, drafts);
                }
                (Some(busy), _) => {
                    if let Some(sibling) = self.sibling_kept_out_by(busy.2) {
                        if self.goes_first(sibling, now_ms) {
                            self.grant_bare(sibling, now_ms, drafts);
                            continue;
                        }
                        self.note_kept_out(sibling, now_ms);
                    }
                    // What this credit is enough for waits no longer.
                    if self.queue(busy.2).is_some_and(|queue| queue.backlog > queue.outstanding + 1) {
                        self.waited_lately.note(busy.2, now_ms + CONTENDED_MS);
                    }
                    let rung = self.queue(busy.2).is_some_and(|queue| queue.rung);
                    let expires = if rung { limits::PULL_EXPIRES_RUNG } else { limits::PULL_EXPIRES_CONTENDED };
                    self.take(busy.2, 1, Kind::Work, expires, drafts);
                }
                (None, Some(bare)) => self.grant_bare(bare.2, now_ms, drafts),
                // Where a claim began just now there is nobody else to serve either.
                (None, None) => return,
            }
        }
    }

    fn was_passed_over(&self, queue: usize) -> bool {
        self.queue(queue).is_some_and(|queue| queue.passed_over_since.is_some())
    }

    pub(super) fn fits(&self, queue: usize, count: u64) -> bool {
        self.each(queue).is_some_and(|each| each.times(count).fits_in(self.room()))
    }

    pub(super) fn each(&self, queue: usize) -> Option<Amount> {
        let queue = self.queue(queue)?;
        self.function(queue.function)?.need.map(|need| need.each)
    }

    /// The first busy queue that fits.
    fn first_busy(&mut self, now_ms: u64) -> Option<Key> {
        let (mut found, mut passed_over) = (None, Vec::new());
        for key in self.busy.iter().take(LOOKED_AT) {
            if self.fits(key.2, 1) {
                found = Some(*key);
                break;
            }
            passed_over.push(key.2);
        }
        self.pass_over(&passed_over, CLAIM_AFTER_MS, now_ms);
        found
    }

    /// Notes since when they wait for room. The first that has waited long enough claims.
    pub(super) fn pass_over(&mut self, queues: &[usize], claim_after_ms: u64, now_ms: u64) {
        for index in queues {
            self.no_standing_before_ms = now_ms + NO_STANDING_MS;
            let Some(queue) = self.queues.get_mut(*index).and_then(Option::as_mut) else { continue };
            let since_ms = *queue.passed_over_since.get_or_insert(now_ms);
            let may = self.claim.is_none() && now_ms >= self.no_claim_before_ms;
            if may && now_ms >= since_ms + claim_after_ms {
                self.claim = Some(Claim { queue: *index, since_ms: now_ms, until_ms: now_ms + self.claim_for_ms });
            }
        }
    }

    /// `None`: nobody claims. `Nowhere`: somebody does, and does not fit yet. Otherwise it is its turn.
    fn claimant(&mut self, now_ms: u64) -> Option<Place> {
        let claim = self.claim?;
        let queue = self.queue(claim.queue);
        let place = queue.filter(|queue| queue.passed_over_since.is_some()).map_or(Place::Nowhere, |queue| queue.place);
        if place == Place::Nowhere {
            // Served, or it has nothing to claim any more.
            self.claim = None;
            self.claim_for_ms = FIRST_CLAIM_MS;
            return None;
        }
        if self.fits(claim.queue, 1) {
            return Some(place);
        }
        if now_ms < claim.until_ms {
            return Some(Place::Nowhere);
        }
        let took_ms = claim.until_ms - claim.since_ms;
        self.claim = None;
        self.no_claim_before_ms = now_ms + took_ms * PAUSE_PER_CLAIM;
        self.claim_for_ms = (took_ms * 2).min(LAST_CLAIM_MS);
        None
    }

    /// More for a queue that works and has used up half of its share, when nobody is known to wait.
    pub(super) fn top_up(&mut self, queue: usize, now_ms: u64, drafts: &mut Vec<Draft>) {
        let Some(state) = self.queue(queue) else { return };
        let wants = state.hot && state.covered_until_ms.is_none() && state.is_warm(now_ms);
        let may = self.claim.is_none() && !self.others_wait(queue, now_ms) && !self.lets_go_first(queue, now_ms);
        if !wants || !may {
            return;
        }
        let outstanding = state.outstanding;
        let share = self.share_of(queue);
        if share > outstanding
            && let Some(each) = self.each(queue)
        {
            self.take_warm(queue, share, each, drafts);
        }
    }

    /// For a queue that worked lately, with nobody known to wait. Half of the node can do without what is lent for
    /// a second; every pull costs the broker something, and short ones as much as long ones.
    fn take_warm(&mut self, queue: usize, count: u64, each: Amount, drafts: &mut Vec<Draft>) {
        let longer = each.count_in(self.total.over(2).minus(self.used)).min(count);
        if longer > 0 {
            self.take(queue, longer, Kind::Work, limits::PULL_EXPIRES_WARM, drafts);
        } else {
            self.take(queue, count, Kind::Work, limits::PULL_EXPIRES_CONTENDED, drafts);
        }
    }

    /// How many more credits a warm queue gets: its part of the node, less what it holds, within what is free
    /// beyond the reserve.
    fn share_of(&self, index: usize) -> u64 {
        let (Some(queue), Some(each)) = (self.queue(index), self.each(index)) else { return 0 };
        let part = self.total.tasks.saturating_sub(self.reserve()) / self.active.max(1);
        let room = self.room();
        let eighth = self.total.over(8);
        let room = Amount {
            tasks: room.tasks.saturating_sub(self.reserve()),
            cpu_millicores: room.cpu_millicores.saturating_sub(eighth.cpu_millicores),
            memory_mb: room.memory_mb.saturating_sub(eighth.memory_mb),
        };
        part.saturating_sub(queue.running + queue.outstanding)
            .min(each.count_in(room))
            .min(self.room_beside_sibling(index))
    }

    fn sibling_wants(&self, index: usize) -> bool {
        let Some(queue) = self.queue(index) else { return false };
        let lanes = self.function(queue.function).map_or([None, None], |f| f.lanes);
        lanes
            .into_iter()
            .flatten()
            .filter(|lane| *lane != index)
            .any(|lane| self.queue(lane).is_some_and(|sibling| sibling.hot && sibling.outstanding == 0))
    }

    /// The function's other lane, if that is idle and this one is about to take the last of `max_concurrency`.
    fn sibling_kept_out_by(&self, index: usize) -> Option<usize> {
        if !self.takes_the_last(index) {
            return None;
        }
        let lanes = self.function(self.function_index(index)?)?.lanes;
        let bare = |lane: &usize| self.queue(*lane).is_some_and(|queue| matches!(queue.place, Place::Bare(_)));
        lanes.into_iter().flatten().find(|lane| *lane != index && bare(lane))
    }

    /// What `max_concurrency` leaves, less one for the function's other lane where that has no credit.
    pub(super) fn room_beside_sibling(&self, index: usize) -> u64 {
        let Some(function) = self.function_index(index).and_then(|f| self.function(f)) else { return 0 };
        let room = function.need.map_or(0, |need| need.max_concurrency).saturating_sub(function.in_use);
        room - u64::from(self.sibling_wants(index)).min(room)
    }

    /// One more credit here leaves nothing of `max_concurrency` for the function's other lane, which may get work before a
    /// long pull is over: a call would be refused, and an invocation wait for seconds.
    pub(super) fn takes_the_last(&self, index: usize) -> bool {
        let Some(function) = self.function_index(index).and_then(|f| self.function(f)) else { return false };
        function.need.is_some_and(|need| need.max_concurrency <= function.in_use + 1)
    }

    pub(super) fn take(&mut self, index: usize, count: u64, kind: Kind, expires: Duration, drafts: &mut Vec<Draft>) {
        let Some(each) = self.each(index) else { return };
        self.tick += 1;
        let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) else { return };
        queue.outstanding += count;
        queue.served = self.tick;
        (queue.passed_over_since, queue.kept_out_since) = (None, None);
        let function = queue.function;
        if let Some(function) = self.functions.get_mut(function).and_then(Option::as_mut) {
            function.in_use += count;
        }
        self.used = self.used.plus(each.times(count));
        if kind != Kind::Work {
            self.idle_credit += count;
        }
        if kind == Kind::Turn {
            self.turns += count;
        }
        if kind == Kind::Standing {
            self.standing = self.standing.plus(each.times(count));
        }
        match drafts.iter_mut().find(|draft| draft.queue == index && draft.kind == kind) {
            Some(draft) => draft.count += count,
            None => drafts.push(Draft { queue: index, count, kind, each, expires }),
        }
        self.place_with_sibling(index);
    }
}
