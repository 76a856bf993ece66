//! Why a request was not carried out. The HTTP layer turns it into `{"error": {…}}`; the log gets the chain once.

use std::time::Duration;

use flux_protocol::{ErrorCode, function::SpecError};
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    pub code: ErrorCode,
    /// What happened and what to do.
    pub message: String,
    /// Such as `{"field": "timeout"}`.
    pub details: Value,
    /// On 429 and 503: when to try again.
    pub retry_after: Option<Duration>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retry_after = matches!(code.http_status(), 429 | 503).then_some(Duration::from_secs(1));
        Self { code, message: message.into(), details: Value::Null, retry_after, source: None }
    }

    #[must_use]
    pub fn with_field(mut self, field: &str) -> Self {
        self.details = serde_json::json!({ "field": field });
        self
    }

    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl From<SpecError> for Refusal {
    fn from(error: SpecError) -> Self {
        let code = match &error {
            SpecError::Unsupported { .. } => ErrorCode::Unsupported,
            SpecError::Syntax { .. } | SpecError::Field { .. } => ErrorCode::InvalidFunction,
        };
        let refusal = Self::new(code, error.to_string());
        match error.field() {
            Some(field) => refusal.with_field(field),
            None => refusal,
        }
    }
}

impl From<flux_store::StoreError> for Refusal {
    fn from(error: flux_store::StoreError) -> Self {
        let code = if error.is_retryable() { ErrorCode::StoreUnavailable } else { ErrorCode::Internal };
        Self::new(code, "the store cannot be used now; try again").caused_by(error)
    }
}

impl From<flux_broker::BrokerError> for Refusal {
    fn from(error: flux_broker::BrokerError) -> Self {
        use flux_broker::BrokerError as E;
        match &error {
            E::Full { what } => {
                Self::new(ErrorCode::QueueFull, format!("the queue is full ({what}); try again when it has drained"))
                    .caused_by(error)
            }
            E::TooLarge { size, limit } => {
                Self::new(ErrorCode::PayloadTooLarge, format!("the message has {size} bytes; the queue takes {limit}"))
                    .caused_by(error)
            }
            E::Unavailable { .. } | E::Closed => {
                Self::new(ErrorCode::QueueUnavailable, "the queue is out of reach now; try again").caused_by(error)
            }
            _ => Self::new(ErrorCode::Internal, "the queue refused; the log has the reason under this request id")
                .caused_by(error),
        }
    }
}
