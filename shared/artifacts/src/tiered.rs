//! Two stores as one: the origin keeps, the distribution hands out.
//!
//! Gateways keep archives where they are safe (a directory, a bucket) and put a copy where agents can reach
//! it. The copy can be lost with the queue's data; [`Tiered::redistribute`] puts back what is missing.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Digest, limits};

use crate::{ArtifactError, ArtifactStore, Origin, Stored};

pub struct Tiered {
    pub origin: Arc<dyn Origin>,
    pub distribution: Arc<dyn ArtifactStore>,
}

impl Tiered {
    pub fn new(origin: Arc<dyn Origin>, distribution: Arc<dyn ArtifactStore>) -> Self {
        Self { origin, distribution }
    }

    /// Puts into the distribution what it lacks of these. Returns the digests that the origin does not have
    /// either, or has damaged: those must be deployed again.
    ///
    /// # Errors
    /// One of the stores is out of reach or full.
    pub async fn redistribute(&self, digests: &[Digest]) -> Result<Vec<Digest>, ArtifactError> {
        let mut lost = Vec::new();
        for digest in digests {
            if self.distribution.has(*digest).await? {
                continue;
            }
            match self.origin.get(*digest, limits::ARCHIVE).await {
                Ok(Some(content)) => drop(self.distribution.put(content).await?),
                Ok(None) | Err(ArtifactError::Damaged { .. } | ArtifactError::TooLarge { .. }) => lost.push(*digest),
                Err(error) => return Err(error),
            }
        }
        Ok(lost)
    }
}

#[async_trait]
impl ArtifactStore for Tiered {
    async fn put(&self, content: Bytes) -> Result<Digest, ArtifactError> {
        let digest = self.origin.put(content.clone()).await?;
        self.distribution.put(content).await?;
        Ok(digest)
    }

    /// From the origin, or from the distribution where the origin lost it.
    async fn get(&self, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError> {
        match self.origin.get(digest, most).await {
            Ok(None) | Err(ArtifactError::Damaged { .. }) => self.distribution.get(digest, most).await,
            found => found,
        }
    }

    /// Whether both have it: only then agents can run it and it survives the queue.
    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        Ok(self.origin.has(digest).await? && self.distribution.has(digest).await?)
    }

    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        self.distribution.delete(digest).await?;
        self.origin.delete(digest).await
    }

    async fn list(&self) -> Result<Option<Vec<Stored>>, ArtifactError> {
        self.origin.list().await
    }
}
