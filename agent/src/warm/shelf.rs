//! The workers that wait, and which of them goes first. Pure: it is told what time it is.

use std::{collections::HashMap, time::Instant};

use flux_protocol::FunctionName;

/// What a worker can serve.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) function: FunctionName,
    pub(crate) version: u32,
}

#[derive(Debug)]
struct Idle<W> {
    worker: W,
    memory_mb: u64,
    expires_at: Instant,
    /// Greater is later.
    order: u64,
}

#[derive(Debug)]
pub(super) struct Shelf<W> {
    /// In the order in which they came back. None is empty.
    idle: HashMap<Key, Vec<Idle<W>>>,
    count: usize,
    memory_mb: u64,
    next_order: u64,
}

impl<W> Default for Shelf<W> {
    fn default() -> Self {
        Self { idle: HashMap::new(), count: 0, memory_mb: 0, next_order: 0 }
    }
}

impl<W> Shelf<W> {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn memory_mb(&self) -> u64 {
        self.memory_mb
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.idle.contains_key(key)
    }

    pub(super) fn push(&mut self, key: &Key, worker: W, memory_mb: u64, expires_at: Instant) {
        self.count += 1;
        self.memory_mb += memory_mb;
        self.next_order += 1;
        let idle = Idle { worker, memory_mb, expires_at, order: self.next_order };
        match self.idle.get_mut(key) {
            Some(line) => line.push(idle),
            None => drop(self.idle.insert(key.clone(), vec![idle])),
        }
    }

    /// The one that came back last: its pages are warm, and those that are not needed grow old.
    pub(super) fn take(&mut self, key: &Key) -> Option<W> {
        let line = self.idle.get_mut(key)?;
        let last = line.pop();
        if line.is_empty() {
            self.idle.remove(key);
        }
        last.map(|idle| self.counted_out(idle))
    }

    /// The one that nobody used for the longest time.
    pub(super) fn take_oldest(&mut self) -> Option<W> {
        let oldest =
            self.idle.iter().filter_map(|(key, line)| Some((line.first()?.order, key))).min_by_key(|(at, _)| *at);
        let key = oldest.map(|(_, key)| key.clone())?;
        let line = self.idle.get_mut(&key)?;
        let first = line.remove(0);
        if line.is_empty() {
            self.idle.remove(&key);
        }
        Some(self.counted_out(first))
    }

    /// Those whose time is up.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<W> {
        self.take_where(|_, idle| idle.expires_at <= now)
    }

    /// Those of a function that are not of this version.
    pub(super) fn take_others(&mut self, function: &FunctionName, version: Option<u32>) -> Vec<W> {
        self.take_where(|key, _| key.function == *function && Some(key.version) != version)
    }

    pub(super) fn take_if(&mut self, goes: impl Fn(&Key, &W) -> bool) -> Vec<W> {
        self.take_where(|key, idle| goes(key, &idle.worker))
    }

    pub(super) fn take_all(&mut self) -> Vec<W> {
        self.take_where(|_, _| true)
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.idle.values().flatten().map(|idle| idle.expires_at).min()
    }

    /// How many wait for each function.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&FunctionName, usize)> {
        self.idle.iter().map(|(key, line)| (&key.function, line.len()))
    }

    fn take_where(&mut self, goes: impl Fn(&Key, &Idle<W>) -> bool) -> Vec<W> {
        let mut taken = Vec::new();
        self.idle.retain(|key, line| {
            taken.extend(line.extract_if(.., |idle| goes(key, idle)));
            !line.is_empty()
        });
        taken.into_iter().map(|idle| self.counted_out(idle)).collect()
    }

    fn counted_out(&mut self, idle: Idle<W>) -> W {
        self.count -= 1;
        self.memory_mb -= idle.memory_mb;
        idle.worker
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn key(function: u8, version: u32) -> Key {
        Key { function: FunctionName::parse(&format!("f{function}")).expect("a name"), version }
    }

    #[test]
    fn the_last_one_serves_and_the_first_one_goes() {
        let (mut shelf, start) = (Shelf::default(), Instant::now());
        for worker in 1..=3 {
            shelf.push(&key(0, 1), worker, 10, start + Duration::from_secs(worker));
        }
        shelf.push(&key(1, 1), 9, 5, start);
        assert_eq!((shelf.count(), shelf.memory_mb(), shelf.next_expiry()), (4, 35, Some(start)));
        assert_eq!(shelf.take(&key(0, 1)), Some(3));
        assert_eq!(shelf.take_oldest(), Some(1));
        assert_eq!(shelf.take(&key(0, 2)), None);
        assert_eq!(shelf.take_expired(start), [9]);
        assert!(shelf.take_others(&key(0, 1).function, Some(1)).is_empty());
        assert_eq!(shelf.take_others(&key(0, 1).function, Some(2)), [2]);
        assert_eq!((shelf.count(), shelf.memory_mb(), shelf.next_expiry()), (0, 0, None));
    }

    proptest! {
        /// Whatever is done in whatever order: nobody is lost or there twice, and the sums are those of who is there.
        #[test]
        fn nobody_is_lost(steps in prop::collection::vec((0_u8..6, 0_u8..3, 1_u32..3, 0_u64..50), 0..80)) {
            let (mut shelf, start) = (Shelf::default(), Instant::now());
            let mut there: Vec<(u64, u64)> = Vec::new();
            for (number, (what, function, version, amount)) in (0_u64..).zip(steps) {
                let taken: Vec<u64> = match what {
                    0 | 1 => {
                        shelf.push(&key(function, version), number, amount, start + Duration::from_secs(amount));
                        there.push((number, amount));
                        Vec::new()
                    }
                    2 => shelf.take(&key(function, version)).into_iter().collect(),
                    3 => {
                        let oldest = shelf.take_oldest();
                        prop_assert_eq!(oldest, there.first().map(|(worker, _)| *worker));
                        oldest.into_iter().collect()
                    }
                    4 => shelf.take_expired(start + Duration::from_secs(amount)),
                    _ => shelf.take_others(&key(function, 1).function, Some(version)),
                };
                for worker in taken {
                    let at = there.iter().position(|(there, _)| *there == worker);
                    prop_assert!(at.is_some(), "{worker} was there");
                    there.remove(at.expect("just seen"));
                }
                prop_assert_eq!(shelf.count(), there.len());
                prop_assert_eq!(shelf.memory_mb(), there.iter().map(|(_, memory)| memory).sum::<u64>());
                prop_assert_eq!(shelf.counts().map(|(_, count)| count).sum::<usize>(), there.len());
            }
            prop_assert_eq!(shelf.take_all().len(), there.len());
        }
    }
}
