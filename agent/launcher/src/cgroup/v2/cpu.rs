//! `cpu.max` of version 2.

use crate::cgroup::directory::{CgroupError, Directory};

const MAX: &str = "cpu.max";
const PERIOD_US: u64 = 100_000;
const US_PER_MILLICORE: u64 = PERIOD_US / 1000;
/// The kernel takes no quota below this.
const LEAST_QUOTA_US: u64 = 1000;

#[derive(Debug)]
pub(in crate::cgroup) struct Cpu {
    directory: Directory,
    millicores: u32,
}

impl Cpu {
    pub(in crate::cgroup) fn open(directory: Directory) -> Self {
        Cpu { directory, millicores: 0 }
    }
}

impl crate::cgroup::Limit for Cpu {
    fn set(&mut self, millicores: u32) -> Result<(), CgroupError> {
        if millicores != self.millicores {
            let quota = (u64::from(millicores) * US_PER_MILLICORE).max(LEAST_QUOTA_US);
            let value = if millicores == 0 { format!("max {PERIOD_US}") } else { format!("{quota} {PERIOD_US}") };
            self.directory.write(MAX, &value)?;
            self.millicores = millicores;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Limit as _, directory::fake};

    #[test]
    fn two_and_a_half_cores_are_written_with_their_period() {
        let directory = fake("cpu-v2", &[(MAX, "")]);
        let mut cpu = Cpu::open(directory.clone());
        cpu.set(2500).unwrap();
        assert_eq!(directory.read(MAX).unwrap(), "250000 100000");
    }
}
