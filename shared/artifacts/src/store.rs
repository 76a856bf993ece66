//! Where archives are kept: by digest, so that putting one twice is putting it once.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_broker::Broker;
use flux_protocol::{Digest, limits, subject::CODE_BUCKET};

use crate::error::ArtifactError;

#[async_trait]
pub trait ArtifactStore: Send + Sync + 'static {
    /// Keeps an archive and returns its digest. Putting the same again changes nothing.
    async fn put(&self, archive: Bytes) -> Result<Digest, ArtifactError>;

    /// The archive, verified against its digest; `None` when it is not here.
    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, ArtifactError>;

    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError>;

    /// Deleting what is not there succeeds.
    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError>;
}

fn verified(digest: Digest, archive: Bytes) -> Result<Bytes, ArtifactError> {
    if Digest::of(&archive) == digest { Ok(archive) } else { Err(ArtifactError::Corrupt { digest }) }
}

/// Archives as files named by their digest.
#[derive(Debug, Clone)]
pub struct Filesystem {
    dir: PathBuf,
}

impl Filesystem {
    /// # Errors
    /// The folder cannot be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ArtifactError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(|source| ArtifactError::file("cannot make the folder", &dir, source))?;
        Ok(Self { dir })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ArtifactError::Interrupted)?
}

#[async_trait]
impl ArtifactStore for Filesystem {
    async fn put(&self, archive: Bytes) -> Result<Digest, ArtifactError> {
        let dir = self.dir.clone();
        blocking(move || {
            let digest = Digest::of(&archive);
            let path = dir.join(digest.hex());
            if !path.exists() {
                write_atomically(&dir, &path, &archive)?;
            }
            Ok(digest)
        })
        .await
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, ArtifactError> {
        let path = self.path(digest);
        blocking(move || match std::fs::read(&path) {
            Ok(content) => verified(digest, content.into()).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ArtifactError::file("cannot read", &path, source)),
        })
        .await
    }

    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        blocking(move || Ok(path.exists())).await
    }

    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        let path = self.path(digest);
        blocking(move || match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(ArtifactError::file("cannot remove", &path, source))
            }
            _ => Ok(()),
        })
        .await
    }
}

fn write_atomically(dir: &Path, path: &Path, content: &[u8]) -> Result<(), ArtifactError> {
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".incoming-").tempfile_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| ArtifactError::file("cannot write", path, source))
}

/// Archives in the queue's blob seam: how code reaches agents.
#[derive(Clone)]
pub struct BlobArtifacts {
    broker: Arc<dyn Broker>,
}

impl BlobArtifacts {
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker }
    }
}

#[async_trait]
impl ArtifactStore for BlobArtifacts {
    async fn put(&self, archive: Bytes) -> Result<Digest, ArtifactError> {
        let digest = Digest::of(&archive);
        if !self.broker.has_blob(CODE_BUCKET, &digest.hex()).await? {
            self.broker.put_blob(CODE_BUCKET, &digest.hex(), archive).await?;
        }
        Ok(digest)
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, ArtifactError> {
        match self.broker.get_blob(CODE_BUCKET, &digest.hex(), limits::ARCHIVE).await? {
            None => Ok(None),
            Some(archive) => blocking(move || verified(digest, archive)).await.map(Some),
        }
    }

    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        Ok(self.broker.has_blob(CODE_BUCKET, &digest.hex()).await?)
    }

    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        Ok(self.broker.delete_blob(CODE_BUCKET, &digest.hex()).await?)
    }
}

/// An `origin` that is kept, and a `distribution` that agents read and that may be lost and filled again.
#[derive(Clone)]
pub struct Tiered {
    origin: Arc<dyn ArtifactStore>,
    distribution: Arc<dyn ArtifactStore>,
}

impl Tiered {
    pub fn new(origin: Arc<dyn ArtifactStore>, distribution: Arc<dyn ArtifactStore>) -> Self {
        Self { origin, distribution }
    }

    /// Puts what the distribution lost back into it. Whether anything was done; `Missing` when the origin has it not either.
    ///
    /// # Errors
    /// Either place refuses, or neither has the archive.
    pub async fn restore(&self, digest: Digest) -> Result<bool, ArtifactError> {
        if self.distribution.has(digest).await? {
            return Ok(false);
        }
        let archive = self.origin.get(digest).await?.ok_or(ArtifactError::Missing { digest })?;
        self.distribution.put(archive).await?;
        Ok(true)
    }
}

#[async_trait]
impl ArtifactStore for Tiered {
    async fn put(&self, archive: Bytes) -> Result<Digest, ArtifactError> {
        let digest = self.origin.put(archive.clone()).await?;
        self.distribution.put(archive).await?;
        Ok(digest)
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, ArtifactError> {
        match self.origin.get(digest).await? {
            Some(archive) => Ok(Some(archive)),
            None => self.distribution.get(digest).await,
        }
    }

    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        Ok(self.origin.has(digest).await? || self.distribution.has(digest).await?)
    }

    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        self.origin.delete(digest).await?;
        self.distribution.delete(digest).await
    }
}
