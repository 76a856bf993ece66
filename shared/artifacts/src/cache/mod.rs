//! Unpacked code on an agent, by digest.
//!
//! [`CodeCache::ensure`] is on the path of every execution, so what is there already costs one look into a
//! table. What is not is fetched, verified and unpacked once, however many executions wait for it.
//!
//! A directory counts when it was renamed into place whole; see [`disk`] for that and for agents that share a
//! directory. The least recently used goes when the capacity is passed, never one that an execution holds.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use flux_protocol::{Digest, limits};
use parking_lot::Mutex;
use tokio::sync::watch;

use self::disk::{Disk, Held};
use crate::{ArchiveError, ArtifactError, ArtifactStore};

mod disk;

/// Unpacked directories whose locks are kept although nobody uses them: a file descriptor each.
const IDLE_HELD: usize = 256;

/// Why code is not there. Told to everyone who waited for it, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    #[error("the code archive {digest} is nowhere to be found; deploy it again")]
    Missing { digest: Digest },
    #[error("the code archive {digest} could not be fetched")]
    Fetch {
        digest: Digest,
        #[source]
        source: Arc<ArtifactError>,
    },
    #[error("the code archive {digest} could not be unpacked")]
    Unpack {
        digest: Digest,
        #[source]
        source: Arc<ArchiveError>,
    },
    #[error("the code cache in {directory} cannot be used")]
    Disk {
        directory: String,
        #[source]
        source: Arc<std::io::Error>,
    },
}

impl CacheError {
    /// Whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Missing { .. } => false,
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::Unpack { source, .. } => source.is_disk(),
            Self::Disk { .. } => true,
        }
    }
}

/// Code, unpacked. It stays on the disk for as long as this is held.
#[derive(Debug)]
pub struct CodeDir {
    digest: Digest,
    path: PathBuf,
    bytes: u64,
    _held: Held,
}

impl CodeDir {
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The directory with the archive's files; not to be written to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its files have in all.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Unpacked code on an agent, by digest. What is there costs one look into a table; what is not is fetched,
/// verified and unpacked once, however many wait for it. Cheap to clone.
#[derive(Clone)]
pub struct CodeCache {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Disk,
    capacity_bytes: u64,
    fetch: Arc<dyn ArtifactStore>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Digest, Entry>,
    flights: HashMap<Digest, watch::Receiver<Flight>>,
    total_bytes: u64,
    /// Grows with each use: the order of last use.
    clock: u64,
}

struct Entry {
    bytes: u64,
    used: u64,
    /// Absent while it only lies on the disk: from an earlier start, or idle for long.
    code: Option<Arc<CodeDir>>,
}

/// `None` while it is under way.
type Flight = Option<Result<Arc<CodeDir>, CacheError>>;

impl CodeCache {
    /// Uses `directory`, which is made where there is none, and takes over what lies there whole. What an
    /// agent that died left half is removed.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn new(
        directory: impl Into<PathBuf>,
        capacity_bytes: u64,
        fetch: Arc<dyn ArtifactStore>,
    ) -> Result<Self, CacheError> {
        let (disk, found) = Disk::open(directory.into())?;
        let mut table = Table::default();
        for (digest, bytes) in found {
            table.clock += 1;
            table.total_bytes = table.total_bytes.saturating_add(bytes);
            table.entries.insert(digest, Entry { bytes, used: table.clock, code: None });
        }
        Ok(Self { shared: Arc::new(Shared { disk, capacity_bytes, fetch, table: Mutex::new(table) }) })
    }

    /// The code of a digest, fetched and unpacked if it is not there.
    ///
    /// # Errors
    /// It cannot be fetched or unpacked. The next call tries again.
    pub async fn ensure(&self, digest: Digest) -> Result<Arc<CodeDir>, CacheError> {
        loop {
            let look = self.shared.table.lock().look(digest);
            let mut flight = match look {
                Look::Here(code) => return Ok(code),
                Look::UnderWay(flight) => flight,
                Look::Start(landing) => return self.fly(digest, landing).await,
            };
            if let Ok(landed) = flight.wait_for(Option::is_some).await
                && let Some(result) = landed.clone()
            {
                return result;
            }
            // Whoever fetched it was dropped; the next of those who wait takes over.
        }
    }

    /// The code of a digest if it is there and in use or was lately; nothing is waited for.
    pub fn get(&self, digest: Digest) -> Option<Arc<CodeDir>> {
        self.shared.table.lock().here(digest)
    }

