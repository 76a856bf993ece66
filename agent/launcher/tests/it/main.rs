//! The launcher as a process: what it starts, holds in, reports and leaves behind (nothing).

mod harness;
mod process;
