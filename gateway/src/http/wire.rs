//! The bodies of the API, as they are written to the wire and described in the OpenAPI document.

pub(super) mod agent;
pub(super) mod autoscaler;
pub(super) mod dead_letter;
pub(super) mod error;
pub(super) mod execution;
pub(super) mod function;
pub(super) mod key;
pub(super) mod machine;
pub(super) mod secret;

use flux_protocol::Timestamp;

/// RFC 3339.
fn time(at: Timestamp) -> String {
    at.to_string()
}
