//! The image in a real guest: its agent, functions of two runtimes, and what a snapshot's clone goes through.

#![allow(clippy::unwrap_used)]

mod serves;
