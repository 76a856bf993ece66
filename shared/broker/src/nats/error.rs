//! What JetStream's refusals mean at the seam.

use serde::Deserialize;

use crate::BrokerError;

/// An error as the JetStream API says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{description} (code {code}, error {err_code})")]
pub(super) struct ApiError {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) err_code: u32,
    #[serde(default)]
    pub(super) description: String,
}

// Numbers from nats-server's `errors.json`.
const ACCOUNT_RESOURCES: u32 = 10002;
const INSUFFICIENT_RESOURCES: u32 = 10023;
const MEMORY_RESOURCES: u32 = 10028;
const STORAGE_RESOURCES: u32 = 10047;
const STORE_FAILED: u32 = 10077;
const MESSAGE_TOO_LARGE: u32 = 10054;
const CONSUMER_CREATE: u32 = 10012;
const CONSUMER_NOT_FOUND: u32 = 10014;
const STREAM_NOT_FOUND: u32 = 10059;
const MESSAGE_NOT_FOUND: u32 = 10037;
const SEQUENCE_NOT_FOUND: u32 = 10043;
const DELETE_FAILED: u32 = 10057;
const WRONG_LAST_SEQUENCE: u32 = 10071;
const WRONG_LAST_SEQUENCE_CONSTANT: u32 = 10164;
const DUPLICATE_IN_PROCESS: u32 = 10158;
const MAX_CONSUMERS: u32 = 10026;
const NAME_IN_USE: u32 = 10058;
const NOT_ENABLED_FOR_ACCOUNT: u32 = 10039;

impl ApiError {
    /// A stream of that name exists with another configuration.
    pub(super) fn is_name_in_use(&self) -> bool {
        self.err_code == NAME_IN_USE
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self.err_code, CONSUMER_NOT_FOUND | STREAM_NOT_FOUND | MESSAGE_NOT_FOUND | SEQUENCE_NOT_FOUND)
    }

    pub(super) fn is_consumer_not_found(&self) -> bool {
        self.err_code == CONSUMER_NOT_FOUND
    }

    /// The consumer is there, with a setting that cannot be changed any more.
    pub(super) fn is_consumer_made_otherwise(&self) -> bool {
        self.err_code == CONSUMER_CREATE && self.description.contains("can not be updated")
    }

    /// The message that was to be deleted is not there.
    pub(super) fn is_message_gone(&self) -> bool {
        matches!(self.err_code, MESSAGE_NOT_FOUND | SEQUENCE_NOT_FOUND | DELETE_FAILED)
    }

    /// The same request may succeed in a moment: a leader is being chosen, or the first try of it is under way.
    pub(super) fn is_passing(&self) -> bool {
        self.err_code == DUPLICATE_IN_PROCESS || (self.code == 503 && !self.is_full() && !self.is_not_ours())
    }

    /// The account that this identity has may not ask that of the account with the streams.
    pub(super) fn is_not_ours(&self) -> bool {
        self.err_code == NOT_ENABLED_FOR_ACCOUNT
    }

    fn is_full(&self) -> bool {
        match self.err_code {
            ACCOUNT_RESOURCES | INSUFFICIENT_RESOURCES | MEMORY_RESOURCES | STORAGE_RESOURCES | MAX_CONSUMERS => true,
            // One number for all that the store refuses; the text tells them apart.
            STORE_FAILED => self.description.contains("maximum") || self.description.contains("insufficient"),
            _ => false,
        }
    }

    /// `what` is a stream, queue or key; `size` the message's, where one was sent.
    pub(super) fn into_broker(self, attempted: &'static str, what: &str, size: Option<usize>) -> BrokerError {
        match self.err_code {
            _ if self.is_not_ours() => BrokerError::Denied { attempted: attempted.to_owned() },
            _ if self.is_full() => BrokerError::Full { what: format!("{what} ({})", self.description) },
            MESSAGE_TOO_LARGE | STORE_FAILED if self.err_code == MESSAGE_TOO_LARGE || self.is_too_large() => {
                BrokerError::TooLarge { size: size.unwrap_or(0), limit: flux_protocol::limits::MESSAGE }
            }
            WRONG_LAST_SEQUENCE | WRONG_LAST_SEQUENCE_CONSTANT => BrokerError::Conflict { key: what.to_owned() },
            _ if self.is_not_found() => BrokerError::NotFound { what: what.to_owned() },
            _ if self.is_passing() => BrokerError::unavailable(attempted, self),
            _ => BrokerError::refused(attempted, self),
        }
    }

    fn is_too_large(&self) -> bool {
        self.description.contains("too large") || self.description.contains("size exceeds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: u16, err_code: u32, description: &str) -> BrokerError {
        ApiError { code, err_code, description: description.to_owned() }.into_broker("publish", "q", Some(7))
    }

    #[test]
    fn each_refusal_has_its_meaning() {
        let table: &[(u16, u32, &str, &str)] = &[
            (503, 10077, "maximum bytes exceeded", "full"),
            (503, 10077, "maximum messages per subject exceeded", "full"),
            (503, 10077, "message size exceeds maximum allowed", "full-or-large"),
            (500, 10047, "insufficient storage resources available", "full"),
            (500, 10028, "insufficient memory resources available", "full"),
            (400, 10026, "maximum consumers limit reached", "full"),
            (400, 10054, "message size exceeds maximum allowed", "large"),
            (404, 10014, "consumer not found", "gone"),
            (404, 10059, "stream not found", "gone"),
            (404, 10037, "no message found", "gone"),
            (400, 10071, "wrong last sequence: 3", "conflict"),
            (400, 10164, "wrong last sequence", "conflict"),
            (503, 10008, "JetStream system temporarily unavailable", "retry"),
            (503, 10039, "JetStream not enabled for account", "denied"),
            (409, 10158, "duplicate message id is in process", "retry"),
            (400, 10058, "stream name already in use with a different configuration", "refused"),
            (500, 99999, "what nobody has seen yet", "refused"),
        ];
        for (code, err_code, text, meaning) in table {
            let error = said(*code, *err_code, text);
            let fits = match *meaning {
                "full" => matches!(error, BrokerError::Full { .. }),
                "large" => matches!(error, BrokerError::TooLarge { size: 7, .. }),
                "full-or-large" => matches!(error, BrokerError::Full { .. } | BrokerError::TooLarge { .. }),
                "gone" => matches!(error, BrokerError::NotFound { .. }),
                "conflict" => matches!(error, BrokerError::Conflict { .. }),
                "denied" => matches!(error, BrokerError::Denied { .. }),
                "retry" => matches!(error, BrokerError::Unavailable { .. }) && error.is_retryable(),
                _ => matches!(error, BrokerError::Refused { .. }) && !error.is_retryable(),
            };
            assert!(fits, "{err_code} {text}: {error:?}");
        }
    }

    #[test]
    fn the_source_is_not_said_twice() {
        let error = said(500, 99999, "what nobody has seen yet");
        assert!(!error.to_string().contains("nobody"), "{error}");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("what nobody has seen yet (code 500, error 99999)"));
    }
}
