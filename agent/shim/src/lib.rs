//! What runs as PID 1 where the agent's own descriptors do not reach: in a container, in a guest.
//!
//! ```text
//!   agent                         one stream                        shim (PID 1)          function
//!     ── Start, Stdin, Channel, Signal ──────────────────────────────►  starts, feeds ────►  0, 3
//!     ◄── Hello, Started | Refused, Output, Channel, Exited ──────────  reads ◄────────────  1, 2, 3
//! ```
//!
//! The process sees what it would see from the launcher: stdin, two pipes, and a worker its channel as descriptor 3. The shim owns
//! the other ends, so whatever is printed is output and cannot corrupt a frame, and knows nothing of what is said on the channel.
//! **What was printed before something was said on the channel is sent before it**: an answer never overtakes its output.
//!
//! [`frame`] is the format, [`Shim`] serves it over any stream, [`Endpoint`] is where the stream comes from: a Unix socket that it
//! connects to or listens at, or a vsock port. The program `flux-shim` is these two; `flux-shim-binary` holds it, static.
//! As the first program of a microVM it also sets the guest up: [`guest`].
//!
//! **Architecture invariants.** One thread, few dependencies, `unsafe` for the two requests in `wake` alone. Nothing of an agent is believed beyond a frame's limit. It
//! signals everything (`kill(-1)`) only as PID 1 of a namespace or a machine of its own.

mod beside;
mod endpoint;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod guest;
mod process;
mod serve;
mod usage;
mod wake;

pub use endpoint::{Endpoint, Streams};
pub use frame::{Decoder, Exit, FrameError, FromShim, Start, Status, Stream, ToShim};
pub use serve::{Over, Shim};

/// Where `usage` and `beside` look: what differs between a container and a machine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// In a cgroup of its own, whose counters say what became of its memory.
    #[default]
    Container,
    /// The whole machine is the function's: its counters are the kernel's.
    Guest,
}
