//! Archives as files: `<dir>/sha256/<hex>`, each written aside, synced and renamed into place.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::Digest;

use crate::{ArtifactError, ArtifactStore, off_thread};

/// A directory of archives. Several processes may share it.
#[derive(Debug, Clone)]
pub struct Filesystem {
    directory: PathBuf,
}

impl Filesystem {
    /// Uses `directory`, which is made where there is none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, ArtifactError> {
        let directory = directory.into().join("sha256");
        fs::create_dir_all(&directory)
            .map_err(|error| ArtifactError::unavailable("make the directory of code archives", error))?;
        Ok(Self { directory })
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
            if matches!(read_verified(&path, digest, content.len()), Ok(Some(_))) {
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
        let path = self.path(digest);
        off_thread("read a code archive", move || read_verified(&path, digest, most)).await
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
        off_thread("delete a code archive", move || match fs::remove_file(path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ArtifactError::unavailable("delete a code archive", error)),
        })
        .await
    }

    async fn list(&self) -> Result<Option<Vec<Digest>>, ArtifactError> {
        let directory = self.directory.clone();
        off_thread("list code archives", move || {
            let failed = |error| ArtifactError::unavailable("list code archives", error);
            let mut digests = Vec::new();
            for entry in fs::read_dir(directory).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                // Anything else in there is not ours, or is being written.
                digests.extend(name.to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
            }
            digests.sort_unstable();
            Ok(Some(digests))
        })
        .await
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
