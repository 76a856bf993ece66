//! What can go wrong at the seam.

/// Each variant says what was attempted; the engine's own error is the source's text, not its type.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the queue is out of reach while trying to {attempted}")]
    Unavailable {
        attempted: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stream, a function's share of it, or a bucket is at its named limit.
    #[error("the queue is full: {what}")]
    Full { what: String },
    #[error("a message of {size} bytes is larger than the queue takes ({limit})")]
    TooLarge { size: usize, limit: usize },
    #[error("{what} was not found in the queue")]
    NotFound { what: String },
    /// Another writer was first ([`crate::Tables::update`]).
    #[error("{key} was changed by another writer")]
    Conflict { key: String },
    #[error("the queue's permissions do not let this identity {attempted}")]
    Denied { attempted: String },
    #[error("the queue refused to {attempted}")]
    Refused {
        attempted: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine lacks it: see [`crate::Capabilities`].
    #[error("this queue cannot {what}")]
    Unsupported { what: &'static str },
    #[error("the connection to the queue was closed")]
    Closed,
}

impl BrokerError {
    /// Whether the same call may succeed a little later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }

    pub fn unavailable(attempted: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable { attempted, source: source.into() }
    }

    pub fn refused(attempted: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Refused { attempted, source: source.into() }
    }
}
