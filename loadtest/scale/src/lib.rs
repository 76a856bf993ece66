//! Flux with many functions, many agents and much queued: what it costs, and what grows.
//!
//! ```text
//!   flux-scale run ──┬─► nats-server
//!     (load, meter)  ├─► flux-gateway
//!                    ├─► flux-agent ─► launcher          one real agent, which starts processes
//!                    └─► flux-scale agents               all others: the agent's own code, with an executor
//!                                                        that starts nothing
//! ```
//!
//! Every process is a process of its own, so that what the load costs is told apart from what the product costs. A
//! simulated agent is `flux-agent` in all but the launcher: it watches the tables, plans, pulls, keeps its ledger,
//! publishes statuses and beats. Hundreds of them share one process, which is the unit that is measured.
//!
//! [`mod@scale_out`] is about something else: nodes that come and go with the load.
//!
//! [`Size`] says how much of everything. `make scale` runs [`Size::full`] and the small case beside it; the tests run a
//! tenth.

#![allow(clippy::missing_panics_doc, reason = "as the testkit: what cannot do its work says why and ends the run")]

mod chart;
mod cluster;
mod cold;
mod cost;
mod load;
mod meter;
mod queued;
mod registry;
mod report;
mod run;
pub mod scale_out;
pub mod simulated;
mod size;

pub use cost::{Called, Cost, SLOW, Way};
pub use queued::Drained;
pub use run::{CostCase, Figures, LargeCase, SmallCase, costs, large, small};
pub use size::Size;

pub use report::{tell, write as write_report};
