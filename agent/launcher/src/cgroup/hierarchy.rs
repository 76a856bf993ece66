//! Where a process is in each hierarchy, from `/proc/self/mountinfo` and `/proc/PID/cgroup`.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A process's own cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: u8,
    /// Of version 1; version 2 lists its own in a file.
    pub(super) controllers: Vec<String>,
    pub(super) path: PathBuf,
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
        let mount = mountinfo.lines().filter_map(mount_of).find(|m| match version {
            2 => m.kind == "cgroup2",
            _ => m.kind == "cgroup" && controllers.split(',').all(|c| m.options.split(',').any(|o| o == c)),
        });
        if let Some(mount) = mount {
            // In a container the mount may show a part of the hierarchy only.
            let relative = match path.strip_prefix(mount.root) {
                Some(rest) if mount.root != "/" => rest,
                _ => path,
            };
            places.push(Place {
                version,
                controllers: controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
                path: super::join(mount.point, relative),
            });
        }
    }
    places
}

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
}
