//! The testkit's own tests.

mod api;
mod examples;
mod nats;
mod port;
mod process;
