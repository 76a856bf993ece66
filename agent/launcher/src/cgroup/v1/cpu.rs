//! `cpu.cfs_*` of version 1.

use crate::cgroup::directory::{CgroupError, Directory};

const QUOTA: &str = "cpu.cfs_quota_us";
/// Microseconds of quota for a millicore, in the kernel's default period of 100 ms.
const US_PER_MILLICORE: u64 = 100;
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
            let value = if millicores == 0 { "-1".to_owned() } else { quota.to_string() };
            self.directory.write(QUOTA, &value)?;
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
    fn half_a_core_is_half_the_period() {
        let directory = fake("cpu-v1", &[(QUOTA, "")]);
        let mut cpu = Cpu::open(directory.clone());
        cpu.set(500).unwrap();
        assert_eq!(directory.read(QUOTA).unwrap(), "50000");
    }
}
