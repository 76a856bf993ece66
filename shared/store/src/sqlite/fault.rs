//! From SQLite's errors to the seam's: what was attempted, on which file, and what to do.

use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::{StoreError, row::Unreadable};

/// What stops a job on a connection. Becomes a [`StoreError`] where the call ends, which knows what was attempted.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Shared, because a commit fails for all whose writes were in it.
    Engine(Arc<rusqlite::Error>),
    /// A row that is there and makes no sense.
    Row {
        what: String,
        problem: String,
    },
    NotFound {
        what: String,
    },
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(Arc::new(error))
    }
}

impl From<Unreadable> for Fault {
    fn from(Unreadable { what, problem }: Unreadable) -> Self {
        Self::Row { what, problem }
    }
}

impl Fault {
    pub(super) fn row(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self::Row { what: what.into(), problem: problem.to_string() }
    }

    /// Whether the transaction must be undone. Jobs look for what they need before they write.
    pub(super) const fn spoils_transaction(&self) -> bool {
        !matches!(self, Self::NotFound { .. })
    }

    pub(super) fn into_error(self, attempted: &'static str, place: &str) -> StoreError {
        let error = match self {
            Self::NotFound { what } => return StoreError::NotFound { what },
            Self::Row { what, problem } => {
                return StoreError::Corrupt { problem: format!("{what} in {place} cannot be read: {problem}") };
            }
            Self::Engine(error) => error,
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::TooBig) => StoreError::Full { attempted, source: error.into() },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(place, &error),
            _ => StoreError::Unavailable { attempted, source: error.into() },
        }
    }
}

fn damaged(place: &str, error: &rusqlite::Error) -> StoreError {
    StoreError::Corrupt {
        problem: format!(
            "{place} is damaged ({error}). Stop Flux, keep a copy of the file and of its -wal, then put a backup in its \
             place, or what `sqlite3 {place} .recover` saves. Flux does not start with an empty one by itself"
        ),
    }
}
