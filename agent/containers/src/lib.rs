//! The container driver: the one process that may speak to Docker.
//!
//! ```text
//!   agent (unprivileged)            driver (root, or Docker's group)            dockerd
//!     ── Start X version N ────────►  pull, create, start ─────────────────────►
//!     ◄── Started, and the stream ──  (accepts once) ◄── connects ── shim, PID 1 of the container
//!     ── End ──────────────────────►  remove ──────────────────────────────────►
//!     ◄── Ended, Failed, Ready, Absent
//! ```
//!
//! Whoever holds Docker's socket is as good as root, so the agent does not: it says which function it wants a container for, and what
//! a container is is written here (`docker.rs`). The stream to the container's shim goes through the driver once, as a descriptor.
//!
//! **Architecture invariants.** A request never carries container configuration. Everything that a driver made is labelled with its
//! owner, and it removes what has its owner's label and nothing else. No function starts in a container with a network before the network's
//! guard is on it, where the driver said that there is one. It never reads what an agent and a container say to each other.

mod config;
mod container;
mod daemon;
mod docker;
mod driver;
mod files;
mod network;
pub mod wire;

pub use config::{DRIVER, DRIVER_ARGUMENT, DriverConfig};
pub use docker::CODE;
pub use driver::run_if_driver;
pub use flux_driver_link::Packets;
