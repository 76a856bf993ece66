//! Where each queue stands in the two orders of those who want credit.

use super::{Place, Planner};

impl Planner {
    pub(super) fn place_all(&mut self) {
        for index in 0..self.queues.len() {
            self.place(index);
        }
    }

    /// The two lanes of a function share its `max_concurrency`: what frees one may let the other in.
    pub(super) fn place_with_sibling(&mut self, index: usize) {
        let lanes = self.function_index(index).and_then(|f| self.function(f)).map_or([None, None], |f| f.lanes);
        for lane in lanes.into_iter().flatten() {
            self.place(lane);
        }
    }

    /// Puts the queue into the order it belongs to now.
    pub(super) fn place(&mut self, index: usize) {
        self.count_among_largest(index);
        let wanted = self.wanted_place(index);
        let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) else { return };
        if queue.place == wanted {
            return;
        }
        match queue.place {
            Place::Busy(key) => self.busy.remove(&key),
            Place::Bare(key) => self.bare.remove(&key),
            Place::Nowhere => false,
        };
        match wanted {
            Place::Busy(key) => self.busy.insert(key),
            Place::Bare(key) => self.bare.insert(key),
            Place::Nowhere => false,
        };
        queue.place = wanted;
        if wanted == Place::Nowhere {
            queue.passed_over_since = None;
        }
    }

    fn wanted_place(&self, index: usize) -> Place {
        let Some(queue) = self.queue(index) else { return Place::Nowhere };
        let Some(need) =
            self.function(queue.function).and_then(|f| f.need.filter(|need| f.in_use < need.max_concurrency))
        else {
            return Place::Nowhere;
        };
        if self.paused || !queue.hot || !need.each.fits_in(self.total) {
            return Place::Nowhere;
        }
        let share = need.each.times(queue.running + queue.outstanding).dominant_share(self.total);
        let key = (share, queue.served, index);
        if queue.backlog > queue.outstanding {
            Place::Busy(key)
        } else if queue.outstanding == 0 && queue.covered_until_ms.is_none() {
            Place::Bare(key)
        } else {
            Place::Nowhere
        }
    }

    /// What is paused or at its `max_concurrency` now counts too: it will not be so for long.
    fn count_among_largest(&mut self, index: usize) {
        let Some(queue) = self.queue(index) else { return };
        let each = self.function(queue.function).and_then(|function| function.need).map(|need| need.each);
        let counts = each.filter(|each| queue.hot && each.fits_in(self.total));
        if queue.counted == counts {
            return;
        }
        let counted = self.queues.get_mut(index).and_then(Option::as_mut).map(|queue| &mut queue.counted);
        let before = counted.and_then(|counted| std::mem::replace(counted, counts));
        if let Some(each) = before {
            self.largest.remove(each);
        }
        if let Some(each) = counts {
            self.largest.add(each);
        }
    }
}
