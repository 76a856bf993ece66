//! What the server or the client says, in the words of the seam.

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPSoftError},
};

use crate::BrokerError;

/// An answer of the server that belongs to what was asked; everything else means that the connection is of no use.
pub(super) fn soft(error: &lapin::Error) -> Option<&AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::NOTFOUND))
}

pub(super) fn is_denied(error: &lapin::Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::ACCESSREFUSED))
}

pub(super) fn into_broker(attempted: &'static str, error: lapin::Error) -> BrokerError {
    match soft(&error) {
        Some(AMQPSoftError::ACCESSREFUSED) => BrokerError::Denied { attempted: format!("{attempted} ({error})") },
        Some(AMQPSoftError::NOTFOUND) => BrokerError::NotFound { what: error.to_string() },
        Some(_) => BrokerError::refused(attempted, error),
        None => BrokerError::unavailable(attempted, error),
    }
}
