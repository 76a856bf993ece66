//! Which functions there are, and which version of one a message means.
//!
//! One watch of [`Table::Functions`] keeps the current version of every function and, of the older ones, no more than
//! when each became current: a message that names no version means the newest whose key-value timestamp is not after
//! its own. Older versions themselves are fetched when one is asked for, and a bounded number of them is kept.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use flux_broker::{Broker, BrokerError, Change, Entry, Table};
use flux_protocol::{FunctionName, FunctionVersion, Timestamp, limits};
use futures::StreamExt as _;
use parking_lot::{Mutex, RwLock};

/// Versions other than the current ones that are kept.
const OLDER_KEPT: usize = 256;

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("there is no function `{0}`; deploy it, or check the name that was published to")]
    UnknownFunction(FunctionName),
    #[error("`{function}` has no version {version}")]
    UnknownVersion { function: FunctionName, version: u32 },
    #[error("version {version} of `{function}` cannot be read by this agent's release: {message}")]
    Unreadable { function: FunctionName, version: String, message: String },
    /// Asking again later may help.
    #[error("the functions' table cannot be read")]
    Broker(#[source] BrokerError),
}

/// What happened to the table, for those who follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FunctionEvent {
    /// All that was there is known: look again at everything.
    Synced,
    /// One function was put or deleted.
    Changed(FunctionName),
}

#[derive(Debug, Clone)]
struct Known {
    current: Arc<FunctionVersion>,
    /// When each version became current, oldest first. A rollback lets a version appear again.
    history: VecDeque<(Timestamp, u32)>,
}

type VersionKey = (FunctionName, u32);

#[derive(Debug, Default)]
struct Older {
    versions: HashMap<VersionKey, Arc<FunctionVersion>>,
    order: VecDeque<VersionKey>,
}

/// The agent's view of the functions. One watcher writes, everyone reads.
pub(crate) struct Functions {
    broker: Arc<dyn Broker>,
    known: RwLock<HashMap<FunctionName, Known>>,
    older: Mutex<Older>,
}

impl Functions {
    pub(crate) fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, known: RwLock::default(), older: Mutex::default() }
    }

    /// Follows the table until the connection is closed for good, telling each event to `tell`.
    pub(crate) async fn follow<F>(&self, mut tell: impl FnMut(FunctionEvent) -> F)
    where
        F: Future<Output = ()>,
    {
        let mut watch =
            crate::retry::until_ok("watch the functions", || self.broker.watch(Table::Functions, true)).await;
        let mut synced = false;
        while let Some(change) = watch.next().await {
            let event = match change {
                Ok(Change::Put(entry)) => self.put(&entry),
                Ok(Change::Deleted { key, .. }) => self.deleted(&key),
                Ok(Change::Synced) => {
                    synced = true;
                    Some(FunctionEvent::Synced)
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the functions' watch stumbled");
                    None
                }
            };
            if let Some(event) = event.filter(|_| synced) {
                tell(event).await;
            }
        }
    }

    fn put(&self, entry: &Entry) -> Option<FunctionEvent> {
        let version: FunctionVersion = match serde_json::from_slice(&entry.value) {
            Ok(version) => version,
            Err(error) => {
                tracing::warn!(function = entry.key, %error, "ignored a function that this release cannot read");
                return None;
            }
        };
        let name = version.name().clone();
        let version = Arc::new(version);
        let mut known = self.known.write();
        let of = known
            .entry(name.clone())
            .or_insert_with(|| Known { current: Arc::clone(&version), history: VecDeque::new() });
        note(&mut of.history, entry.at, version.version);
        if of.history.back().is_some_and(|(at, _)| *at == entry.at) {
            of.current = version;
        }
        Some(FunctionEvent::Changed(name))
    }

    fn deleted(&self, key: &str) -> Option<FunctionEvent> {
        let name = FunctionName::parse(key).ok()?;
        self.known.write().remove(&name);
        Some(FunctionEvent::Changed(name))
    }

    pub(crate) fn current(&self, function: &FunctionName) -> Option<Arc<FunctionVersion>> {
        self.known.read().get(function).map(|known| Arc::clone(&known.current))
    }

    /// Whether a version that is not there is newer than all that was heard of.
    pub(crate) fn may_be_coming(&self, function: &FunctionName, version: u32) -> bool {
        let known = self.known.read();
        known.get(function).is_some_and(|of| of.history.iter().all(|(_, heard)| *heard < version))
    }

    /// The version that a message means: the one it names, or else the newest that was current when it was stored.
    pub(crate) async fn resolve(
        &self,
        function: &FunctionName,
        version: Option<u32>,
        stored_at: Timestamp,
    ) -> Result<Arc<FunctionVersion>, Unresolved> {
        let found = {
            let known = self.known.read();
            known.get(function).map(|of| {
                let wanted =
                    version.unwrap_or_else(|| current_at(&of.history, stored_at).unwrap_or(of.current.version));
                (wanted, Arc::clone(&of.current))
            })
        };
        match (found, version) {
            (Some((wanted, current)), _) if current.version == wanted => Ok(current),
            (Some((wanted, _)), _) | (None, Some(wanted)) => self.other_version(function, wanted).await,
            // The watch may be behind the message.
            (None, None) => match self.broker.get(Table::Functions, function.as_str()).await {
                Ok(Some(entry)) => read(function, &entry).map(Arc::new),
                Ok(None) => Err(Unresolved::UnknownFunction(function.clone())),
                Err(error) => Err(Unresolved::Broker(error)),
            },
        }
    }

    async fn other_version(&self, function: &FunctionName, version: u32) -> Result<Arc<FunctionVersion>, Unresolved> {
        let key = (function.clone(), version);
        if let Some(found) = self.older.lock().versions.get(&key) {
            return Ok(Arc::clone(found));
        }
        let entry = self.broker.get(Table::Versions, &format!("{function}.{version}")).await;
        let entry = match entry {
            Ok(Some(entry)) => entry,
            Ok(None) if self.current(function).is_none() => return Err(Unresolved::UnknownFunction(function.clone())),
            Ok(None) => return Err(Unresolved::UnknownVersion { function: function.clone(), version }),
            Err(error) => return Err(Unresolved::Broker(error)),
        };
        let found = Arc::new(read(function, &entry)?);
        let mut older = self.older.lock();
        if older.versions.insert(key.clone(), Arc::clone(&found)).is_none() {
            older.order.push_back(key);
        }
        while older.order.len() > OLDER_KEPT {
            if let Some(oldest) = older.order.pop_front() {
                older.versions.remove(&oldest);
            }
        }
        Ok(found)
    }
}

