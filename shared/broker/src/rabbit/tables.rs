//! Tables: what is last in a log holds.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Timestamp, time::now};
use futures::{StreamExt as _, stream};
use tokio::sync::watch;

use super::{
    RabbitBroker,
    link::Link,
    log::{Kind, Log},
    record::{self, Record},
    view::{Applied, Row},
};
use crate::{BrokerError, Change, Entry, Table, Tables, Watch};

/// Tables of this engine's own, beside those of the seam.
pub(super) const QUEUES: &str = "queues";
pub(super) const EPOCHS: &str = "epochs";
pub(super) const BLOBS: &str = "blobs";
/// Streams of blobs that are no more.
pub(super) const GARBAGE: &str = "garbage";

const HOT: &str = "hot";
const CANCELLED: &str = "cancelled";
const AGENTS: &str = "agents";
const FUNCTIONS: &str = "functions";

/// Of the log that passes by, rows that hold are written again before they are as old as its records may be.
const CARRY_EVERY: Duration = Duration::from_secs(3600);
const CARRY_AGAIN_AFTER: Duration = Duration::from_secs(60);
const CARRIED_AFTER: Duration = Duration::from_secs(6 * 3600);

/// The logs behind the tables.
pub(super) struct Logs {
    /// Kept for ever: functions, versions, machines, epochs, and which queues there are.
    pub(super) kept: Arc<Log>,
    /// Kept for a day: what is hot or cancelled, and where blobs are.
    pub(super) passing: Arc<Log>,
    /// Kept for minutes: heartbeats.
    pub(super) agents: Arc<Log>,
}

impl Logs {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        let log = |name, history, aging| Log::new(link, Kind { name, history, aging, keeps_values: true });
        Self {
            kept: log("kept", &[FUNCTIONS], &[]),
            passing: log("passing", &[], &[CANCELLED]),
            agents: log("agents", &[], &[AGENTS]),
        }
    }

    fn of(&self, table: Table) -> (&Arc<Log>, &'static str) {
        match table {
            Table::Functions => (&self.kept, FUNCTIONS),
            Table::Versions => (&self.kept, "versions"),
            Table::Registered => (&self.kept, "registered"),
            Table::Autoscaler => (&self.kept, "autoscaler"),
            Table::Hot => (&self.passing, HOT),
            Table::Cancelled => (&self.passing, CANCELLED),
            Table::Agents => (&self.agents, AGENTS),
        }
    }

    /// Whether agents may pull there, by what was read so far.
    pub(super) fn is_hot(&self, key: &str) -> bool {
        self.passing.look(|view| view.table(HOT).is_some_and(|rows| rows.get(key).is_some()))
    }

    /// Writes what holds again, so that its record is not too old to be there. For as long as the broker is open, and first
    /// of all: nobody may have done so for most of a day.
    pub(super) async fn carry(passing: Arc<Log>, link: Arc<Link>) {
        loop {
            let pause = match Self::carry_once(&passing).await {
                Ok(()) => CARRY_EVERY,
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "rows are carried on later");
                    CARRY_AGAIN_AFTER
                }
            };
            // Not all gateways at once: what one has carried the others leave.
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())) => {}
                () = link.closed.cancelled() => return,
            }
        }
    }

    async fn carry_once(passing: &Arc<Log>) -> Result<(), BrokerError> {
        let attempted = "carry a row on";
        passing.read_to_now(attempted).await?;
        for name in [HOT, BLOBS, GARBAGE] {
            let old = now().minus(CARRIED_AFTER);
            let rows = passing.look(|view| view.table(name).map(super::view::Rows::all).unwrap_or_default());
            for row in rows.into_iter().filter(|row| row.at < old) {
                let Some(value) = row.value else { continue };
                // Changed meanwhile: then it is young.
                let change = record::Change::Update { expected: row.revision, value };
                passing.append(attempted, Record::new(name, &row.key, change)).await?;
            }
        }
        Ok(())
    }
}

/// A row of one of this engine's own tables, or of the seam's: as it is now.
pub(super) async fn get(log: &Arc<Log>, table: &str, key: &str) -> Result<Option<Row>, BrokerError> {
    log.read_to_now("read a table").await?;
    Ok(log.look(|view| view.table(table).and_then(|rows| rows.get(key)).cloned()))
}

pub(super) async fn put(log: &Arc<Log>, table: &str, key: &str, value: Bytes) -> Result<u64, BrokerError> {
    let put = Record::new(table, key, record::Change::Put(value));
    revision(key, log.append("put a key into a table", put).await?)
}

pub(super) async fn update(
    log: &Arc<Log>,
    table: &str,
    key: &str,
    value: Bytes,
    expected: u64,
) -> Result<u64, BrokerError> {
    let update = Record::new(table, key, record::Change::Update { expected, value });
    revision(key, log.append("put a key into a table", update).await?)
}

pub(super) async fn delete(log: &Arc<Log>, table: &str, key: &str) -> Result<(), BrokerError> {
    log.append("delete a key from a table", Record::new(table, key, record::Change::Delete)).await.map(|_| ())
}

fn revision(key: &str, applied: Applied) -> Result<u64, BrokerError> {
    match applied {
        Applied::Yes(revision) => Ok(revision),
        Applied::No => Err(BrokerError::Conflict { key: key.to_owned() }),
    }
}

fn is_alive(ttl: Option<Duration>, row: &Row) -> bool {
    ttl.is_none_or(|ttl| now().since(row.at) <= ttl)
}

