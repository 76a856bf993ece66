//! Archives from outside, the places where they are kept, and the agents' cache.

mod archives;
mod cache;
mod collect;
mod hostile;
mod packing;
#[cfg(feature = "s3")]
mod s3;
mod seeds;
mod stores;
mod zips;
