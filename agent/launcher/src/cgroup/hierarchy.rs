//! Where a process is in each hierarchy, from `/proc/self/mountinfo` and `/proc/PID/cgroup`.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::directory::CgroupError;

/// A process's own cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: u8,
    /// Of version 1; version 2 lists its own in a file.
    pub(super) controllers: Vec<String>,
    /// Where it is not below what is mounted, a guess.
    pub(super) path: PathBuf,
    /// What the kernel calls it, where it is not below what is mounted here.
    pub(super) elsewhere: Option<String>,
}

impl Place {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// Its directory, where that is certain.
    pub(super) fn seen(&self) -> Result<&Path, CgroupError> {
        match &self.elsewhere {
            None => Ok(&self.path),
            Some(named) => Err(CgroupError::Elsewhere { named: named.clone() }),
        }
    }
}

pub(super) fn of_this_process() -> io::Result<Vec<Place>> {
    Ok(places(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string("/proc/self/cgroup")?))
}

pub(super) fn of(pid: u32) -> io::Result<Vec<Place>> {
    Ok(places(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string(format!("/proc/{pid}/cgroup"))?))
}

/// Joins the mounts to the membership: on version 1 by the set of controllers.
fn places(mountinfo: &str, membership: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let version = if number == "0" && controllers.is_empty() { 2 } else { 1 };
        let mounts = mountinfo.lines().filter_map(mount_of).filter(|m| match version {
            2 => m.kind == "cgroup2",
            _ => m.kind == "cgroup" && controllers.split(',').all(|c| m.options.split(',').any(|o| o == c)),
        });
        let mounts: Vec<_> = mounts.collect();
        // In a container a mount may show a part of the hierarchy only.
        let found = mounts.iter().find_map(|mount| Some((mount, below(mount.root, path)?)));
        let (mount, relative, elsewhere) = match (found, mounts.first()) {
            (Some((mount, relative)), _) => (mount, relative, None),
            (None, Some(mount)) => (mount, path, Some(path.to_owned())),
            (None, None) => continue,
        };
        places.push(Place {
            version,
            controllers: controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
            path: super::join(mount.point, relative),
            elsewhere,
        });
    }
    places
}

/// `path` as seen from a mount of `root`. Both are said from this process's cgroup namespace: what is outside of it begins with `/..`,
/// and has a name there that is not told.
fn below<'a>(root: &str, path: &'a str) -> Option<&'a str> {
    let is_outside = |path: &str| Path::new(path).components().any(|part| part == Component::ParentDir);
    if is_outside(root) || is_outside(path) {
        return None;
    }
    Path::new(path).strip_prefix(root).ok()?.to_str()
}

#[derive(Debug, Clone, Copy)]
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

fn mount_of(line: &str) -> Option<Mount<'_>> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, point) = (head.next()?, head.next()?);
    let mut tail = tail.split(' ');
    let kind = tail.next()?;
    Some(Mount { root, point, kind, options: tail.nth(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 30 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_machine_gives_one_place_a_hierarchy() {
        let found = places(HYBRID, "4:memory:/a/b\n2:cpu,cpuacct:/\n0::/user.slice\n9:name=systemd:/\n");
        let paths: Vec<_> = found.iter().map(|p| (p.version, p.path.to_str().unwrap())).collect();
        assert_eq!(
            paths,
            [
                (1, "/sys/fs/cgroup/memory/a/b"),
                (1, "/sys/fs/cgroup/cpu,cpuacct/"),
                (2, "/sys/fs/cgroup/unified/user.slice"),
            ]
        );
    }

    #[test]
    fn a_container_that_sees_a_part_of_the_hierarchy_is_placed_in_it() {
        let mounts = "34 30 0:30 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let found = places(mounts, "4:memory:/docker/x/inner\n");
        assert_eq!(found[0].path, PathBuf::from("/sys/fs/cgroup/memory/inner"));
    }

    #[test]
    fn a_pure_version_2_machine_has_one_place() {
        let mounts = "25 24 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = places(mounts, "0::/system.slice/flux.service\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, PathBuf::from("/sys/fs/cgroup/system.slice/flux.service"));
    }

    /// Of version 2 alone: what is mounted, where a process is, and where that is found.
    fn unified(root: &str, path: &str) -> Result<PathBuf, String> {
        let mounts = format!("25 24 0:22 {root} /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n");
        let found = places(&mounts, &format!("0::{path}\n"));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].seen().map(Path::to_owned).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_below_what_is_mounted_is_elsewhere() {
        // On the machine itself, and in a container with its cgroup namespace.
        assert_eq!(unified("/", "/docker/x"), Ok("/sys/fs/cgroup/docker/x".into()));
        assert_eq!(unified("/", "/"), Ok("/sys/fs/cgroup".into()));
        // In a container with a cgroup namespace of its own: what is beside it there, and what is further up.
        for path in ["/../docker-x.scope", "/../../system.slice/docker.service", "/.."] {
            let said = unified("/", path).expect_err(path);
            assert!(said.contains(&format!("`{path}`")) && said.contains("--cgroupns=host"), "{said}");
        }
        // With the machine's own mount in such a namespace nobody says where in it that is.
        assert!(unified("/../..", "/").is_err());
        assert!(unified("/../..", "/../../docker/x").is_err());
        // With a part of the hierarchy: what is in it, beside it, and what only begins like it.
        assert_eq!(unified("/docker/x", "/docker/x/inner"), Ok("/sys/fs/cgroup/inner".into()));
        assert!(unified("/docker/x", "/docker/y").is_err());
        assert!(unified("/docker/x", "/docker/xy").is_err());
    }

    #[test]
    fn of_several_mounts_one_counts_that_shows_the_place() {
        let mounts = "\
25 24 0:22 /../.. /host rw - cgroup2 cgroup2 rw
26 24 0:22 /part /part rw - cgroup2 cgroup2 rw
27 24 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
";
        let found = places(mounts, "0::/own\n");
        assert_eq!(found[0].seen().unwrap(), Path::new("/sys/fs/cgroup/own"));
    }
}