fn entry(row: Row) -> Option<Entry> {
    Some(Entry { key: row.key, value: row.value?, revision: row.revision, at: row.at })
}

/// A heartbeat each second is not worth reading everybody else's: its writer alone writes that key, and numbers its rows.
fn numbered(key: &str, change: record::Change) -> Record {
    let record = Record::new(AGENTS, key, change);
    let revision = u64::try_from(record.at.as_micros()).unwrap_or_default();
    Record { revision: Some(revision), ..record }
}

#[async_trait]
impl Tables for RabbitBroker {
    async fn put(&self, table: Table, key: &str, value: Bytes) -> Result<u64, BrokerError> {
        let (log, name) = self.parts.logs.of(table);
        if let Table::Agents = table {
            let record = numbered(key, record::Change::Put(value));
            log.write("put a key into a table", &record).await?;
            return Ok(record.revision.unwrap_or_default());
        }
        put(log, name, key, value).await
    }

    async fn update(&self, table: Table, key: &str, value: Bytes, revision: u64) -> Result<u64, BrokerError> {
        let (log, name) = self.parts.logs.of(table);
        update(log, name, key, value, revision).await
    }

    async fn get(&self, table: Table, key: &str) -> Result<Option<Entry>, BrokerError> {
        let (log, name) = self.parts.logs.of(table);
        Ok(get(log, name, key).await?.filter(|row| is_alive(table.ttl(), row)).and_then(entry))
    }

    async fn delete(&self, table: Table, key: &str) -> Result<(), BrokerError> {
        let (log, name) = self.parts.logs.of(table);
        match table {
            Table::Agents => log.write("delete a key from a table", &numbered(key, record::Change::Delete)).await,
            _ => delete(log, name, key).await,
        }
    }

    async fn keys(&self, table: Table) -> Result<Vec<String>, BrokerError> {
        let (log, name) = self.parts.logs.of(table);
        log.read_to_now("read a table").await?;
        let rows = log.look(|view| view.table(name).map(super::view::Rows::all).unwrap_or_default());
        Ok(rows.into_iter().filter(|row| is_alive(table.ttl(), row)).map(|row| row.key).collect())
    }

    async fn made_at(&self, table: Table) -> Result<Timestamp, BrokerError> {
        let (log, _) = self.parts.logs.of(table);
        log.read_to_now("read a table").await?;
        Ok(log.look(|view| view.made_at).unwrap_or_else(now))
    }

    async fn watch(&self, table: Table, history: bool) -> Result<Watch, BrokerError> {
        let (log, name) = self.parts.logs.of(table);
        let changed = log.changed();
        log.read_to_now("read a table").await?;
        let watching = Watching {
            log: Arc::clone(log),
            changed,
            name,
            ttl: table.ttl(),
            history,
            round: 0,
            seen: 0,
            known: HashSet::new(),
            ready: VecDeque::new(),
        };
        Ok(stream::unfold(watching, |mut watching| async move {
            let change = watching.next().await?;
            Some((Ok(change), watching))
        })
        .boxed())
    }
}

struct Watching {
    log: Arc<Log>,
    changed: watch::Receiver<u64>,
    name: &'static str,
    ttl: Option<Duration>,
    history: bool,
    /// Of the view, when everything was told last.
    round: u64,
    /// Changes of the table told or passed over.
    seen: u64,
    /// Keys that were told and not told to be gone; not of a table whose values age.
    known: HashSet<String>,
    ready: VecDeque<Change>,
}

impl Watching {
    async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(change);
            }
            self.changed.borrow_and_update();
            self.gather();
            if self.ready.is_empty() && self.changed.changed().await.is_err() {
                return None;
            }
        }
    }

    /// What changed, or everything where the log was read anew or this is too far behind.
    fn gather(&mut self) {
        let log = Arc::clone(&self.log);
        log.look(|view| {
            // Changes with the view, under the same lock.
            let round = log.rounds();
            let rows = view.table(self.name);
            let changes = rows.map_or(0, super::view::Rows::changes);
            if self.round == round
                && let Some(since) =
                    rows.map_or_else(|| Some(Vec::new()), |rows| Some(rows.since(self.seen)?.cloned().collect()))
            {
                since.into_iter().for_each(|row| self.tell(row));
            } else {
                let all = rows.map(|rows| if self.history { rows.with_history() } else { rows.all() });
                self.tell_all(all.unwrap_or_default());
            }
            (self.round, self.seen) = (round, changes);
        });
    }

    fn tell_all(&mut self, rows: Vec<Row>) {
        let mut gone = std::mem::take(&mut self.known);
        let ttl = self.ttl;
        for row in rows.into_iter().filter(|row| is_alive(ttl, row)) {
            gone.remove(&row.key);
            self.tell(row);
        }
        if self.ttl.is_none() {
            let at = Timestamp::default();
            self.ready.extend(gone.into_iter().map(|key| Change::Deleted { key, revision: 0, at }));
        }
        self.ready.push_back(Change::Synced);
    }

    fn tell(&mut self, row: Row) {
        let Row { key, value, revision, at } = row;
        self.ready.push_back(match value {
            Some(value) => {
                if self.ttl.is_none() {
                    self.known.insert(key.clone());
                }
                Change::Put(Entry { key, value, revision, at })
            }
            None => {
                self.known.remove(&key);
                Change::Deleted { key, revision, at }
            }
        });
    }
}

/// A key of a blob, as a key of its table.
pub(super) fn blob_key(bucket: &str, key: &str) -> String {
    format!("{bucket}.{key}")
}
