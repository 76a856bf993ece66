//! The gateway's core on a queue in memory and a store in memory, with agents that do what a test says.

#![allow(clippy::unwrap_used)] // in a test an unwrap is an assertion

mod calls;
mod cancels;
mod fake_agent;
mod flaky_store;
mod functions;
mod idempotency;
mod invokes;
mod losses;
mod refusals;
mod retries;
mod secrets;
mod stolen;
mod store_away;
mod taken_over;
mod told;
mod unknown;
mod watching;
mod world;
