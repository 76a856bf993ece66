use std::{io, path::PathBuf};

/// What is wrong with the directory of certificates, or with one that was shown.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path} cannot be {attempted}")]
    File {
        attempted: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is damaged: {why}. Restore it from a backup. To start over with new identities for everybody, move the \
         whole directory away"
    )]
    Damaged { path: PathBuf, why: String },
    #[error("{path} is missing, and what belongs to it is there. Restore it from a backup")]
    Half { path: PathBuf },
    #[error("{path} is not there: {remedy}")]
    Missing { path: PathBuf, remedy: &'static str },
    #[error("{path} can be read by other users (mode {mode:o}): chmod 600 it, and renew what it belongs to")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{attempted} failed")]
    Crypto {
        attempted: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the certificate is refused: {why}")]
    Untrusted { why: String },
    #[error("the join token is refused: {why}")]
    Token { why: &'static str },
    #[error("there is no {what} here")]
    Unknown { what: String },
    #[error("{what} was let in already, and its key is on another machine: revoke it first, or choose another name")]
    Taken { what: String },
}

impl PkiError {
    pub(crate) fn crypto(attempted: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Crypto { attempted, source: source.into() }
    }
}
