//! Archives in the broker's blob seam, which is how agents get them: over the one connection that they have.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flux_broker::{Blobs, BrokerError};
use flux_protocol::{Digest, subject::CODE_BUCKET};

use crate::{ArtifactError, ArtifactStore, Stored};

/// Archives in bucket [`CODE_BUCKET`]; the key is the digest's hex. `B` is `dyn flux_broker::Broker`, or
/// anything with its blob seam.
pub struct BlobArtifacts<B: ?Sized> {
    broker: Arc<B>,
}

impl<B: ?Sized> BlobArtifacts<B> {
    pub const fn new(broker: Arc<B>) -> Self {
        Self { broker }
    }
}

#[async_trait]
impl<B: Blobs + Send + Sync + ?Sized + 'static> ArtifactStore for BlobArtifacts<B> {
    async fn put(&self, content: Bytes) -> Result<Digest, ArtifactError> {
        let (content, digest) = tokio::task::spawn_blocking(move || {
            let digest = Digest::of(&content);
            (content, digest)
        })
        .await
        .map_err(|error| ArtifactError::unavailable("store a code archive", error))?;
        let size = content.len();
        self.broker.put_blob(CODE_BUCKET, &digest.hex(), content).await.map_err(|error| match error {
            BrokerError::Full { .. } => ArtifactError::Full { size, source: error.into() },
            _ => ArtifactError::unavailable("store a code archive in the queue", error),
        })?;
        Ok(digest)
    }

    async fn get(&self, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError> {
        let found = self.broker.get_blob(CODE_BUCKET, &digest.hex(), most).await.map_err(|error| match error {
            BrokerError::TooLarge { .. } => ArtifactError::TooLarge { digest, limit: most },
            _ => ArtifactError::unavailable("read a code archive from the queue", error),
        })?;
        let Some(content) = found else { return Ok(None) };
        let verified = tokio::task::spawn_blocking(move || (Digest::of(&content) == digest).then_some(content))
            .await
            .map_err(|error| ArtifactError::unavailable("verify a code archive", error))?;
        match verified {
            Some(content) => Ok(Some(content)),
            None => Err(ArtifactError::Damaged { digest, place: format!("the queue's bucket {CODE_BUCKET}") }),
        }
    }

    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        let found = self.broker.has_blob(CODE_BUCKET, &digest.hex()).await;
        found.map_err(|error| ArtifactError::unavailable("look for a code archive in the queue", error))
    }

    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        let deleted = self.broker.delete_blob(CODE_BUCKET, &digest.hex()).await;
        deleted.map_err(|error| ArtifactError::unavailable("delete a code archive from the queue", error))
    }

    async fn list(&self) -> Result<Option<Vec<Stored>>, ArtifactError> {
        let found = self.broker.list_blobs(CODE_BUCKET).await;
        let found = found.map_err(|error| ArtifactError::unavailable("list the code archives in the queue", error))?;
        Ok(found.map(|blobs| {
            let mut all: Vec<_> = blobs
                .into_iter()
                .filter_map(|blob| {
                    let digest = format!("sha256:{}", blob.key).parse().ok()?;
                    Some(Stored { digest, bytes: blob.bytes, put_at: blob.put_at })
                })
                .collect();
            all.sort_unstable_by_key(|stored| stored.digest);
            all
        }))
    }
}
