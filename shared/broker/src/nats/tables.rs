//! Tables as key-value buckets (ADR-8): a stream each, a subject for each key.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Timestamp, time::now};
use futures::{StreamExt as _, stream};

use super::{
    NatsBroker,
    core::{Core, StreamInfo},
    queue::MESSAGE_ID,
    reader::{Bucket, Follow, Followed, From, OPERATION, Reader, is_deletion},
};
use crate::{BrokerError, Change, Entry, Table, Tables, Watch};

/// How long the server remembers that a hot queue or an agent was removed. Those who watch heard it long before.
const REMOVED_REMEMBERED: Duration = Duration::from_secs(60);

pub(super) const fn bucket(table: Table) -> Bucket {
    let (stream, prefix) = match table {
        Table::Functions => ("KV_flux_functions", "$KV.flux_functions."),
        Table::Versions => ("KV_flux_versions", "$KV.flux_versions."),
        Table::Agents => ("KV_flux_agents", "$KV.flux_agents."),
        Table::Hot => ("KV_flux_hot", "$KV.flux_hot."),
        Table::Cancelled => ("KV_flux_cancelled", "$KV.flux_cancelled."),
        Table::Registered => ("KV_flux_registered", "$KV.flux_registered."),
        Table::Autoscaler => ("KV_flux_autoscaler", "$KV.flux_autoscaler."),
    };
    // Of the functions' table each key has several entries, and only agents want all of them.
    Bucket {
        stream,
        prefix,
        said_again: matches!(table, Table::Functions | Table::Hot),
        one_each: !matches!(table, Table::Functions),
    }
}

/// Whether values of the table come and go, so that what is removed should leave nothing behind.
pub(super) const fn is_passing(table: Table) -> bool {
    matches!(table, Table::Agents | Table::Hot)
}

#[async_trait]
impl Tables for NatsBroker {
    async fn put(&self, table: Table, key: &str, value: Bytes) -> Result<u64, BrokerError> {
        put_key(&self.core, table, key, value, None).await
    }

    async fn update(&self, table: Table, key: &str, value: Bytes, revision: u64) -> Result<u64, BrokerError> {
        if revision > 0 {
            return put_key(&self.core, table, key, value, Some(revision)).await;
        }
        // It must not exist. A key that was deleted does not, but its deletion has a revision.
        let deletion = last(&self.core, table, key).await?;
        match deletion {
            Some((_, true, revision)) => put_key(&self.core, table, key, value, Some(revision)).await,
            Some(_) => Err(BrokerError::Conflict { key: key.to_owned() }),
            None => put_key(&self.core, table, key, value, Some(0)).await,
        }
    }

    async fn get(&self, table: Table, key: &str) -> Result<Option<Entry>, BrokerError> {
        get_key(&self.core, table, key).await
    }

    async fn delete(&self, table: Table, key: &str) -> Result<(), BrokerError> {
        delete_key(&self.core, table, key).await
    }

    async fn keys(&self, table: Table) -> Result<Vec<String>, BrokerError> {
        let mut reader = Reader::open(&self.core, bucket(table), From::LastOfEach, true).await?;
        let mut keys = Vec::new();
        while let Some(entry) = reader.next_there().await? {
            if entry.value.is_some() {
                keys.push(entry.key);
            }
        }
        reader.close().await;
        Ok(keys)
    }

    async fn made_at(&self, table: Table) -> Result<Timestamp, BrokerError> {
        let (attempted, stream) = ("look at a table", bucket(table).stream);
        let info = self.core.api::<StreamInfo>(attempted, &format!("STREAM.INFO.{stream}"), Bytes::new()).await;
        info.map(|info| info.created).map_err(|failure| failure.into_broker(attempted, stream))
    }

    async fn watch(&self, table: Table, history: bool) -> Result<Watch, BrokerError> {
        let follow = Follow::new(Arc::clone(&self.core), bucket(table), history);
        let watching = Watching {
            // That something was removed is forgotten after a while, so a resumed watch could miss it.
            follow: if is_passing(table) { follow.anew_on_reconnect() } else { follow },
            ages: table.ttl().is_some(),
            known: HashSet::new(),
            unconfirmed: HashSet::new(),
            ready: VecDeque::new(),
        };
        Ok(stream::unfold(watching, |mut watching| async move {
            let change = watching.next().await?;
            Some((Ok(change), watching))
        })
        .boxed())
    }
}

