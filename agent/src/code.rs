//! Where a function's unpacked code is found. A seam, so that tests need no archives.

use std::{any::Any, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use flux_protocol::Digest;

/// Why there is no code to run.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The archive is not there, where nothing says that it will be.
    #[error("{message}")]
    Missing { message: String },
    /// The archive is not what its digest says, or holds what must not be unpacked.
    #[error("{message}")]
    Unusable { message: String },
    /// The queue or the disk failed: another try may work.
    #[error("the code could not be fetched or unpacked: {message}")]
    Unavailable { message: String },
}

/// A folder of code that stays where it is for as long as this is held.
#[derive(Clone)]
pub struct CodeFolder {
    pub path: PathBuf,
    pub hold: Arc<dyn Any + Send + Sync>,
}

/// Unpacked code by digest.
#[async_trait]
pub trait Code: Send + Sync + 'static {
    /// Fetches and unpacks what is not there yet.
    async fn ensure(&self, digest: &Digest) -> Result<CodeFolder, CodeError>;

    /// Archives that are ready.
    fn cached(&self) -> u32;
}
