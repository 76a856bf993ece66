//! From PostgreSQL's errors to the seam's, and which of them pass.

use tokio_postgres::error::{DbError, SqlState};

use crate::{
    StoreError,
    patience::{Again, Failure},
    row::Unreadable,
};

/// What stops an attempt. Becomes a [`StoreError`] where the call ends, which knows what was attempted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Engine(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Away(String),
    /// Rows changed while they were looked at.
    #[error("others went on changing the same rows")]
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

const DAMAGED: [&str; 2] = ["XX001", "XX002"];

impl From<Unreadable> for Fault {
    fn from(Unreadable { what, problem }: Unreadable) -> Self {
        Self::Row { what, problem }
    }
}

impl Fault {
    pub(super) fn row(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Unreadable::new(what, problem).into()
    }

    fn said(&self) -> Option<&DbError> {
        match self {
            Self::Engine(error) => error.as_db_error(),
            _ => None,
        }
    }

    /// Nothing is open on the connection. After any other fault it is not used again.
    pub(super) const fn leaves_connection(&self) -> bool {
        matches!(self, Self::Raced | Self::NotFound { .. })
    }

    /// It would meet any other call too.
    pub(super) fn is_of_server(&self) -> bool {
        match self.again() {
            Again::Away => true,
            Again::Raced => false,
            // Everything but what was in the statement: class 22 is data that cannot be.
            Again::Never => self.said().is_some_and(|said| !said.code().code().starts_with("22")),
        }
    }

    pub(super) fn to_error(&self, attempted: &'static str, place: &str) -> StoreError {
        match self {
            Self::NotFound { what } => return StoreError::NotFound { what: what.clone() },
            Self::Row { what, problem } => {
                return StoreError::Corrupt { problem: format!("{what} in {place} cannot be read: {problem}") };
            }
            Self::Refused { problem } => return StoreError::Corrupt { problem: format!("{place}: {problem}") },
            Self::Engine(_) | Self::Away(_) | Self::Raced | Self::Late => {}
        }
        let Some(said) = self.said() else {
            return StoreError::Unavailable { attempted, source: chain(self).into() };
        };
        // A server's words without its details, which have values of rows in them.
        let words = format!("{} ({})", said.message(), said.code().code());
        match said.code().code() {
            "53100" | "53400" | "54000" => StoreError::Full { attempted, source: words.into() },
            // Damaged data or a damaged index, and data that cannot be. What else begins with XX is the server's own bug or
            // mishap (XX000: a cache lookup that failed, a file it could not open), of which the next call may see nothing.
            code if DAMAGED.contains(&code) || code.starts_with("22") => {
                StoreError::Corrupt { problem: format!("{place}: {words}") }
            }
            _ => StoreError::Unavailable { attempted, source: words.into() },
        }
    }
}

impl Failure for Fault {
    fn again(&self) -> Again {
        match self {
            Self::Away(_) | Self::Late => Again::Away,
            Self::Raced => Again::Raced,
            Self::Row { .. } | Self::NotFound { .. } | Self::Refused { .. } => Again::Never,
            Self::Engine(error) => match error.code() {
                // No answer of the server's: the connection.
                None => Again::Away,
                Some(code) => again(code),
            },
        }
    }

    fn late() -> Self {
        Self::Late
    }
}

fn again(code: &SqlState) -> Again {
    match code.code() {
        // Serialization, deadlock, a row that somebody else inserted meanwhile.
        "40001" | "40P01" | "23505" => Again::Raced,
        // Going down, coming up, too many connections, a standby that was the primary.
        "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "25006" => Again::Away,
        code if code.starts_with("08") => Again::Away,
        _ => Again::Never,
    }
}

/// What a connection's error says, with what is below it: a client's error alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        below = error.source();
    }
    text
}
