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
use flux_protocol::Digest;

pub mod archive;
#[cfg(feature = "blobs")]
mod blobs;
mod cache;
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
    /// it was damaged.
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

    /// All digests, in their order; `None` where the engine cannot list.
    async fn list(&self) -> Result<Option<Vec<Digest>>, ArtifactError>;
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
