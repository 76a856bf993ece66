//! Version 2: one directory with all controllers, and rules about who may be where.
//!
//! A cgroup that gives controllers to its children holds no processes itself. So everything of Flux that is in its own
//! cgroup (the tree, the agent, this launcher) first moves into a leaf beside the slots'. Only Flux's own processes are
//! moved; if a stranger is there too, as in a login session, the kernel refuses and the controllers are missing.

mod cpu;
mod memory;

use std::path::{Path, PathBuf};

use super::directory::{CgroupError, Directory};
use super::hierarchy::Place;
pub(super) use super::v1::Pids;
pub(super) use cpu::Cpu;
pub(super) use memory::Memory;

/// A child writes `0` to it.
pub(super) const JOIN: &str = "cgroup.procs";
/// Where Flux's own processes stay.
const LEAF: &str = "flux-platform";
const ENABLED: &str = "cgroup.subtree_control";

/// Gives `controller` to this launcher's slots.
pub(super) fn enable(place: &Place, name: &str, controller: &'static str) -> Result<Directory, CgroupError> {
    let own = Directory::new(own_without_leaf(&place.path));
    if !lists(&own, "cgroup.controllers", controller) {
        return Err(CgroupError::NotDelegated { controller, path: own.path().to_owned() });
    }
    super::remove_leftovers(&own);
    if !lists(&own, ENABLED, controller) {
        let is_root = !own.has("cgroup.type");
        if !is_root {
            let leaf = own.child(LEAF);
            leaf.make()?;
            for pid in own_processes(&own) {
                // One that has ended meanwhile need not move.
                let _ = leaf.write(JOIN, &pid.to_string());
            }
        }
        own.write(ENABLED, &format!("+{controller}"))?;
    }
    let base = own.child(name);
    base.make()?;
    base.write(ENABLED, &format!("+{controller}"))?;
    Ok(base)
}

pub(super) fn own_without_leaf(path: &Path) -> PathBuf {
    match (path.file_name(), path.parent()) {
        (Some(name), Some(parent)) if name == LEAF => parent.to_owned(),
        _ => path.to_owned(),
    }
}

fn lists(directory: &Directory, file: &str, controller: &str) -> bool {
    directory.read(file).is_ok_and(|list| list.split_whitespace().any(|c| c == controller))
}

/// The processes of `own` that are this launcher, its parent, or started by that.
fn own_processes(own: &Directory) -> Vec<u32> {
    let tree = std::os::unix::process::parent_id();
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let belongs = |pid: u32| {
        let mut at = Some(pid);
        while let Some(pid) = at.filter(|&p| p > 1) {
            if pid == tree || pid == std::process::id() {
                return true;
            }
            at = parent(pid);
        }
        false
    };
    let procs = own.read(JOIN).unwrap_or_default();
    procs.lines().filter_map(|l| l.parse().ok()).filter(|&pid| belongs(pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::directory::fake;

    #[test]
    fn a_launcher_in_the_leaf_finds_its_way_up() {
        assert_eq!(own_without_leaf(Path::new("/c/flux.service/flux-platform")), Path::new("/c/flux.service"));
        assert_eq!(own_without_leaf(Path::new("/c/flux.service")), Path::new("/c/flux.service"));
    }

    #[test]
    fn a_controller_that_is_not_delegated_is_said() {
        let own = fake("v2-enable", &[("cgroup.controllers", "cpu pids\n")]);
        let place = Place { version: 2, controllers: vec![], path: own.path().to_owned(), elsewhere: None };
        let refused = enable(&place, "flux-1", "memory").unwrap_err();
        assert!(matches!(refused, CgroupError::NotDelegated { controller: "memory", .. }));
    }
}
