//! `memory.*` of version 1.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::cgroup::directory::{self, CgroupError, Directory};

const LIMIT: &str = "memory.limit_in_bytes";
/// Memory and swap together; absent where the kernel does not account for swap.
const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
const SWAPPINESS: &str = "memory.swappiness";

#[derive(Debug)]
pub(in crate::cgroup) struct Memory {
    directory: Directory,
    peak: File,
    events: File,
    with_swap: bool,
    limit: u64,
    oom_kills: u64,
}

impl Memory {
    pub(in crate::cgroup) fn open(directory: Directory) -> Result<Self, CgroupError> {
        let peak = directory.open_for_both("memory.max_usage_in_bytes")?;
        let events = directory.open_for_reading("memory.oom_control")?;
        let oom_kills = directory::field_in(&events, "oom_kill").unwrap_or(0);
        let with_swap = directory.has(WITH_SWAP);
        if !with_swap && directory.has(SWAPPINESS) {
            // Swap cannot be limited by amount; so nothing of it is swapped while there is another way.
            directory.write(SWAPPINESS, "0")?;
        }
        Ok(Memory { with_swap, directory, peak, events, limit: 0, oom_kills })
    }
}

impl crate::cgroup::Memory for Memory {
    /// The limit with swap is the same number, so that a function is killed at it rather than swapped; it may never be
    /// the smaller of the two, which decides the order of the writes.
    fn set(&mut self, bytes: u64) -> Result<(), CgroupError> {
        if bytes == self.limit {
            return Ok(());
        }
        let value = if bytes == 0 { "-1".to_owned() } else { bytes.to_string() };
        let raised = bytes == 0 || (self.limit != 0 && bytes > self.limit);
        let order = if raised { [WITH_SWAP, LIMIT] } else { [LIMIT, WITH_SWAP] };
        for file in order {
            if file == LIMIT || self.with_swap {
                self.directory.write(file, &value)?;
            }
        }
        self.limit = bytes;
        Ok(())
    }

    fn take_oom_kill(&mut self) -> bool {
        let kills = directory::field_in(&self.events, "oom_kill").unwrap_or(self.oom_kills);
        let more = kills > self.oom_kills;
        self.oom_kills = kills;
        more
    }

    fn peak(&self) -> Option<u64> {
        directory::number_in(&self.peak)
    }

    fn reset_peak(&mut self) {
        // What a failure would cost is one too high a figure in the next report.
        let _ = self.peak.write_at(b"0", 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Memory as _;

    fn fake(name: &str) -> Directory {
        directory::fake(
            name,
            &[
                (LIMIT, ""),
                (WITH_SWAP, ""),
                ("memory.max_usage_in_bytes", "4096\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ],
        )
    }

    #[test]
    fn both_limits_are_written_and_unchanged_ones_are_not() {
        let directory = fake("memory-v1-limit");
        let mut memory = Memory::open(directory.clone()).unwrap();
        memory.set(1 << 20).unwrap();
        assert_eq!(directory.read(LIMIT).unwrap(), "1048576");
        assert_eq!(directory.read(WITH_SWAP).unwrap(), "1048576");
        std::fs::remove_file(directory.path().join(LIMIT)).unwrap();
        memory.set(1 << 20).unwrap();
        assert!(memory.set(2 << 20).is_err());
    }

    #[test]
    fn where_swap_is_not_counted_nothing_is_swapped() {
        let directory = fake("memory-v1-swappiness");
        std::fs::write(directory.path().join(SWAPPINESS), "60").unwrap();
        Memory::open(directory.clone()).unwrap();
        assert_eq!(directory.read(SWAPPINESS).unwrap(), "60");
        std::fs::remove_file(directory.path().join(WITH_SWAP)).unwrap();
        Memory::open(directory.clone()).unwrap();
        assert!(directory.read(SWAPPINESS).unwrap().starts_with('0'));
    }

    #[test]
    fn only_kills_since_the_last_look_count() {
        let directory = fake("memory-v1-oom");
        let mut memory = Memory::open(directory.clone()).unwrap();
        assert!(!memory.take_oom_kill());
        std::fs::write(directory.path().join("memory.oom_control"), "under_oom 0\noom_kill 3\n").unwrap();
        assert!(memory.take_oom_kill());
        assert!(!memory.take_oom_kill());
        assert_eq!(memory.peak(), Some(4096));
    }
}
