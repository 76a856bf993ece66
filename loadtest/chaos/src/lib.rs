//! A Flux under load, with its processes killed and stopped, its disk filled, its connections broken and its queue's
//! directory wiped, by a seed that repeats the plan; and a checker that decides from the history alone what held.
//!
//! ```text
//!  plan(seed) ──► faults ──► topology (embedded | cluster) ◄── load (clients, by seed)
//!                   │                  │ functions                  │
//!                   └──────────► history (one clock) ◄──────────────┘
//!                                      │
//!                                   check ──► report
//! ```
//!
//! What happened and what is judged are apart: the harness only writes down (see [`history`]), and the
//! [`checker`] is a pure function of that, so that a history can be judged again, or broken on purpose.

pub mod checker;
mod clock;
mod cluster;
mod collector;
mod embedded;
mod engines;
mod faults;
mod function;
pub mod history;
mod leaks;
mod link;
mod load;
pub mod plan;
mod producer;
pub mod report;
mod routes;
pub mod run;
mod strike;
