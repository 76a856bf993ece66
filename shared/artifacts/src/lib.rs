//! Code archives, content-addressed: where they lie ([`ArtifactStore`]), what may be in one ([`archive`]), and how
//! an agent keeps them unpacked ([`CodeCache`]).
//!
//! An archive's name is its SHA-256, and whoever reads one checks it: a store may lose an archive, it cannot
//! give out another in its place.
//!
//! **Architecture Invariant:** nothing here knows functions or versions. Archives are judged as archives; what
//! a handler is, and whether it is there, is the caller's question.

use std::error::Error;

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Digest, Timestamp};

pub mod archive;
#[cfg(feature = "blobs")]
mod blobs;
mod cache;
pub mod collect;
pub mod conformance;
mod filesystem;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "s3")]
mod s3;
mod tiered;

pub use archive::{ArchiveError, ArchiveSummary, pack_dir, pack_with};
#[cfg(feature = "blobs")]
pub use blobs::BlobArtifacts;
pub use cache::{CacheError, CodeCache, CodeDir};
pub use filesystem::Filesystem;
#[cfg(feature = "s3")]
pub use s3::{S3, S3Error, S3Options};
pub use tiered::Tiered;

/// Where archives lie; each engine passes [`conformance`]. Putting and deleting are idempotent; content under a digest never changes.
#[async_trait]
pub trait ArtifactStore: Send + Sync + 'static {
    /// Stores content under its digest; durable when it returns. What is there already is left, or mended if
    /// it was damaged; its time is now in any case.
    async fn put(&self, content: Bytes) -> Result<Digest, ArtifactError>;

    /// The content, verified; `None` when there is none.
    ///
    /// # Errors
    /// `TooLarge` when it has more than `most` bytes, before they are read; `Damaged`.
    async fn get(&self, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError>;

    /// Whether content is there. It is not read.
    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError>;

    /// Deleting what is not there succeeds.
    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError>;

    /// All archives, in the order of their digests; `None` where the engine cannot list.
    async fn list(&self) -> Result<Option<Vec<Stored>>, ArtifactError>;
}

/// An archive as it lies somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub bytes: u64,
    /// When it was last put, by the clock of where it lies.
    pub put_at: Timestamp,
}

/// Where archives are kept for good. From here they go in two steps ([`collect`]): set aside, and then dropped, or put back if
/// somebody turned out to need them.
#[async_trait]
pub trait Origin: ArtifactStore {
    /// Takes an archive out of its place. It is in no list then, and `has` denies it; `get` finds it still, so that one that
    /// is needed is never lost, whoever dies meanwhile. `None`: it is not there.
    async fn set_aside(&self, digest: Digest) -> Result<Option<Aside>, ArtifactError>;

    /// Everything that is aside, whoever put it there.
    async fn asides(&self) -> Result<Vec<Aside>, ArtifactError>;

    /// Puts it where it was. What somebody else put back or dropped meanwhile is left so.
    async fn put_back(&self, aside: &Aside) -> Result<(), ArtifactError>;

    /// Deletes what is aside, and nothing in its place.
    async fn drop_aside(&self, aside: &Aside) -> Result<(), ArtifactError>;
}

/// An archive that was set aside; each time under another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    pub stored: Stored,
    name: String,
}

impl Aside {
    fn new(stored: Stored) -> Self {
        let name = format!("{}.{}", stored.digest.hex(), uuid::Uuid::new_v4().simple());
        Self { stored, name }
    }

    /// From a name that [`Aside::new`] made, and how it lies there.
    fn named(name: &str, bytes: u64, put_at: Timestamp) -> Option<Self> {
        let digest = format!("sha256:{}", name.split_once('.')?.0).parse().ok()?;
        Some(Self { stored: Stored { digest, bytes, put_at }, name: name.to_owned() })
    }
}

/// What can go wrong at the seam.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("the code archives are out of reach while trying to {attempted}")]
    Unavailable {
        attempted: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("there is no room for a code archive of {size} bytes")]
    Full {
        size: usize,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("the code archive {digest} has more than the {limit} bytes that are taken")]
    TooLarge { digest: Digest, limit: usize },
    /// What lies under the digest is something else.
    #[error("the code archive {digest} is damaged in {place}; deploy it again to mend it")]
    Damaged { digest: Digest, place: String },
    /// A collection that would remove more than is likely meant; nothing was touched.
    #[error("{going} of {of} code archives would be removed, and the versions in the store name {named} archives")]
    NeedsForce { going: usize, of: usize, named: usize },
}

impl ArtifactError {
    /// Whether the same call may succeed a little later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }

    pub(crate) fn unavailable(attempted: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable { attempted, source: source.into() }
    }
}

/// Runs work that waits for a disk off the async threads.
pub(crate) async fn off_thread<T: Send + 'static>(
    attempted: &'static str,
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ArtifactError::unavailable(attempted, error))?
}
