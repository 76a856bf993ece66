//! The system calls, and the only `unsafe` code of the crate. Each file wraps one family and decides nothing.

pub(crate) mod bpf;
pub(crate) mod descriptor;
pub(crate) mod filter;
pub(crate) mod holder;
pub(crate) mod landlock;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod program;
pub mod socket;
pub(crate) mod vfork;