    /// Archives that are unpacked and ready.
    pub fn len(&self) -> usize {
        self.shared.table.lock().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they take on the disk.
    pub fn bytes(&self) -> u64 {
        self.shared.table.lock().total_bytes
    }

    async fn fly(&self, digest: Digest, landing: watch::Sender<Flight>) -> Result<Arc<CodeDir>, CacheError> {
        // Taken out of the table even when this future is dropped.
        let _under_way = UnderWay { table: &self.shared.table, digest };
        let result = self.bring(digest).await;
        if let Ok(code) = &result {
            let removed = self.shared.table.lock().add(code, self.shared.capacity_bytes);
            self.remove(removed);
        }
        let _ = landing.send(Some(result.clone()));
        result
    }

    async fn bring(&self, digest: Digest) -> Result<Arc<CodeDir>, CacheError> {
        let found = self.shared.disk.off_thread(move |disk| disk.find(digest)).await?;
        if let Some(code) = found {
            return Ok(Arc::new(code));
        }
        let archive = self
            .shared
            .fetch
            .get(digest, limits::ARCHIVE)
            .await
            .map_err(|source| CacheError::Fetch { digest, source: Arc::new(source) })?
            .ok_or(CacheError::Missing { digest })?;
        self.shared.disk.off_thread(move |disk| disk.unpack(digest, &archive)).await.map(Arc::new)
    }

    /// Deletes what was taken out of the table, in the background.
    fn remove(&self, removed: Vec<(Digest, Entry)>) {
        if removed.is_empty() {
            return;
        }
        let disk = self.shared.disk.clone();
        // Not waited for: nobody needs the room at once.
        drop(tokio::task::spawn_blocking(move || {
            for (digest, entry) in removed {
                drop(entry.code);
                disk.remove(digest);
            }
        }));
    }
}

enum Look {
    Here(Arc<CodeDir>),
    UnderWay(watch::Receiver<Flight>),
    Start(watch::Sender<Flight>),
}

impl Table {
    fn here(&mut self, digest: Digest) -> Option<Arc<CodeDir>> {
        let entry = self.entries.get_mut(&digest)?;
        let code = entry.code.clone()?;
        self.clock += 1;
        entry.used = self.clock;
        Some(code)
    }

    fn look(&mut self, digest: Digest) -> Look {
        if let Some(code) = self.here(digest) {
            return Look::Here(code);
        }
        if let Some(flight) = self.flights.get(&digest) {
            return Look::UnderWay(flight.clone());
        }
        let (landing, flight) = watch::channel(None);
        self.flights.insert(digest, flight);
        Look::Start(landing)
    }

    /// Adds what is on the disk now; returns what has to go for it.
    fn add(&mut self, code: &Arc<CodeDir>, capacity_bytes: u64) -> Vec<(Digest, Entry)> {
        self.clock += 1;
        let entry = Entry { bytes: code.bytes, used: self.clock, code: Some(Arc::clone(code)) };
        let before = self.entries.insert(code.digest, entry).map_or(0, |entry| entry.bytes);
        self.total_bytes = self.total_bytes.saturating_sub(before).saturating_add(code.bytes);

        let mut idle: Vec<(u64, Digest)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.code.as_ref().is_none_or(|code| Arc::strong_count(code) == 1))
            .map(|(digest, entry)| (entry.used, *digest))
            .collect();
        idle.sort_unstable();
        let mut removed = Vec::new();
        for (_, digest) in &idle {
            if self.total_bytes <= capacity_bytes {
                break;
            }
            if let Some(entry) = self.entries.remove(digest) {
                self.total_bytes = self.total_bytes.saturating_sub(entry.bytes);
                removed.push((*digest, entry));
            }
        }
        let held = |entry: &&mut Entry| entry.code.is_some();
        let kept: Vec<Digest> = idle.iter().skip(removed.len()).map(|(_, digest)| *digest).collect();
        for digest in kept.iter().take(kept.len().saturating_sub(IDLE_HELD)) {
            if let Some(entry) = self.entries.get_mut(digest).filter(held) {
                entry.code = None;
            }
        }
        removed
    }
}

struct UnderWay<'t> {
    table: &'t Mutex<Table>,
    digest: Digest,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.table.lock().flights.remove(&self.digest);
    }
}
