//! What can go wrong between the autoscaler and a provider: a closed list, by what the caller can do about it.

use std::time::Duration;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Each variant says what was attempted; the provider's own error is the source's text, not its type.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The account may not have (more of) it.
    #[error("the quota does not allow to {attempted}")]
    Quota {
        attempted: String,
        #[source]
        source: Source,
    },
    /// The provider has none of it left, there and now.
    #[error("there is no capacity to {attempted}")]
    Capacity {
        attempted: String,
        #[source]
        source: Source,
    },
    /// There are no credentials, they ran out, or they do not allow it.
    #[error("the credentials do not allow to {attempted}")]
    Credentials {
        attempted: String,
        #[source]
        source: Source,
    },
    /// The request can never be granted as it is.
    #[error("`{field}` is not valid, trying to {attempted}")]
    Invalid {
        /// The setting's name, as the autoscaler's configuration or [`crate::LaunchRequest`] has it.
        field: &'static str,
        attempted: String,
        #[source]
        source: Source,
    },
    #[error("{what} is not there")]
    NotFound { what: String },
    /// Too many requests.
    #[error("the provider asks for fewer requests, trying to {attempted}")]
    Throttled {
        attempted: String,
        /// Where the provider says how long to wait.
        retry_after: Option<Duration>,
        #[source]
        source: Source,
    },
    /// No answer, or one that says that the provider is at fault.
    #[error("the provider is out of reach, trying to {attempted}")]
    Unavailable {
        attempted: String,
        #[source]
        source: Source,
    },
}

/// The variants of [`ProviderError`], for tables, metrics and records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    Quota,
    Capacity,
    Credentials,
    Invalid,
    NotFound,
    Throttled,
    Unavailable,
}

/// What can help after a launch that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// The next type or zone may have room; this one again only after a while.
    NextTypeOrZone,
    /// The same request, with the same token, a little later.
    Again,
    /// Nothing, until somebody changes a setting or a permission.
    Change,
}

impl ProviderError {
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Quota { .. } => ErrorKind::Quota,
            Self::Capacity { .. } => ErrorKind::Capacity,
            Self::Credentials { .. } => ErrorKind::Credentials,
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Throttled { .. } => ErrorKind::Throttled,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
        }
    }

    pub const fn advice(&self) -> Advice {
        self.kind().advice()
    }

    /// Whether the same call may succeed a little later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self.advice(), Advice::Again)
    }

    pub fn quota(attempted: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Quota { attempted: attempted.into(), source: source.into() }
    }

    pub fn capacity(attempted: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Capacity { attempted: attempted.into(), source: source.into() }
    }

    pub fn credentials(attempted: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Credentials { attempted: attempted.into(), source: source.into() }
    }

    pub fn invalid(field: &'static str, attempted: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Invalid { field, attempted: attempted.into(), source: source.into() }
    }

    pub fn throttled(attempted: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Throttled { attempted: attempted.into(), retry_after: None, source: source.into() }
    }

    pub fn unavailable(attempted: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Unavailable { attempted: attempted.into(), source: source.into() }
    }
}

impl ErrorKind {
    pub const ALL: [Self; 7] = [
        Self::Quota,
        Self::Capacity,
        Self::Credentials,
        Self::Invalid,
        Self::NotFound,
        Self::Throttled,
        Self::Unavailable,
    ];

    pub const fn advice(self) -> Advice {
        match self {
            // A quota is often one of a family of types, or of a region.
            Self::Quota | Self::Capacity => Advice::NextTypeOrZone,
            Self::Throttled | Self::Unavailable => Advice::Again,
            Self::Credentials | Self::Invalid | Self::NotFound => Advice::Change,
        }
    }

    /// Whether nothing was bought by a launch that failed so.
    pub const fn bought_nothing(self) -> bool {
        !matches!(self, Self::Throttled | Self::Unavailable)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Capacity => "capacity",
            Self::Credentials => "credentials",
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
        }
    }
}
