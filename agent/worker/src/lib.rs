//! What an agent and a warm worker say to each other, and the programs that say it on the worker's side.
//!
//! ```text
//!   agent                                worker: an interpreter, started with a loader of a few lines
//!     ── Program ────────────────────────►  reads the bootstrap and runs it
//!     ── Load ───────────────────────────►  loads the handler's module
//!     ── Reseed ─────────────────────────►  only to one that is, or may become, the clone of another
//!     ── Invoke ─────────────────────────►
//!     ◄──────────────────────────── Hello   which protocol it speaks
//!     ◄─────────────────── Ready | Failed   the handler can be called, or not
//!     ◄────────────────── Result | Error    one of the two for each Invoke, one Invoke at a time
//!
//!   with `fresh`, where a child of the worker reads Invoke and answers, and nothing is sent between its end and Fork
//!     ◄───────────────────────────── Over   how the child ended; without a Result or Error before it: instead of one
//!     ── Fork ───────────────────────────►  the next child may begin
//! ```
//!
//! Program, Load and Invoke are sent without waiting, so that a cold start costs no round trip. [`frame`] is the format, over any stream of
//! bytes: a socketpair here, later a container's Unix socket or a microVM's vsock. [`bootstrap`] holds the programs.
//! What the function prints takes another way: its descriptors 1 and 2 are pipes.
//!
//! **Architecture invariants.** No I/O and no process here. What comes from a worker was written by a function, so every length
//! is checked against its limit before anything is allocated for it.

pub mod bootstrap;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;

pub use frame::{Call, Decoder, Fault, FrameError, FromWorker, Load, Over, ToWorker, Used};
