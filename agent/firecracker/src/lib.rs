//! Drives Firecracker: boots guests, snapshots and restores them, and hands out connections to them.
//!
//! It runs on the launcher's side, since whoever holds `/dev/kvm` is as good as root; why it is as it is:
//! `docs/adr/0011-microvms.md`. [`Driver`] is the whole of it; [`api`] is Firecracker's API, [`Settings`] what a driver is told.
//!
//! **Architecture invariants.** Of what a guest says, nothing is read here but the answer to `CONNECT`. Firecracker is told
//! relative paths only. Nothing here knows what a worker or a function is.

pub mod api;
mod code;
mod driver;
mod error;
mod facts;
mod jail;
mod machine;
mod numbers;
mod owner;
mod settings;
mod snapshots;
pub mod vsock;

pub use code::CodeError;
pub use driver::{Driver, Guest, Wish};
pub use error::DriverError;
pub use facts::{Facts, FactsError};
pub use jail::Size;
pub use settings::{JailCgroups, Jailer, Settings};
