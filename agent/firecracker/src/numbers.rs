//! Numbers that guests run as: one for each key, for as long as somebody holds it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

#[derive(Debug)]
struct State {
    free: BTreeSet<u32>,
    taken: HashMap<String, Weak<Number>>,
}

/// All numbers of a driver.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(Arc<Mutex<State>>);

/// One number, which comes back when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Number {
    pub(crate) uid: u32,
    key: String,
    of: Numbers,
}

impl Numbers {
    pub(crate) fn new(first: u32, count: u32) -> Self {
        let free = (first..first.saturating_add(count)).collect();
        Self(Arc::new(Mutex::new(State { free, taken: HashMap::new() })))
    }

    /// The key's number; the next free one where it has none. `None`: all are taken.
    pub(crate) fn take(&self, key: &str) -> Option<Arc<Number>> {
        let mut state = self.0.lock();
        if let Some(number) = state.taken.get(key).and_then(Weak::upgrade) {
            return Some(number);
        }
        let uid = state.free.pop_first()?;
        Some(self.given(&mut state, key, uid))
    }

    /// This very number, which files of an earlier driver have. `None`: it is another's, or none of these.
    pub(crate) fn take_this(&self, key: &str, uid: u32) -> Option<Arc<Number>> {
        let mut state = self.0.lock();
        state.free.take(&uid)?;
        Some(self.given(&mut state, key, uid))
    }

    fn given(&self, state: &mut State, key: &str, uid: u32) -> Arc<Number> {
        let number = Arc::new(Number { uid, key: key.to_owned(), of: self.clone() });
        state.taken.insert(key.to_owned(), Arc::downgrade(&number));
        number
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut state = self.of.0.lock();
        state.free.insert(self.uid);
        // Somebody may have taken another one for the key meanwhile.
        if state.taken.get(&self.key).is_some_and(|other| other.strong_count() == 0) {
            state.taken.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_number_for_as_long_as_it_is_held() {
        let numbers = Numbers::new(100, 2);
        let (one, again) = (numbers.take("a").expect("one"), numbers.take("a").expect("the same"));
        assert_eq!((one.uid, again.uid), (100, 100));
        let other = numbers.take("b").expect("another");
        assert_eq!(other.uid, 101);
        assert!(numbers.take("c").is_none(), "all are taken");
        drop(one);
        assert!(numbers.take("c").is_none(), "one is held still");
        drop(again);
        assert_eq!(numbers.take("c").map(|number| number.uid), Some(100));
    }

    #[test]
    fn what_files_have_is_nobody_elses() {
        let numbers = Numbers::new(100, 2);
        let kept = numbers.take_this("old", 100).expect("it is free");
        assert_eq!(numbers.take("new").map(|number| number.uid), Some(101));
        assert_eq!(numbers.take("old").map(|number| number.uid), Some(100));
        assert!(numbers.take_this("other", 100).is_none());
        assert!(numbers.take_this("other", 7).is_none(), "none of these");
        drop(kept);
    }
}
