//! When machines are bought and when they are given back: [`plan`], a pure function of what was seen, what is configured and
//! what was seen before. `flux-autoscaler` runs it for real, and `flux-autoscaler simulate` on recorded and made-up traffic.
//!
//! ```text
//!   queue depths ─┐                 ┌─ minimum, scheduled minimum
//!   and ages      │                 ├─ queue: load + what drains the backlog in time    ──► the largest wish
//!   heartbeats ───┼─► Snapshot ──►  ├─ panic: the same over a short window                  │
//!   machines ─────┘   History ───►  ├─ late: what waits too long whatever those say         │
//!                                   └─ thresholds on CPU and memory                         ▼
//!                     maximum, spend cap, share of each provider ──────────────► Launch · Undrain · Drain · Terminate
//! ```
//!
//! It counts in *slots*: executions at once. What is booting counts as capacity, so that what was bought is not bought again, and
//! planning again right after acting does nothing. Machines that somebody registered by hand are not seen by any rule.
//!
//! **Architecture Invariant:** no I/O, no clock, no randomness. Every action has a reason, with the numbers it came from.

mod capacity;
mod choice;
mod decide;
mod demand;
mod history;
mod policy;
mod reason;
mod schedule;
mod snapshot;

pub use decide::{Act, Action, Decision, plan};
pub use demand::Demand;
pub use history::History;
pub use policy::{NodeType, Policy, ProviderPolicy};
pub use reason::{Reason, Rule};
pub use schedule::{ScheduleError, ScheduledMinimum};
pub use snapshot::{Load, Node, Phase, Snapshot, Wait};
