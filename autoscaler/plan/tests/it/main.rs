//! The plan from outside: some decisions as they are said, and what holds for any.

mod decisions;
mod late;
mod properties;
mod world;
