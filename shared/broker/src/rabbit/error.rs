//! What the server or the client says, in the words of the seam.

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPSoftError},
};

use crate::BrokerError;

/// A queue that is there and does not answer, as while the node that it is on starts, is said not to be found.
const AWAY: &str = "down or inaccessible";

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
    matches!(soft(error), Some(AMQPSoftError::NOTFOUND)) && !error.to_string().contains(AWAY)
}

pub(super) fn is_denied(error: &lapin::Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::ACCESSREFUSED))
}

pub(super) fn into_broker(attempted: &'static str, error: lapin::Error) -> BrokerError {
    match soft(&error) {
        Some(AMQPSoftError::NOTFOUND) if error.to_string().contains(AWAY) => BrokerError::unavailable(attempted, error),
        Some(AMQPSoftError::ACCESSREFUSED) => BrokerError::Denied { attempted: format!("{attempted} ({error})") },
        Some(AMQPSoftError::NOTFOUND) => BrokerError::NotFound { what: error.to_string() },
        Some(_) => BrokerError::refused(attempted, error),
        None => BrokerError::unavailable(attempted, error),
    }
}