fn read(function: &FunctionName, entry: &Entry) -> Result<FunctionVersion, Unresolved> {
    serde_json::from_slice(&entry.value).map_err(|error| Unresolved::Unreadable {
        function: function.clone(),
        version: entry.key.clone(),
        message: error.to_string(),
    })
}

/// Adds to the history; what is known already (a watch that began anew) changes nothing.
fn note(history: &mut VecDeque<(Timestamp, u32)>, at: Timestamp, version: u32) {
    let place = history.partition_point(|(earlier, _)| *earlier < at);
    match history.get_mut(place) {
        Some(same) if same.0 == at => same.1 = version,
        _ => history.insert(place, (at, version)),
    }
    while history.len() > limits::VERSION_HISTORY as usize {
        history.pop_front();
    }
}

/// The version that was current at `at`: the newest not after it, or else the oldest that is known.
fn current_at(history: &VecDeque<(Timestamp, u32)>, at: Timestamp) -> Option<u32> {
    let after = history.partition_point(|(since, _)| *since <= at);
    history.get(after.saturating_sub(1)).map(|(_, version)| *version)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn a_message_means_the_version_that_was_current_when_it_was_stored() {
        let mut history = VecDeque::new();
        for (when, version) in [(10, 1), (20, 2), (30, 1)] {
            note(&mut history, at(when), version);
        }
        let meant: Vec<_> = [5, 10, 19, 20, 29, 30, 99].map(|when| current_at(&history, at(when))).into();
        assert_eq!(meant, [1, 1, 1, 2, 2, 1, 1].map(Some));
        assert_eq!(current_at(&VecDeque::new(), at(1)), None);
    }

    proptest! {
        /// Said in any order, more than once: the history is the same, in order and bounded.
        #[test]
        fn history_is_ordered_and_bounded(said in prop::collection::vec(0_u32..200, 0..300)) {
            let mut history = VecDeque::new();
            for version in &said {
                note(&mut history, at(i64::from(*version) * 10), *version);
            }
            let mut expected: Vec<u32> = said;
            expected.sort_unstable();
            expected.dedup();
            let kept: Vec<u32> = history.iter().map(|(_, version)| *version).collect();
            prop_assert!(kept.len() <= limits::VERSION_HISTORY as usize);
            prop_assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(kept.last(), expected.last());
        }
    }
}
