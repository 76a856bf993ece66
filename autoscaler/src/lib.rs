//! Machines when the queue needs them, none when it does not: observe → plan → act.
//!
//! ```text
//!   heartbeats, depths ──► signals ─┐                       ┌─► providers: launch, list, terminate
//!   Provider::list ─────────────────┼─► keeper: flux_plan ──┼─► set-ups: a machine becomes an agent
//!   the fleet, as it was written ───┘     intents, written ─┴─► agents: drain, shut out
//! ```
//!
//! What is meant to be done is written before it is done ([`fleet`]), by whom has the lease ([`book`]); everything that is done
//! repeats safely. So a crash between any two steps costs a repetition, and neither a machine twice nor one that nobody knows.
//!
//! **Architecture Invariant:** it opens no store. No provider is called for what is not written in the fleet. The decision
//! itself is `flux_plan`'s alone.

pub mod act;
pub mod book;
pub mod configured;
pub mod fleet;
pub mod join;
pub mod keeper;
pub mod local;
pub mod machines;
pub mod over_ssh;
mod reach;
pub mod run;
pub mod set_up;
mod shown;
pub mod signals;
mod waits;
