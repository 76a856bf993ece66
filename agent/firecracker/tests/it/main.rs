//! The driver against Firecracker's API: the stand-in's, and the real one's where there is one.

// Helper functions of tests are tests to nobody but clippy.
#![allow(clippy::unwrap_used)]

mod api;
mod driver;
mod faults;
mod harness;
mod real;
