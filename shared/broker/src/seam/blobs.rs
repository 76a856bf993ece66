//! Content that does not fit a message: large payloads and outputs, code archives.

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::Timestamp;

use crate::BrokerError;

/// Keys are `[A-Za-z0-9_-]{1,200}`; `bucket` is one of `subject::{CODE_BUCKET, BLOB_BUCKET}`.
#[async_trait]
pub trait Blobs {
    /// Stores content under a key, replacing what was there. Readers see the old or the new, never a part.
    async fn put_blob(&self, bucket: &str, key: &str, content: Bytes) -> Result<(), BrokerError>;

    /// The whole content; `None` when there is none.
    ///
    /// # Errors
    /// `TooLarge` when it has more than `most` bytes, before they are read.
    async fn get_blob(&self, bucket: &str, key: &str, most: usize) -> Result<Option<Bytes>, BrokerError>;

    async fn has_blob(&self, bucket: &str, key: &str) -> Result<bool, BrokerError>;

    /// Deleting what is not there succeeds.
    async fn delete_blob(&self, bucket: &str, key: &str) -> Result<(), BrokerError>;

    /// All blobs of a bucket, in no order; `None` where the engine cannot list.
    async fn list_blobs(&self, _bucket: &str) -> Result<Option<Vec<BlobListed>>, BrokerError> {
        Ok(None)
    }
}

/// A blob as it lies in its bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobListed {
    pub key: String,
    pub bytes: u64,
    /// When it was last put, by its writer's clock.
    pub put_at: Timestamp,
}
