//! [`flux_plan::plan`] on traffic that was generated or recorded, with boot times and prices, beside an oracle that knows the
//! future, fixed fleets, and the rules of others. The same seed is the same run.
//!
//! Executions are simulated one by one: they wait in one queue, in order, for a slot of any node. A policy sees
//! what the autoscaler sees, as often as it polls, and nothing else; the oracle alone is told the traffic.

mod chart;
mod knative;
mod oracle;
mod policies;
mod predecessor;
mod report;
mod setting;
mod traffic;
mod world;

pub use chart::chart;
pub use policies::{Scaler, compared};
pub use report::{Outcome, compare, markdown};
pub use setting::Setting;
pub use traffic::{Shape, Traffic, TrafficError};
pub use world::{Moment, Run, run};
