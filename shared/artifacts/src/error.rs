//! What can go wrong with archives and with the places they are kept.

use std::path::PathBuf;

/// Why an archive is not taken. Each names the entry and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    #[error("the body is not a zip archive ({problem}); make one with `zip -r code.zip .` or `flux deploy DIR`")]
    NotZip { problem: String },
    #[error("the archive has {size} bytes; at most {limit} are taken")]
    TooLarge { size: u64, limit: u64 },
    #[error("the archive has {entries} entries; at most {limit} are taken")]
    TooManyEntries { entries: usize, limit: usize },
    #[error("the archive unpacks to more than {limit} bytes (at `{entry}`)")]
    UnpacksTooLarge { entry: String, limit: u64 },
    #[error("`{entry}` unpacks to more than {ratio} times its packed size; store it uncompressed if that is meant")]
    Ratio { entry: String, ratio: u64 },
    #[error("`{entry}` {problem}")]
    Entry { entry: String, problem: String },
    #[error("`{entry}` cannot be unpacked: {problem}; make the archive again")]
    Damaged { entry: String, problem: String },
}

impl ArchiveError {
    pub(crate) fn entry(entry: &str, problem: impl Into<String>) -> Self {
        Self::Entry { entry: entry.chars().take(200).collect(), problem: problem.into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("{attempted} {path}")]
    File {
        attempted: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the archive's content does not match its digest {digest}")]
    Corrupt { digest: flux_protocol::Digest },
    #[error("the archive {digest} is in no place that was asked")]
    Missing { digest: flux_protocol::Digest },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Broker(#[from] flux_broker::BrokerError),
    #[error("{path}: {problem}")]
    Pack { path: PathBuf, problem: String },
    #[error("unpacking was interrupted")]
    Interrupted,
}

impl ArtifactError {
    pub(crate) fn file(attempted: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Self::File { attempted, path: path.to_owned(), source }
    }

    /// Whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Broker(error) => error.is_retryable(),
            Self::File { .. } | Self::Interrupted | Self::Missing { .. } => true,
            Self::Corrupt { .. } | Self::Archive(_) | Self::Pack { .. } => false,
        }
    }
}
