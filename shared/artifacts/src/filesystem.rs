//! Archives as files: `<dir>/sha256/<hex>`, each written beside, synced and renamed into place. What is set aside lies in
//! `<dir>/aside`: one renaming, which a put that comes at the same time is before or after.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Digest, Timestamp};

use crate::{ArtifactError, ArtifactStore, Aside, Origin, Stored, off_thread};

/// A directory of archives. Several processes may share it.
#[derive(Debug, Clone)]
pub struct Filesystem {
    directory: PathBuf,
    aside: PathBuf,
}

impl Filesystem {
    /// Uses `directory`, which is made where there is none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, ArtifactError> {
        let above = directory.into();
        let (directory, aside) = (above.join("sha256"), above.join("aside"));
        for made in [&directory, &aside] {
            fs::create_dir_all(made)
                .map_err(|error| ArtifactError::unavailable("make the directory of code archives", error))?;
        }
        Ok(Self { directory, aside })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }
}

#[async_trait]
impl ArtifactStore for Filesystem {
    async fn put(&self, content: Bytes) -> Result<Digest, ArtifactError> {
        let (directory, this) = (self.directory.clone(), self.clone());
        off_thread("store a code archive", move || {
            let digest = Digest::of(&content);
            let path = this.path(digest);
            if matches!(read_verified(&path, digest, content.len()), Ok(Some(_))) && renew(&path).is_ok() {
                return Ok(digest);
            }
            let failed = |source: std::io::Error| match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    ArtifactError::Full { size: content.len(), source: source.into() }
                }
                _ => ArtifactError::unavailable("store a code archive", source),
            };
            // Made with mode 0600, and removed again if anything fails.
            let mut file = tempfile::Builder::new().prefix(".put-").tempfile_in(&directory).map_err(failed)?;
            file.write_all(&content).map_err(failed)?;
            file.as_file().sync_all().map_err(failed)?;
            file.persist(&path).map_err(|error| failed(error.error))?;
            fs::File::open(&directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
            Ok(digest)
        })
        .await
    }

    async fn get(&self, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError> {
        let this = self.clone();
        off_thread("read a code archive", move || {
            if let Some(found) = read_verified(&this.path(digest), digest, most)? {
                return Ok(Some(found));
            }
            for aside in this.read_asides()?.into_iter().filter(|aside| aside.stored.digest == digest) {
                if let Some(found) = read_verified(&this.aside.join(&aside.name), digest, most)? {
                    return Ok(Some(found));
                }
            }
            // It may have been put back while this looked.
            read_verified(&this.path(digest), digest, most)
        })
        .await
    }

    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        off_thread("look for a code archive", move || {
            path.try_exists().map_err(|error| ArtifactError::unavailable("look for a code archive", error))
        })
        .await
    }

    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        let path = self.path(digest);
        off_thread("delete a code archive", move || remove(&path)).await
    }

    async fn list(&self) -> Result<Option<Vec<Stored>>, ArtifactError> {
        let directory = self.directory.clone();
        off_thread("list code archives", move || {
            let mut all: Vec<_> = read_directory(&directory)?
                .into_iter()
                // Anything else in there is not ours, or is being written.
                .filter_map(|(name, bytes, put_at)| {
                    Some(Stored { digest: format!("sha256:{name}").parse().ok()?, bytes, put_at })
                })
                .collect();
            all.sort_unstable_by_key(|stored| stored.digest);
            Ok(Some(all))
        })
        .await
    }
}

#[async_trait]
impl Origin for Filesystem {
    async fn set_aside(&self, digest: Digest) -> Result<Option<Aside>, ArtifactError> {
        let this = self.clone();
        off_thread("set a code archive aside", move || {
            let mut aside = Aside::new(Stored { digest, bytes: 0, put_at: Timestamp::default() });
            let path = this.aside.join(&aside.name);
            let failed = |error| ArtifactError::unavailable("set a code archive aside", error);
            match fs::rename(this.path(digest), &path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            }
            // What is true of it now that nobody renews it any more.
            let metadata = match path.metadata() {
                Ok(metadata) => metadata,
                // Another collection found it already, and looks after it.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            aside.stored.bytes = metadata.len();
            aside.stored.put_at = modified(&metadata).map_err(failed)?;
            Ok(Some(aside))
        })
        .await
    }

    async fn asides(&self) -> Result<Vec<Aside>, ArtifactError> {
        let this = self.clone();
        off_thread("list code archives", move || this.read_asides()).await
    }

    async fn put_back(&self, aside: &Aside) -> Result<(), ArtifactError> {
        let (from, to) = (self.aside.join(&aside.name), self.path(aside.stored.digest));
        off_thread("put a code archive back", move || match fs::rename(from, to) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ArtifactError::unavailable("put a code archive back", error)),
        })
        .await
    }

    async fn drop_aside(&self, aside: &Aside) -> Result<(), ArtifactError> {
        let path = self.aside.join(&aside.name);
        off_thread("delete a code archive", move || remove(&path)).await
    }
}

impl Filesystem {
    fn read_asides(&self) -> Result<Vec<Aside>, ArtifactError> {
        let found = read_directory(&self.aside)?;
        Ok(found.into_iter().filter_map(|(name, bytes, put_at)| Aside::named(&name, bytes, put_at)).collect())
    }
}

/// Name, size and time of each file.
fn read_directory(directory: &Path) -> Result<Vec<(String, u64, Timestamp)>, ArtifactError> {
    let failed = |error| ArtifactError::unavailable("list code archives", error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Gone since.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, metadata.len(), modified(&metadata).map_err(failed)?));
        }
    }
    Ok(found)
}

fn modified(metadata: &fs::Metadata) -> std::io::Result<Timestamp> {
    let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)))
}

fn renew(path: &Path) -> std::io::Result<()> {
    let now = SystemTime::UNIX_EPOCH + flux_protocol::time::now().since(Timestamp::default());
    fs::File::open(path)?.set_modified(now)
}

fn remove(path: &Path) -> Result<(), ArtifactError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ArtifactError::unavailable("delete a code archive", error)),
    }
}

fn read_verified(path: &Path, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError> {
    let failed = |error| ArtifactError::unavailable("read a code archive", error);
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let size = usize::try_from(file.metadata().map_err(failed)?.len()).unwrap_or(usize::MAX);
    if size > most {
        return Err(ArtifactError::TooLarge { digest, limit: most });
    }
    let mut content = Vec::with_capacity(size);
    file.take(most as u64).read_to_end(&mut content).map_err(failed)?;
    if Digest::of(&content) != digest {
        return Err(ArtifactError::Damaged { digest, place: path.display().to_string() });
    }
    Ok(Some(content.into()))
}
