//! Tables: one log of changes each, which watches read on from where they are.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Timestamp, time::now};
use futures::{StreamExt as _, stream};

use super::{Inner, MemoryBroker, takes_fault};
use crate::{BrokerError, Change, Entry, Table, Tables, Watch};

pub(super) type All = HashMap<Table, Log>;

/// Changes from the first, whose revision is 1.
#[derive(Default)]
pub(super) struct Log {
    changes: Vec<Row>,
}

#[derive(Clone)]
struct Row {
    key: String,
    value: Option<Bytes>,
    revision: u64,
    at: Timestamp,
}

impl Row {
    fn change(self) -> Change {
        let Self { key, value, revision, at } = self;
        match value {
            Some(value) => Change::Put(Entry { key, value, revision, at }),
            None => Change::Deleted { key, revision, at },
        }
    }
}

impl Log {
    fn last(&self, key: &str) -> Option<&Row> {
        self.changes.iter().rev().find(|row| row.key == key)
    }

    fn add(&mut self, key: &str, value: Option<Bytes>) -> u64 {
        let revision = self.changes.len() as u64 + 1;
        self.changes.push(Row { key: key.to_owned(), value, revision, at: now() });
        revision
    }
}

fn is_alive(table: Table, row: &Row) -> bool {
    row.value.is_some() && table.ttl().is_none_or(|ttl| now().since(row.at) <= ttl)
}

impl Inner {
    fn add(&self, table: Table, key: &str, value: Option<Bytes>) -> u64 {
        let revision = self.tables.lock().entry(table).or_default().add(key, value);
        self.changed.notify_waiters();
        revision
    }
}

#[async_trait]
impl Tables for MemoryBroker {
    async fn put(&self, table: Table, key: &str, value: Bytes) -> Result<u64, BrokerError> {
        self.inner.connected("put a key into a table")?;
        takes_fault(&self.inner.faults.table_puts_to_fail, "put a key into a table")?;
        Ok(self.inner.add(table, key, Some(value)))
    }

    async fn update(&self, table: Table, key: &str, value: Bytes, revision: u64) -> Result<u64, BrokerError> {
        self.inner.connected("put a key into a table")?;
        takes_fault(&self.inner.faults.table_puts_to_fail, "put a key into a table")?;
        let updated = {
            let mut tables = self.inner.tables.lock();
            let log = tables.entry(table).or_default();
            let last = log.last(key).filter(|row| row.value.is_some()).map_or(0, |row| row.revision);
            if last != revision {
                return Err(BrokerError::Conflict { key: key.to_owned() });
            }
            log.add(key, Some(value))
        };
        self.inner.changed.notify_waiters();
        Ok(updated)
    }

    async fn get(&self, table: Table, key: &str) -> Result<Option<Entry>, BrokerError> {
        self.inner.connected("read a table")?;
        let tables = self.inner.tables.lock();
        let row = tables.get(&table).and_then(|log| log.last(key)).filter(|row| is_alive(table, row)).cloned();
        Ok(row.and_then(|row| Some(Entry { key: row.key, value: row.value?, revision: row.revision, at: row.at })))
    }

    async fn delete(&self, table: Table, key: &str) -> Result<(), BrokerError> {
        self.inner.connected("delete a key from a table")?;
        self.inner.add(table, key, None);
        Ok(())
    }

    async fn keys(&self, table: Table) -> Result<Vec<String>, BrokerError> {
        self.inner.connected("read a table")?;
        let tables = self.inner.tables.lock();
        let Some(log) = tables.get(&table) else { return Ok(Vec::new()) };
        let last: HashMap<&str, &Row> = log.changes.iter().map(|row| (row.key.as_str(), row)).collect();
        Ok(last.into_values().filter(|row| is_alive(table, row)).map(|row| row.key.clone()).collect())
    }

    /// This engine loses no table.
    async fn made_at(&self, _table: Table) -> Result<Timestamp, BrokerError> {
        let new = self.inner.faults.tables_are_new.load(Ordering::SeqCst);
        Ok(if new { now() } else { Timestamp::default() })
    }

    async fn watch(&self, table: Table, history: bool) -> Result<Watch, BrokerError> {
        self.inner.connected("read a table")?;
        let mut ready = VecDeque::new();
        let read = {
            let mut tables = self.inner.tables.lock();
            let log = tables.entry(table).or_default();
            let told = log.changes.iter().filter(|row| {
                let is_last = log.last(&row.key).is_some_and(|last| last.revision == row.revision);
                history || (is_last && is_alive(table, row))
            });
            ready.extend(told.cloned().map(Row::change));
            ready.push_back(Change::Synced);
            log.changes.len()
        };
        let watching = Watching { inner: Arc::clone(&self.inner), table, read, ready };
        Ok(stream::unfold(watching, |mut watching| async move {
            let change = watching.next().await;
            Some((Ok(change), watching))
        })
        .boxed())
    }
}

struct Watching {
    inner: Arc<Inner>,
    table: Table,
    read: usize,
    ready: VecDeque<Change>,
}

impl Watching {
    async fn next(&mut self) -> Change {
        loop {
            let inner = Arc::clone(&self.inner);
            let mut changed = std::pin::pin!(inner.changed.notified());
            changed.as_mut().enable();
            if let Some(change) = self.ready.pop_front() {
                return change;
            }
            if let Some(log) = inner.tables.lock().get(&self.table) {
                self.ready.extend(log.changes[self.read..].iter().cloned().map(Row::change));
                self.read = log.changes.len();
            }
            if self.ready.is_empty() {
                changed.await;
            }
        }
    }
}
