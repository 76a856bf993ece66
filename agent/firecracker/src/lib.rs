//! Drives Firecracker: boots guests, snapshots and restores them, and hands out connections to them.
//!
//! It runs on the launcher's side, since whoever holds `/dev/kvm` is as good as root; why it is as it is:
//! `docs/adr/0011-microvms.md`. [`Driver`] does it, [`run_if_driver`] is the process that does it for an agent; [`api`] is Firecracker's API, [`Settings`] what a driver is told.
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
mod process;
mod settings;
mod snapshots;
pub mod vsock;
pub mod wire;

pub use code::CodeError;
pub use driver::{Driver, Guest, Wish};
pub use error::DriverError;
pub use facts::{Facts, FactsError};
pub use jail::Size;
pub use process::{DRIVER, DRIVER_ARGUMENT, DriverConfig, run_if_driver};
pub use settings::{JailCgroups, Jailer, Settings};
