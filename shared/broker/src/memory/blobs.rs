//! Blobs.

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::time::now;

use super::MemoryBroker;
use crate::{BlobListed, Blobs, BrokerError};

#[async_trait]
impl Blobs for MemoryBroker {
    async fn put_blob(&self, bucket: &str, key: &str, content: Bytes) -> Result<(), BrokerError> {
        self.inner.connected("store a blob")?;
        self.inner.blobs.lock().insert((bucket.to_owned(), key.to_owned()), (content, now()));
        Ok(())
    }

    async fn get_blob(&self, bucket: &str, key: &str, most: usize) -> Result<Option<Bytes>, BrokerError> {
        self.inner.connected("read a blob")?;
        let found = self.inner.blobs.lock().get(&(bucket.to_owned(), key.to_owned())).cloned();
        match found.map(|(content, _)| content) {
            Some(content) if content.len() > most => Err(BrokerError::TooLarge { size: content.len(), limit: most }),
            found => Ok(found),
        }
    }

    async fn has_blob(&self, bucket: &str, key: &str) -> Result<bool, BrokerError> {
        self.inner.connected("read a blob")?;
        Ok(self.inner.blobs.lock().contains_key(&(bucket.to_owned(), key.to_owned())))
    }

    async fn delete_blob(&self, bucket: &str, key: &str) -> Result<(), BrokerError> {
        self.inner.connected("delete a blob")?;
        self.inner.blobs.lock().remove(&(bucket.to_owned(), key.to_owned()));
        Ok(())
    }

    async fn list_blobs(&self, bucket: &str) -> Result<Option<Vec<BlobListed>>, BrokerError> {
        self.inner.connected("list blobs")?;
        let blobs = self.inner.blobs.lock();
        let of_bucket = blobs.iter().filter(|((at, _), _)| at == bucket);
        Ok(Some(
            of_bucket
                .map(|((_, key), (content, put_at))| BlobListed {
                    key: key.clone(),
                    bytes: content.len() as u64,
                    put_at: *put_at,
                })
                .collect(),
        ))
    }
}
