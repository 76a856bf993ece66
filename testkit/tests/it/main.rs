//! The testkit's own tests.

mod api;
mod nats;
mod port;
mod process;
