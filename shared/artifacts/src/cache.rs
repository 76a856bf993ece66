//! Unpacked code on an agent's disk, by digest. A folder that is there is whole; one in use is never removed.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use flux_protocol::Digest;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::{
    archive,
    error::ArtifactError,
    store::{ArtifactStore, blocking},
};

/// Prefix of folders that are being unpacked; what a crash left is removed at the next start.
pub(crate) const STAGING: &str = ".unpacking-";

/// One version's code, unpacked. It stays while anyone holds it.
#[derive(Debug)]
pub struct CodeDir {
    path: PathBuf,
    digest: Digest,
    bytes: u64,
}

impl CodeDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// A place for one digest: the cell makes concurrent first uses unpack once.
#[derive(Default)]
struct Place {
    ready: OnceCell<Arc<CodeDir>>,
}

#[derive(Default)]
struct Shelf {
    places: HashMap<Digest, (Arc<Place>, u64)>,
    /// Counts uses; the smallest was used longest ago.
    clock: u64,
}

/// Clones share one cache.
#[derive(Clone)]
pub struct CodeCache {
    dir: Arc<PathBuf>,
    capacity_bytes: u64,
    fetch: Arc<dyn ArtifactStore>,
    shelf: Arc<Mutex<Shelf>>,
}

impl CodeCache {
    /// Opens the cache in `dir`, whose leftovers of a crash are removed.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(
        dir: impl Into<PathBuf>,
        capacity_bytes: u64,
        fetch: Arc<dyn ArtifactStore>,
    ) -> Result<Self, ArtifactError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(|source| ArtifactError::file("cannot make the folder", &dir, source))?;
        let entries =
            std::fs::read_dir(&dir).map_err(|source| ArtifactError::file("cannot read the folder", &dir, source))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(STAGING) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { dir: Arc::new(dir), capacity_bytes, fetch, shelf: Arc::default() })
    }

    /// The code's folder: at once when it was used before, else fetched, verified and unpacked, once however
    /// many ask at the same time.
    ///
    /// # Errors
    /// It cannot be fetched (`Missing`, `Broker`), is damaged, or the disk refuses.
    pub async fn ensure(&self, digest: Digest) -> Result<Arc<CodeDir>, ArtifactError> {
        let place = self.place(digest);
        if let Some(ready) = place.ready.get() {
            return Ok(Arc::clone(ready));
        }
        let code = place.ready.get_or_try_init(|| self.load(digest)).await?;
        self.evict(digest);
        Ok(Arc::clone(code))
    }

    /// Digests that are unpacked and ready.
    pub fn len(&self) -> usize {
        self.shelf.lock().places.values().filter(|(place, _)| place.ready.initialized()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn place(&self, digest: Digest) -> Arc<Place> {
        let mut shelf = self.shelf.lock();
        shelf.clock += 1;
        let now = shelf.clock;
        let (place, used) = shelf.places.entry(digest).or_default();
        *used = now;
        Arc::clone(place)
    }

    async fn load(&self, digest: Digest) -> Result<Arc<CodeDir>, ArtifactError> {
        let path = self.dir.join(digest.hex());
        if !path.is_dir() {
            let archive = self.fetch.get(digest).await?.ok_or(ArtifactError::Missing { digest })?;
            let destination = path.clone();
            blocking(move || match archive::unpack(&archive, &destination) {
                Ok(_) => Ok(()),
                // Another agent with the same folder was first: what is there is whole.
                Err(_) if destination.is_dir() => Ok(()),
                Err(error) => Err(error),
            })
            .await?;
        }
        let measured = path.clone();
        let bytes = blocking(move || Ok(size_of_tree(&measured))).await?;
        Ok(Arc::new(CodeDir { path, digest, bytes }))
    }

    /// Makes room: what was used longest ago goes first, what is in use or `keep` never.
    fn evict(&self, keep: Digest) {
        let mut removed = Vec::new();
        {
            let mut shelf = self.shelf.lock();
            let mut total: u64 =
                shelf.places.values().filter_map(|(place, _)| place.ready.get()).map(|code| code.bytes).sum();
            if total <= self.capacity_bytes {
                return;
            }
            let mut oldest: Vec<(u64, Digest)> =
                shelf.places.iter().map(|(digest, (_, used))| (*used, *digest)).collect();
            oldest.sort_unstable();
            for (_, digest) in oldest {
                if total <= self.capacity_bytes {
                    break;
                }
                let idle = shelf.places.get(&digest).is_some_and(|(place, _)| {
                    Arc::strong_count(place) == 1 && place.ready.get().is_some_and(|code| Arc::strong_count(code) == 1)
                });
                if digest == keep || !idle {
                    continue;
                }
                if let Some((place, _)) = shelf.places.remove(&digest)
                    && let Some(code) = place.ready.get()
                {
                    total -= code.bytes;
                    // Renamed under the lock, so that whoever wants it again unpacks it anew.
                    let grave = self.dir.join(format!("{STAGING}evicted-{}", digest.hex()));
                    if std::fs::rename(&code.path, &grave).is_ok() {
                        removed.push(grave);
                    }
                }
            }
        }
        for grave in removed {
            let _ = std::fs::remove_dir_all(grave);
        }
    }
}

fn size_of_tree(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of_tree(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
