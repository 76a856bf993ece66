//! The version 2 cgroup of a process that somebody else started: for what hangs on cgroups, and not for limits.
//!
//! Where limits are of version 2, a container has one to itself, with its id in the name. Where they are of version 1, a container is
//! where its daemon is: it is moved to one that is made for it, `<own>/<name>/<id>`. Nothing of its limits is there, and it cannot leave.
//!
//! A number is a process's until that has ended and was waited for, which others do. So a process is moved only when its cgroup of
//! version 1 has the id in its name while its descriptor has the number; where it lost that meanwhile, whoever came along goes back.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::directory::{CgroupError, Directory};
use super::{hierarchy, remove_tree, v2};
use crate::sys::process;

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
    made: Option<Made>,
}

/// A directory that was made for a process.
#[derive(Debug)]
struct Made {
    base: Directory,
    directory: Directory,
    enters: Option<Enters>,
}

/// Who is to enter it.
#[derive(Debug)]
struct Enters {
    process: Numbered,
    was_in: Directory,
}

/// A process, and the number that it has until it is waited for.
#[derive(Debug)]
struct Numbered {
    pid: u32,
    pidfd: OwnedFd,
}

impl Numbered {
    fn open(pid: u32) -> Result<Self, CgroupError> {
        let number = i32::try_from(pid).map_err(|_| CgroupError::Ended { pid })?;
        let pidfd = process::pidfd(number).map_err(|source| CgroupError::Read { pid, source })?;
        Ok(Self { pid, pidfd })
    }

    /// Whether the number has been this process's all the time, and is the one that `/proc` knows it by.
    fn check(&self) -> Result<(), CgroupError> {
        let pid = self.pid;
        let number = process::number_of(self.pidfd.as_fd()).map_err(|source| CgroupError::Read { pid, source })?;
        if number == Some(pid) { Ok(()) } else { Err(CgroupError::Ended { pid }) }
    }
}

impl Adopter {
    /// `name` is nobody else's: whatever is in such a directory is ended, and removed.
    pub(crate) fn prepare(name: &str) -> Result<Self, CgroupError> {
        let places = hierarchy::of_this_process().unwrap_or_default();
        let place = places.iter().find(|place| place.version == 2).ok_or(CgroupError::NoUnified)?;
        let base = Directory::new(v2::own_without_leaf(place.seen()?)).child(name);
        remove_tree(&base);
        Ok(Self { base })
    }

    /// One that nothing enters.
    pub(crate) fn trial(&self) -> Result<Adopted, CgroupError> {
        self.make(TRIAL, None)
    }

    /// That of `pid`, if it has one to itself, or one for it to enter.
    pub(crate) fn of(&self, pid: u32, id: &str) -> Result<Adopted, CgroupError> {
        let process = Numbered::open(pid)?;
        let places = hierarchy::of(pid).map_err(|source| CgroupError::Read { pid, source })?;
        let place = places.iter().find(|place| place.version == 2).ok_or(CgroupError::NoUnified)?;
        let path = place.seen()?;
        if let Some(own) = named_after(path, id) {
            return Ok(Adopted { opened: Directory::new(own).open_itself()?, made: None });
        }
        // Moved out of a directory that limits it, it would be without a limit.
        let limited = places.iter().find(|place| place.version == 1 && place.has("memory"));
        if limited.is_none_or(|place| named_after(&place.path, id).is_none()) {
            return Err(CgroupError::Shared { path: path.to_owned() });
        }
        process.check()?;
        self.make(id, Some(Enters { process, was_in: Directory::new(path.to_owned()) }))
    }

    fn make(&self, name: &str, enters: Option<Enters>) -> Result<Adopted, CgroupError> {
        self.base.make()?;
        let made = Made { base: self.base.clone(), directory: self.base.child(name), enters };
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

/// Whether the cgroup of `pid` is below what is mounted here, as those that it makes are then.
pub(crate) fn sees(pid: u32) -> Result<(), CgroupError> {
    let places = hierarchy::of(pid).map_err(|source| CgroupError::Read { pid, source })?;
    let place = places.iter().find(|place| place.version == 2).ok_or(CgroupError::NoUnified)?;
    place.seen().map(|_| ())
}

/// The part of the path that ends with a name with `id` in it: of the whole container, also where a process of it is further below.
fn named_after(path: &Path, id: &str) -> Option<PathBuf> {
    let is_it = |path: &&Path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains(id));
    let found = path.ancestors().filter(is_it).last()?;
    (!id.is_empty()).then(|| found.to_owned())
}

impl Made {
    /// `true` when it is gone; the last one takes what they are in along.
    fn remove(&self) -> bool {
        let gone = self.directory.remove();
        self.base.remove();
        gone
    }

    fn enter(&self) -> Result<(), CgroupError> {
        let Some(Enters { process, was_in }) = &self.enters else { return Ok(()) };
        self.directory.write(v2::JOIN, &process.pid.to_string())?;
        process.check().inspect_err(|_| {
            for stranger in self.directory.read(v2::JOIN).unwrap_or_default().lines() {
                let _ = was_in.write(v2::JOIN, stranger);
            }
        })
    }
}

impl Adopted {
    /// Moves there whom it was made for.
    pub(crate) fn enter(&self) -> Result<(), CgroupError> {
        self.made.as_ref().map_or(Ok(()), Made::enter)
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_number_is_its_processes_until_that_was_waited_for() {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let process = Numbered::open(child.id()).unwrap();
        // Ended or not: nobody else has its number.
        process.check().unwrap();
        child.wait().unwrap();
        assert!(matches!(process.check(), Err(CgroupError::Ended { .. })));
        let other = Numbered { pid: std::process::id(), pidfd: process.pidfd };
        assert!(other.check().is_err(), "a number that is another's");
    }

    #[test]
    fn a_container_has_the_cgroup_that_is_named_after_it() {
        let found = |path: &str, id: &str| named_after(Path::new(path), id);
        assert_eq!(found("/c/docker/abc", "abc"), Some("/c/docker/abc".into()));
        assert_eq!(
            found("/c/system.slice/docker-abc.scope/in/it", "abc"),
            Some("/c/system.slice/docker-abc.scope".into())
        );
        assert_eq!(found("/c/docker/abc/abc", "abc"), Some("/c/docker/abc".into()));
        assert_eq!(found("/c/docker/abd", "abc"), None);
        assert_eq!(found("/c/docker/abc", ""), None);
    }
}
