//! HTTP in, queue out; the records of every execution.
//!
//! [`core`] is what a gateway does; `http` is how it is asked; both are pieces of the one [`Gateway`].
//!
//! **Architecture Invariant:** a gateway does not know how a function is run, and holds nothing that is not in
//! the store or the queue, except the sync calls that it waits for.

pub mod compose;
pub mod core;
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
mod identities;
mod patience;
pub mod refusal;

pub use core::Gateway;
pub use identities::accounts;
