//! The last two queues that something was noted of: two, so that one of them is another than any given one.

/// Which, and until when that counts.
#[derive(Debug)]
pub(super) struct Lately([(usize, u64); 2]);

impl Lately {
    pub(super) const fn new() -> Self {
        Self([(usize::MAX, 0); 2])
    }

    pub(super) fn note(&mut self, queue: usize, until_ms: u64) {
        if self.0[0].0 != queue {
            self.0.swap(0, 1);
        }
        self.0[0] = (queue, until_ms);
    }

    pub(super) fn another(&self, queue: usize, now_ms: u64) -> bool {
        self.others(queue, now_ms).next().is_some()
    }

    pub(super) fn others(&self, queue: usize, now_ms: u64) -> impl Iterator<Item = usize> {
        self.0.iter().filter(move |(other, until_ms)| *other != queue && now_ms < *until_ms).map(|(other, _)| *other)
    }
}

#[cfg(test)]
mod tests {
    use super::Lately;

    #[test]
    fn one_that_is_noted_often_does_not_hide_the_other() {
        let mut lately = Lately::new();
        assert!(!lately.another(1, 0));
        lately.note(1, 100);
        lately.note(2, 200);
        lately.note(2, 300);
        assert!(lately.another(2, 99) && !lately.another(2, 100));
        assert!(lately.another(1, 299) && !lately.another(1, 300));
        lately.note(3, 400);
        assert!(lately.another(3, 299) && lately.another(2, 399));
    }
}
