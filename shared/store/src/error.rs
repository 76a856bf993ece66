//! What can go wrong at the seam.

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is out of reach while trying to {attempted}")]
    Unavailable {
        attempted: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Disk full, or a limit of the engine.
    #[error("the store is full while trying to {attempted}")]
    Full {
        attempted: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the store's data cannot be used: {problem}")]
    Corrupt { problem: String },
    #[error("the store's URL `{url}` is not valid: {problem}")]
    Url { url: String, problem: String },
    #[error("{what} was not found in the store")]
    NotFound { what: String },
    /// What was to fill it ended before its end; nothing of it took effect.
    #[error("what the store was to be filled with broke off")]
    BrokenOff,
    #[error("the store was closed")]
    Closed,
}

impl StoreError {
    /// Whether the same call may succeed a little later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }
}
