//! The HTTP API from outside: over a real listener, by a client that knows nothing of the inside.

mod auth;
mod collect;
mod connections;
mod crowd;
mod dead_letters;
mod drain;
mod error_pages;
mod errors;
mod execute;
mod executions;
#[allow(dead_code)] // the core's tests use the rest of it
#[path = "../core/fake_agent.rs"]
mod fake_agent;
mod flux;
mod function_url;
mod functions;
mod gateway;
mod https;
mod idempotency;
mod keys;
mod openapi;
mod seeds;
mod stream;
#[allow(dead_code, clippy::unwrap_used)]
#[path = "../core/world.rs"]
mod world;
