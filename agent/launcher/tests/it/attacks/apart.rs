//! The guard for processes that others start and put into cgroups, as Docker does with containers.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flux_launcher::{Held, NetworkGuard, NotGuarded};

use super::network::{Cloud, METADATA, OTHER, OWN};
use super::{ATTACKS, PYTHON};
use crate::harness::{root_or_skip, wait_until};

/// Where this process is in the hierarchy of version 2, and whether limits are of version 1.
fn unified() -> Option<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some((Path::new(point).join(path), own.contains(":memory:")))
}

/// A cgroup as Docker makes one; removed when dropped.
struct Scope(PathBuf);

impl Scope {
    fn new(below: &Path, id: &str) -> Self {
        let path = below.join(format!("docker-{id}.scope"));
        fs::create_dir(&path).unwrap();
        Scope(path)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// An attack that waits to be told to begin.
struct Waiting(Child);

impl Waiting {
    fn new(targets: &[&str]) -> Self {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "read begin || exit 1; exec \"$@\"", "sh", PYTHON, "-I", "-c", ATTACKS, "reach"])
            .args(targets);
        Waiting(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn hold(&self, guard: &NetworkGuard, id: &str) -> Result<Held, NotGuarded> {
        guard.hold(self.0.id(), id)
    }

    /// What it said, in lines.
    fn begin(mut self) -> Vec<String> {
        self.0.stdin.take().unwrap().write_all(b"begin\n").unwrap();
        let said = self.0.wait_with_output().unwrap();
        assert!(said.status.success());
        String::from_utf8(said.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn is_held(said: &[String], tried: usize) {
    assert_eq!(said.len(), tried, "{said:#?}");
    let held = |line: &String| line.starts_with("HELD ") && line.ends_with("Operation not permitted");
    assert!(said.iter().all(held), "{said:#?}");
}

#[test]
fn processes_of_others_are_kept_from_metadata_and_the_broker() {
    if !root_or_skip() {
        return;
    }
    let _cloud = Cloud::new();
    let Some((below, limits_of_v1)) = unified() else {
        eprintln!("SKIPPED: no cgroup hierarchy of version 2 is mounted");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have one");
        return;
    };
    let name = format!("flux-apart-{}", std::process::id());
    let guard = NetworkGuard::try_new(&name, vec![([127, 0, 0, 1], OWN).into()]).unwrap();
    let broker = [format!("tcp:192.0.2.7:{OWN}"), format!("udp:[2001:db8::7]:{OWN}")];
    let targets: Vec<&str> = METADATA.into_iter().chain(broker.iter().map(String::as_str)).collect();
    let open = Waiting::new(&targets).begin();
    assert!(open.len() == targets.len() && open.iter().all(|line| line.starts_with("REACHED ")), "{open:#?}");

    // In a cgroup of its own it is guarded there, and not moved.
    let id = format!("{:064x}", std::process::id());
    let scope = Scope::new(&below, &id);
    let (attack, ordinary) = (Waiting::new(&targets), format!("tcp:192.0.2.7:{OTHER}"));
    let allowed = [ordinary.as_str(), "tcp:169.254.169.254:53", &format!("tcp:127.0.0.1:{OWN}")];
    let harmless = Waiting::new(&allowed);
    for child in [&attack.0, &harmless.0] {
        fs::write(scope.0.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    let held = attack.hold(&guard, &id).unwrap();
    let also = harmless.hold(&guard, &id).unwrap();
    is_held(&attack.begin(), targets.len());
    let said = harmless.begin();
    assert!(said.len() == allowed.len() && said.iter().all(|line| line.starts_with("REACHED ")), "{said:#?}");
    assert!(held.release() && also.release(), "nothing was made for them");

    // In one that is not its own it is moved, where that costs it no limit.
    let attack = Waiting::new(&targets);
    let held = attack.hold(&guard, "another");
    if limits_of_v1 {
        let held = held.unwrap();
        assert!(!held.release(), "it is in it");
        is_held(&attack.begin(), targets.len());
        // The kernel may take it out of there a moment after its parent has heard of its end.
        wait_until("it to be empty", || held.release());
    } else {
        assert!(held.unwrap_err().to_string().contains("is not of this process alone"));
        let mut never_begun = attack.0;
        assert!(!never_begun.wait().unwrap().success());
    }
    assert!(guard.hold(u32::MAX >> 1, "gone").is_err(), "there is no such process");

    // What an earlier one left is ended by the next of its name.
    if limits_of_v1 {
        let left = Waiting::new(&[]);
        left.hold(&guard, "left").unwrap();
        std::mem::forget(guard);
        let next = NetworkGuard::try_new(&name, Vec::new()).unwrap();
        assert!(!left.0.wait_with_output().unwrap().status.success(), "it was killed");
        drop(next);
    } else {
        drop(guard);
    }
    wait_until("it to be removed", || !below.join(&name).exists());
}
