//! The version 2 cgroup of a process that somebody else started: for what hangs on cgroups, and not for limits.
//!
//! Where limits are of version 2, a container has one to itself, with its id in the name. Where they are of version 1, a container is
//! where its daemon is: it is moved to one that is made for it, `<own>/<name>/<id>`. Nothing of its limits is there, and it cannot leave.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Component;

use super::directory::{CgroupError, Directory};
use super::{hierarchy, remove_tree, v2};

/// Of no process.
const TRIAL: &str = "trial";

/// Of one thread: its directory is there for as long as something is in it.
#[derive(Debug)]
pub(crate) struct Adopter {
    base: Directory,
}

/// Held open.
#[derive(Debug)]
pub(crate) struct Adopted {
    opened: File,
    /// Made for it, and who is to enter it.
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    base: Directory,
    directory: Directory,
    pid: Option<u32>,
}

impl Adopter {
    /// `name` is nobody else's: whatever is in such a directory is ended, and removed.
    pub(crate) fn prepare(name: &str) -> Result<Self, CgroupError> {
        let places = hierarchy::of_this_process().unwrap_or_default();
        let place = places.into_iter().find(|place| place.version == 2).ok_or(CgroupError::NoUnified)?;
        let base = Directory::new(v2::own_without_leaf(&place.path)).child(name);
        remove_tree(&base);
        Ok(Self { base })
    }

    /// One that nothing enters.
    pub(crate) fn trial(&self) -> Result<Adopted, CgroupError> {
        self.make(TRIAL, None)
    }

    /// That of `pid`, if it has one to itself, or one for it to enter.
    pub(crate) fn of(&self, pid: u32, id: &str) -> Result<Adopted, CgroupError> {
        let places = hierarchy::of(pid).map_err(|source| CgroupError::Read { pid, source })?;
        let place = places.iter().find(|place| place.version == 2).ok_or(CgroupError::NoUnified)?;
        let is_its_own = |part: Component<'_>| part.as_os_str().to_str().is_some_and(|name| name.contains(id));
        if place.path.components().any(is_its_own) {
            return Ok(Adopted { opened: Directory::new(place.path.clone()).open_itself()?, made: None });
        }
        // Moved out of a directory that limits it, it would be without a limit.
        if !places.iter().any(|place| place.version == 1 && place.controllers.iter().any(|name| name == "memory")) {
            return Err(CgroupError::Shared { path: place.path.clone() });
        }
        self.make(id, Some(pid))
    }

    fn make(&self, name: &str, pid: Option<u32>) -> Result<Adopted, CgroupError> {
        self.base.make()?;
        let made = Made { base: self.base.clone(), directory: self.base.child(name), pid };
        match made.directory.make().and_then(|()| made.directory.open_itself()) {
            Ok(opened) => Ok(Adopted { opened, made: Some(made) }),
            Err(error) => {
                made.remove();
                Err(error)
            }
        }
    }

    pub(crate) fn sweep(&self) {
        for name in self.base.children() {
            self.base.child(&name).remove();
        }
        self.base.remove();
    }
}

impl Made {
    /// `true` when it is gone; the last one takes what they are in along.
    fn remove(&self) -> bool {
        let gone = self.directory.remove();
        self.base.remove();
        gone
    }
}

impl Adopted {
    /// Moves there whom it was made for.
    pub(crate) fn enter(&self) -> Result<(), CgroupError> {
        match &self.made {
            Some(Made { directory, pid: Some(pid), .. }) => directory.write(v2::JOIN, &pid.to_string()),
            _ => Ok(()),
        }
    }

    /// `true` when nothing of it is left that was made.
    pub(crate) fn remove(&self) -> bool {
        self.made.as_ref().is_none_or(Made::remove)
    }
}

impl AsFd for Adopted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.opened.as_fd()
    }
}
