//! Why there is no guest.

use std::{io, path::PathBuf, time::Duration};

use crate::{api::ApiError, code::CodeError, facts::FactsError, vsock::VsockError};

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("{what}")]
    Folder {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{program} cannot be run")]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("Firecracker did not listen within {within:?}")]
    Mute {
        within: Duration,
        #[source]
        source: io::Error,
    },
    #[error("Firecracker ended before {before}, with {status}: {log}")]
    Ended { before: &'static str, status: String, log: String },
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error(transparent)]
    Code(#[from] CodeError),
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error("all {0} numbers that guests may run as are taken")]
    NoNumber(u32),
    #[error("the guest's first word cannot be sent")]
    Wake(#[source] io::Error),
}

impl DriverError {
    /// Another start may succeed.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Api(error) => error.is_retryable(),
            Self::Vsock(error) => error.is_retryable(),
            Self::Mute { .. } | Self::Ended { .. } | Self::NoNumber(_) | Self::Wake(_) => true,
            Self::Folder { .. } | Self::Run { .. } | Self::Code(_) | Self::Facts(_) => false,
        }
    }
}
