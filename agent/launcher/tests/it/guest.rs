//! These very tests again, in a guest whose cgroups are of version 2 alone: machines where they are of version 1 have no other way.

use std::{fs, path::Path};

use flux_launcher::CgroupSupport;
use flux_shim::{Start, Status};
use flux_testkit_guest::{Guest, Image};

use crate::harness::{Launched, PROBE};

/// What Flux is given by systemd's `Delegate=yes`: a cgroup of its own with all controllers, and everything of it in there.
const SCRIPT: &str = "set -e
mount -t cgroup2 none /sys/fs/cgroup
echo +cpu +memory +pids > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/flux
echo $$ > /sys/fs/cgroup/flux/cgroup.procs
exec /code/it --test-threads 1 \"$@\"";

/// Of the tests, those that cgroups have a part in, less what takes a guest without KVM a minute.
const FILTERS: [&str; 7] = [
    "guest::",
    "limits::",
    "workers::",
    "lifetime::",
    "attacks::resources::a_fork_bomb",
    "attacks::resources::nothing_of_an_execution",
    "attacks::apart",
];

fn is_in_guest() -> bool {
    Path::new("/code/it").exists()
}

#[test]
fn on_version_2_of_cgroups_the_same_holds() {
    if is_in_guest() {
        return;
    }
    let code = tempfile::tempdir().unwrap();
    fs::copy(std::env::current_exe().unwrap(), code.path().join("it")).unwrap();
    fs::copy(PROBE, code.path().join("flux-launcher-probe")).unwrap();
    let mut guest = Guest::boot(&Image::of_tests(), code.path(), 1, 1024);
    let mut line = guest.connect();
    let args = ["-c", SCRIPT, "sh"].into_iter().chain(FILTERS);
    let env =
        [("PATH", "/usr/bin:/bin"), ("FLUX_PROBE", "/code/flux-launcher-probe"), ("CI", "true"), ("TMPDIR", "/tmp")];
    let start = Start {
        program: "/bin/sh".to_owned(),
        args: args.map(str::to_owned).collect(),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        directory: "/".to_owned(),
        ..Start::default()
    };
    let done = line.run(start, b"");
    assert_eq!(done.exit.status, Status::Exited(0), "{}\n{}", done.stdout, done.stderr);
    for ran in ["guest::in_there_all_controllers_are_of_version_2", "attacks::apart::processes_of_others"] {
        let ran = done.stdout.lines().find(|line| line.contains(ran)).unwrap_or_default();
        assert!(ran.ends_with(" ... ok"), "{}", done.stdout);
    }
}

#[test]
fn in_there_all_controllers_are_of_version_2() {
    if is_in_guest() {
        let expected = CgroupSupport { version: 2, memory: true, cpu: true, pids: true };
        assert_eq!(Launched::start().capabilities.cgroup, expected);
    }
}
