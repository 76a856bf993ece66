//! Version 1: one directory for each controller.

mod cpu;
mod memory;
mod pids;

pub(super) use cpu::Cpu;
pub(super) use memory::Memory;
pub(super) use pids::Pids;

/// A child writes `0` to it. A pid written to `cgroup.procs` instead can stall for 16 ms.
pub(super) const JOIN: &str = "tasks";
