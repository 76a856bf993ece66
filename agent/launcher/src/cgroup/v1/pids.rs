//! `pids.max`, the same in both versions.

use crate::cgroup::directory::{CgroupError, Directory};

const MAX: &str = "pids.max";

#[derive(Debug)]
pub(in crate::cgroup) struct Pids {
    directory: Directory,
    max: u32,
}

impl Pids {
    pub(in crate::cgroup) fn open(directory: Directory) -> Self {
        Pids { directory, max: 0 }
    }
}

impl crate::cgroup::Limit for Pids {
    fn set(&mut self, max: u32) -> Result<(), CgroupError> {
        if max != self.max {
            let value = if max == 0 { "max".to_owned() } else { max.to_string() };
            self.directory.write(MAX, &value)?;
            self.max = max;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Limit as _, directory::fake};

    #[test]
    fn none_is_the_word_max() {
        let directory = fake("pids", &[(MAX, "")]);
        let mut pids = Pids::open(directory.clone());
        pids.set(32).unwrap();
        assert_eq!(directory.read(MAX).unwrap(), "32");
        pids.set(0).unwrap();
        assert!(directory.read(MAX).unwrap().starts_with("max"));
    }
}
