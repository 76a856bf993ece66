//! The words of Flux, shared by every room: ids, the function and execution model, the message
//! envelope, every subject name, error codes and limits.
//!
//! **Architecture Invariant:** nothing here does I/O. The clock is the one exception, read in
//! [`time`] alone, so that every timestamp on the wire has one form.

pub mod access;
pub mod agent;
pub mod autoscaler;
pub mod error_code;
pub mod event;
pub mod execution;
pub mod function;
#[doc(hidden)]
pub mod fuzzing;
pub mod id;
pub mod identity;
pub mod invocation;
pub mod limits;
pub mod output;
pub mod secret;
pub mod sse;
pub mod status;
pub mod subject;
pub mod suggest;
pub mod time;
pub mod trace;

pub use access::{FunctionGlob, Scope, Scopes};
pub use error_code::ErrorCode;
pub use execution::{ErrorKind, ExecutionError, ExecutionRecord, Outcome, OutcomeStatus, Phase, Usage};
pub use function::{FunctionSpec, FunctionVersion};
pub use id::{AgentId, Digest, ExecutionId, FunctionName, GatewayId, KeyId, PoolName, SecretName};
pub use invocation::{Invocation, Lane, Payload};
pub use output::{Chunk, OutputLog, Stream};
pub use status::StatusMessage;
pub use time::Timestamp;
