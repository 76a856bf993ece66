//! The version 2 cgroup that all functions of a launcher are in, however their limits are kept: what the network's guard
//! hangs on.
//!
//! Where controllers are of version 2 it is the directory that holds the slots' own. Where they are of version 1 it holds
//! no limits and no slots: the launcher enters it itself, and whatever it starts is born there, so that no start writes
//! to one file more. (A move into a version 2 cgroup takes a lock that can last for 16 ms.)

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::directory::{CgroupError, Directory};
use super::{Cgroups, PREFIX, REMOVE_DEADLINE, hierarchy, remove_leftovers, remove_with_tasks, v2};

/// Open for as long as the launcher runs.
#[derive(Debug)]
pub(crate) struct SharedCgroup {
    opened: File,
    /// Where the launcher was before it entered, and what it made to be in.
    entered: Option<(Directory, Directory)>,
}

impl SharedCgroup {
    /// Finds or makes it. Call it before there are threads and slots: what exists already does not move along.
    pub(crate) fn enter(cgroups: Option<&Cgroups>) -> Result<Self, CgroupError> {
        if let Some(base) = cgroups.filter(|c| c.version == 2).and_then(|c| c.bases().next()) {
            return Ok(SharedCgroup { opened: base.open_itself()?, entered: None });
        }
        let places = hierarchy::of_this_process().unwrap_or_default();
        let Some(place) = places.into_iter().find(|p| p.version == 2) else {
            return Err(CgroupError::NoUnified);
        };
        let was_in = Directory::new(place.path.clone());
        let own = Directory::new(v2::own_without_leaf(&place.path));
        remove_leftovers(&own);
        let made = own.child(&format!("{PREFIX}{}", std::process::id()));
        made.make()?;
        let entered = made.open_itself().and_then(|opened| made.write(v2::JOIN, "0").map(|()| opened));
        match entered {
            Ok(opened) => Ok(SharedCgroup { opened, entered: Some((was_in, made)) }),
            Err(error) => {
                made.remove();
                Err(error)
            }
        }
    }

    /// Goes back to where the launcher was; when nothing of a function runs any more.
    pub(crate) fn leave(&self) {
        if let Some((was_in, made)) = &self.entered
            && was_in.write(v2::JOIN, "0").is_ok()
        {
            remove_with_tasks(made, Instant::now() + REMOVE_DEADLINE);
        }
    }
}

impl AsFd for SharedCgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.opened.as_fd()
    }
}