/// A watch. Where the bucket was made anew, keys that are not in it any more are told as deleted.
struct Watching {
    follow: Follow,
    /// Values go by themselves, unheard: which keys are there is not known here.
    ages: bool,
    /// Keys that were told as put.
    known: HashSet<String>,
    /// Known from before the bucket was made anew, and not heard of since.
    unconfirmed: HashSet<String>,
    ready: VecDeque<Change>,
}

impl Watching {
    async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(change);
            }
            match self.follow.next().await? {
                Followed::Restarted => self.unconfirmed.extend(self.known.drain()),
                Followed::Entry(entry) => {
                    self.unconfirmed.remove(&entry.key);
                    let (key, revision, at) = (entry.key, entry.revision, entry.at);
                    return Some(match entry.value {
                        Some(value) => {
                            if !self.ages {
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
                Followed::Synced => {
                    let at = now();
                    let vanished = self.unconfirmed.drain().map(|key| Change::Deleted { key, revision: 0, at });
                    self.ready.extend(vanished);
                    self.ready.push_back(Change::Synced);
                }
            }
        }
    }
}

/// Puts a key's value; where a revision is given, only if that is the key's last (0: none).
pub(super) async fn put_key(
    core: &Core,
    table: Table,
    key: &str,
    value: Bytes,
    revision: Option<u64>,
) -> Result<u64, BrokerError> {
    let mut headers = tries();
    if let Some(revision) = revision {
        headers.insert(HeaderName::from_static("Nats-Expected-Last-Subject-Sequence"), HeaderValue::from(revision));
    }
    let ack = core.publish("put a key into a table", &key_subject(table, key)?, || headers.clone(), value).await;
    ack.map(|ack| ack.sequence).map_err(|error| match error {
        BrokerError::Conflict { .. } => BrokerError::Conflict { key: key.to_owned() },
        other => other,
    })
}

pub(super) async fn get_key(core: &Core, table: Table, key: &str) -> Result<Option<Entry>, BrokerError> {
    Ok(last(core, table, key).await?.and_then(|(entry, deleted, _)| (!deleted).then_some(entry)))
}

pub(super) async fn delete_key(core: &Core, table: Table, key: &str) -> Result<(), BrokerError> {
    let mut headers = tries();
    if is_passing(table) {
        headers.insert(HeaderName::from_static(OPERATION), "PURGE");
        // Where a key keeps its last value alone, that is replaced without being asked to.
        headers.insert(HeaderName::from_static("Nats-TTL"), HeaderValue::from(REMOVED_REMEMBERED.as_secs()));
    } else {
        headers.insert(HeaderName::from_static(OPERATION), "DEL");
    }
    core.publish("delete a key from a table", &key_subject(table, key)?, || headers.clone(), Bytes::new())
        .await
        .map(|_| ())
}

/// The key's last entry, whether that is its deletion, and the revision.
async fn last(core: &Core, table: Table, key: &str) -> Result<Option<(Entry, bool, u64)>, BrokerError> {
    let found = core.last_on(bucket(table).stream, &key_subject(table, key)?).await?;
    Ok(found.map(|found| {
        let deleted = found.headers.get(OPERATION).is_some_and(|operation| is_deletion(operation.as_str()));
        let revision = found.sequence;
        (Entry { key: key.to_owned(), value: found.body, revision, at: found.at }, deleted, revision)
    }))
}

/// Makes a put that was interrupted safe to send again.
fn tries() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(MESSAGE_ID), format!("{:032x}", rand::random::<u128>()));
    headers
}

fn key_subject(table: Table, key: &str) -> Result<String, BrokerError> {
    let fits = !key.is_empty()
        && !key.starts_with('.')
        && !key.ends_with('.')
        && !key.contains("..")
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=' | b'/'));
    if fits {
        return Ok(format!("{}{key}", bucket(table).prefix));
    }
    Err(BrokerError::refused("name a key of a table", format!("`{key}` cannot be one")))
}
