//! `memory.*` of version 2.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::cgroup::directory::{self, CgroupError, Directory};

#[derive(Debug)]
pub(in crate::cgroup) struct Memory {
    directory: Directory,
    /// Since kernel 5.19; resettable (through the same open file) since 6.12.
    peak: Option<File>,
    resettable: bool,
    events: File,
    limit: u64,
    spares_others: bool,
    oom_kills: u64,
}

const GROUP: &str = "memory.oom.group";

impl Memory {
    pub(in crate::cgroup) fn open(directory: Directory) -> Result<Self, CgroupError> {
        // The whole execution ends together. (A vforking child is never chosen as the victim, so this cannot reach the
        // launcher, whose memory such a child shares until it executes its program.)
        directory.write(GROUP, "1")?;
        if directory.has("memory.swap.max") {
            directory.write("memory.swap.max", "0")?;
        }
        let (peak, resettable) = match directory.open_for_both("memory.peak") {
            Ok(file) => {
                let resettable = file.write_at(b"0", 0).is_ok();
                (Some(file), resettable)
            }
            Err(_) => (directory.open_for_reading("memory.peak").ok(), false),
        };
        let events = directory.open_for_reading("memory.events")?;
        let oom_kills = directory::field_in(&events, "oom_kill").unwrap_or(0);
        Ok(Memory { directory, peak, resettable, events, limit: 0, spares_others: false, oom_kills })
    }
}

impl crate::cgroup::Memory for Memory {
    fn set(&mut self, bytes: u64) -> Result<(), CgroupError> {
        if bytes != self.limit {
            let value = if bytes == 0 { "max".to_owned() } else { bytes.to_string() };
            self.directory.write("memory.max", &value)?;
            self.limit = bytes;
        }
        Ok(())
    }

    fn spare_others(&mut self, spares: bool) -> Result<(), CgroupError> {
        if spares != self.spares_others {
            self.directory.write(GROUP, if spares { "0" } else { "1" })?;
            self.spares_others = spares;
        }
        Ok(())
    }

    fn take_oom_kill(&mut self) -> bool {
        let kills = directory::field_in(&self.events, "oom_kill").unwrap_or(self.oom_kills);
        let more = kills > self.oom_kills;
        self.oom_kills = kills;
        more
    }

    /// A peak that cannot be reset would be that of all executions of the slot so far.
    fn peak(&self) -> Option<u64> {
        self.peak.as_ref().filter(|_| self.resettable).and_then(directory::number_in)
    }

    fn reset_peak(&mut self) {
        if let Some(peak) = self.peak.as_ref().filter(|_| self.resettable) {
            let _ = peak.write_at(b"0", 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Memory as _;
    use crate::cgroup::directory::fake;

    #[test]
    fn the_limit_and_the_kills_are_in_their_files() {
        let files = [("memory.oom.group", ""), ("memory.max", ""), ("memory.events", "oom 0\noom_kill 0\n")];
        let directory = fake("memory-v2", &files);
        let mut memory = Memory::open(directory.clone()).unwrap();
        memory.set(4096).unwrap();
        assert_eq!(directory.read("memory.max").unwrap(), "4096");
        std::fs::write(directory.path().join("memory.events"), "oom 1\noom_kill 1\noom_group_kill 1\n").unwrap();
        assert!(memory.take_oom_kill());
        assert_eq!(memory.peak(), None);
        assert_eq!(directory.read(GROUP).unwrap(), "1");
        memory.spare_others(true).unwrap();
        assert_eq!(directory.read(GROUP).unwrap(), "0");
        memory.spare_others(false).unwrap();
        assert_eq!(directory.read(GROUP).unwrap(), "1");
    }
}
