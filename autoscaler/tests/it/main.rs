//! The autoscaler from outside: through crashes between any two steps, and a whole Flux that grows and shrinks.

mod ages;
mod cluster;
mod crashes;
#[cfg(feature = "aws")]
mod moto;
mod orphans;
mod set_ups;
mod silence;
mod story;
