//! What a log says, by its records alone: every reader that has read as far has the same. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use flux_protocol::{Timestamp, limits};

use super::record::{Change, Record};

/// Changes that a watcher may be behind before it is told everything again.
const RECENT: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: String,
    /// `None`: deleted.
    pub(super) value: Option<Bytes>,
    pub(super) revision: u64,
    pub(super) at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// With this revision.
    Yes(u64),
    /// Another writer was first.
    No,
}

/// One table.
#[derive(Debug, Default)]
pub(super) struct Rows {
    last: HashMap<String, Row>,
    /// By revision, of keys whose history is kept.
    history: BTreeMap<u64, Row>,
    per_key: HashMap<String, VecDeque<u64>>,
    /// The last changes, and how many there were before them.
    recent: VecDeque<Row>,
    before_recent: u64,
    last_at: Timestamp,
}

impl Rows {
    pub(super) fn get(&self, key: &str) -> Option<&Row> {
        self.last.get(key).filter(|row| row.value.is_some())
    }

    /// Also where it was deleted.
    pub(super) fn ever(&self, key: &str) -> Option<&Row> {
        self.last.get(key)
    }

    /// What is there, in the order of revisions.
    pub(super) fn all(&self) -> Vec<Row> {
        let mut all: Vec<_> = self.last.values().filter(|row| row.value.is_some()).cloned().collect();
        all.sort_by_key(|row| row.revision);
        all
    }

    /// What is there and what was, oldest first.
    pub(super) fn with_history(&self) -> Vec<Row> {
        self.history.values().cloned().collect()
    }

    /// Changes so far.
    pub(super) fn changes(&self) -> u64 {
        self.before_recent + self.recent.len() as u64
    }

    /// Those after the first `seen`; `None` where they are not all known any more.
    pub(super) fn since(&self, seen: u64) -> Option<impl Iterator<Item = &Row>> {
        let skip = usize::try_from(seen.checked_sub(self.before_recent)?).ok()?;
        Some(self.recent.iter().skip(skip))
    }

    fn apply(&mut self, offset: u64, record: Record, keeps_history: bool) -> Applied {
        let revision = record.revision.unwrap_or(offset + 1);
        let current = self.get(&record.key).map_or(0, |row| row.revision);
        let value = match record.change {
            Change::Mark => return Applied::Yes(0),
            Change::Update { expected, .. } if expected != current => return Applied::No,
            Change::Put(value) | Change::Update { value, .. } => Some(value),
            Change::Delete => None,
        };
        // Several clocks write; a table's times go forward.
        self.last_at = self.last_at.max(record.at);
        let row = Row { key: record.key, value, revision, at: self.last_at };
        if keeps_history {
            self.remember(&row);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
            self.before_recent += 1;
        }
        self.recent.push_back(row.clone());
        self.last.insert(row.key.clone(), row);
        Applied::Yes(revision)
    }

    fn remember(&mut self, row: &Row) {
        let kept = usize::try_from(limits::VERSION_HISTORY).unwrap_or(usize::MAX);
        let of_key = self.per_key.entry(row.key.clone()).or_default();
        if of_key.len() == kept
            && let Some(oldest) = of_key.pop_front()
        {
            self.history.remove(&oldest);
        }
        of_key.push_back(row.revision);
        self.history.insert(row.revision, row.clone());
    }

    /// Forgets what was deleted or has aged before `before`.
    fn forget(&mut self, before: Timestamp, ages: bool) {
        self.last.retain(|_, row| row.at >= before || (row.value.is_some() && !ages));
    }
}

/// All tables of a log.
#[derive(Debug, Default)]
pub(super) struct View {
    tables: HashMap<String, Rows>,
    /// Of the first record.
    pub(super) made_at: Option<Timestamp>,
}

impl View {
    pub(super) fn apply(&mut self, offset: u64, record: Record, keeps_history: bool) -> Applied {
        self.made_at.get_or_insert(record.at);
        if matches!(record.change, Change::Mark) {
            return Applied::Yes(0);
        }
        match self.tables.get_mut(&record.table) {
            Some(rows) => rows.apply(offset, record, keeps_history),
            None => self.tables.entry(record.table.clone()).or_default().apply(offset, record, keeps_history),
        }
    }

    pub(super) fn table(&self, name: &str) -> Option<&Rows> {
        self.tables.get(name)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (&String, &Rows)> {
        self.tables.iter()
    }

    /// Forgets in every table what was deleted before `before`, and of those in `aging` what is older.
    pub(super) fn forget(&mut self, before: Timestamp, aging: &[&str]) {
        for (name, rows) in &mut self.tables {
            rows.forget(before, aging.contains(&name.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &str, change: Change) -> Record {
        Record::new("t", key, change)
    }

    #[test]
    fn an_update_holds_only_on_what_it_expects() {
        let mut view = View::default();
        let update = |expected| record("k", Change::Update { expected, value: "x".into() });
        assert_eq!(view.apply(10, update(7), false), Applied::No);
        assert_eq!(view.apply(11, update(0), false), Applied::Yes(12));
        assert_eq!(view.apply(12, update(0), false), Applied::No);
        assert_eq!(view.apply(13, update(12), false), Applied::Yes(14));
        assert_eq!(view.apply(14, record("k", Change::Delete), false), Applied::Yes(15));
        assert_eq!(view.apply(15, update(14), false), Applied::No);
        assert_eq!(view.apply(16, update(0), false), Applied::Yes(17), "what is deleted does not exist");
    }

    #[test]
    fn a_watcher_that_is_too_far_behind_is_told_so() {
        let mut view = View::default();
        for n in 0..RECENT as u64 + 10 {
            view.apply(n, record("k", Change::Put("x".into())), false);
        }
        let rows = view.table("t").expect("it is there");
        assert!(rows.since(9).is_none());
        assert_eq!(rows.since(10).map(Iterator::count), Some(RECENT));
        assert_eq!(rows.since(rows.changes()).map(Iterator::count), Some(0));
    }

    proptest! {
        /// Of many writers that each read before they wrote, exactly one has each revision.
        #[test]
        fn of_those_who_expect_the_same_one_is_first(expected in proptest::collection::vec(0..6_u64, 1..40)) {
            let mut view = View::default();
            let mut current = 0;
            for (offset, expected) in expected.into_iter().enumerate() {
                let offset = offset as u64;
                let change = Change::Update { expected, value: "x".into() };
                let applied = view.apply(offset, record("k", change), true);
                prop_assert_eq!(applied == Applied::Yes(offset + 1), expected == current);
                if let Applied::Yes(revision) = applied {
                    current = revision;
                }
            }
        }
    }
}
