//! From Redis' errors to the seam's, and which of them pass.

use crate::{
    StoreError,
    patience::{Again, Failure},
    row::Unreadable,
};

/// What stops an attempt. Becomes a [`StoreError`] where the call ends, which knows what was attempted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Engine(#[from] redis::RedisError),
    /// What was read changed before it was written.
    #[error("others went on changing the same keys")]
    Raced,
    #[error("it did not answer in time")]
    Late,
    #[error("{what}: {problem}")]
    Row { what: String, problem: String },
    #[error("{what} was not found")]
    NotFound { what: String },
    /// What waiting does not mend.
    #[error("{problem}")]
    Refused { problem: String },
}

impl From<Unreadable> for Fault {
    fn from(Unreadable { what, problem }: Unreadable) -> Self {
        Self::Row { what, problem }
    }
}

impl Fault {
    pub(super) fn row(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Unreadable::new(what, problem).into()
    }

    pub(super) fn to_error(&self, attempted: &'static str, place: &str) -> StoreError {
        match self {
            Self::NotFound { what } => StoreError::NotFound { what: what.clone() },
            Self::Row { what, problem } => {
                StoreError::Corrupt { problem: format!("{what} in {place} cannot be read: {problem}") }
            }
            Self::Refused { problem } => StoreError::Corrupt { problem: format!("{place}: {problem}") },
            Self::Engine(error) if matches!(error.code(), Some("OOM" | "MISCONF")) => {
                StoreError::Full { attempted, source: self.to_string().into() }
            }
            Self::Engine(_) | Self::Raced | Self::Late => {
                StoreError::Unavailable { attempted, source: self.to_string().into() }
            }
        }
    }
}

impl Failure for Fault {
    fn again(&self) -> Again {
        match self {
            Self::Late => Again::Away,
            Self::Raced => Again::Raced,
            Self::Row { .. } | Self::NotFound { .. } | Self::Refused { .. } => Again::Never,
            Self::Engine(error) => match error.code() {
                // Coming up, a replica that was the primary, a cluster without one, a primary without its replicas.
                Some(
                    "LOADING" | "READONLY" | "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "NOREPLICAS" | "BUSY"
                    | "UNBLOCKED" | "MOVED" | "ASK",
                ) => Again::Away,
                Some(_) => Again::Never,
                // No answer of the server's: the connection, or no primary to be found.
                None => Again::Away,
            },
        }
    }

    fn late() -> Self {
        Self::Late
    }
}
