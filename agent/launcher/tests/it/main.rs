//! The launcher as a process: what it starts, holds in, reports and leaves behind (nothing).

// Helper functions of tests are tests to nobody but clippy.
#![allow(clippy::unwrap_used)]

mod attacks;
mod harness;
mod isolation;
mod lifetime;
mod limits;
mod listening;
mod plain;
mod process;
mod programs;
mod tree;
mod workers;
