//! Who lives in a slot: for workers that are in no cgroup, whose list of processes would tell, and for those that fork.

use std::fs;

use super::plain::{ProcessEntry, processes};

/// The number that a process has in its own PID namespace.
pub(super) fn number_in_namespace(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}

/// How many processes live in the PID namespace of `holder`, beside itself and `main`.
pub(super) fn in_namespace(holder: i32, main: i32) -> usize {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(slot) = namespace(holder) else { return 0 };
    let is_other = |process: &ProcessEntry| !process.zombie && process.pid != holder && process.pid != main;
    processes()
        .into_iter()
        .filter(|process| is_other(process) && namespace(process.pid).as_ref() == Some(&slot))
        .count()
}
