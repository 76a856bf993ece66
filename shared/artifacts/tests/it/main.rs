//! Archives from outside, the places where they are kept, and the agents' cache.

mod archives;
mod cache;
mod hostile;
mod packing;
mod seeds;
mod stores;
mod zips;
