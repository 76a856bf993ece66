//! The guard for processes that others start and put into cgroups, as Docker does with containers.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flux_launcher::{Held, NetworkGuard, NotGuarded};
use flux_testkit::Cloud;

use super::network::{METADATA, OTHER, OWN};
use super::{ATTACKS, PYTHON};
use crate::harness::{root_or_skip, wait_until};

/// Where this process is in the hierarchy of version 2, and in that which limits memory where those are of version 1.
fn own_cgroups() -> Option<(PathBuf, Option<PathBuf>)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let place = |kind: &str, option: &str, controllers: &str| {
        let shows = |line: &&str| line.contains(&format!(" - {kind} ")) && line.contains(option);
        let mut mount = mounts.lines().find(shows)?.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let path = own.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(controllers)?.strip_prefix(':'))?;
        Some(Path::new(point).join(Path::new(path).strip_prefix(root).ok()?))
    };
    Some((place("cgroup2", "", "")?, place("cgroup", ",memory", "memory")))
}

/// A cgroup as Docker makes one; removed when dropped.
struct Scope(PathBuf);

impl Scope {
    fn new(below: &Path, id: &str) -> Self {
        let path = below.join(format!("docker-{id}.scope"));
        fs::create_dir(&path).unwrap();
        Scope(path)
    }

    fn add(&self, process: &Waiting) {
        fs::write(self.0.join("cgroup.procs"), process.0.id().to_string()).unwrap();
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // The kernel may take a process out of there a moment after its parent has heard of its end.
        let until = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
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

    fn cgroups(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cgroup", self.0.id())).unwrap()
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
    let _cloud = Cloud::start(&[OWN, OTHER]);
    let Some((below, limits_of_v1)) = own_cgroups() else {
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
    for child in [&attack, &harmless] {
        scope.add(child);
    }
    let held = attack.hold(&guard, &id).unwrap();
    let also = harmless.hold(&guard, &id).unwrap();
    is_held(&attack.begin(), targets.len());
    let said = harmless.begin();
    assert!(said.len() == allowed.len() && said.iter().all(|line| line.starts_with("REACHED ")), "{said:#?}");
    assert!(held.release() && also.release(), "nothing was made for them");

    // Whose limits are of version 1 and its own is moved.
    if let Some(limits) = &limits_of_v1 {
        let id = format!("1{id}");
        let (attack, scope) = (Waiting::new(&targets), Scope::new(limits, &id));
        scope.add(&attack);
        let held = attack.hold(&guard, &id).unwrap();
        assert!(!held.release(), "it is in it");
        is_held(&attack.begin(), targets.len());
        wait_until("it to be empty", || held.release());
    }

    // Who is not in the cgroup of that name is another, and left alone: a number can have been given to it meanwhile.
    let another = Waiting::new(&[]);
    let was_in = another.cgroups();
    for id in [id.as_str(), ""] {
        let refused = another.hold(&guard, id).unwrap_err().to_string();
        assert!(refused.contains("is not of this process alone"), "{refused}");
    }
    assert_eq!(another.cgroups(), was_in);
    assert_eq!(another.begin(), [""; 0]);
    assert!(guard.hold(u32::MAX >> 1, "gone").is_err(), "there is no such process");

    // What an earlier one left is ended by the next of its name.
    if let Some(limits) = &limits_of_v1 {
        let id = format!("2{id}");
        let (left, scope) = (Waiting::new(&[]), Scope::new(limits, &id));
        scope.add(&left);
        left.hold(&guard, &id).unwrap();
        std::mem::forget(guard);
        let next = NetworkGuard::try_new(&name, Vec::new()).unwrap();
        assert!(!left.0.wait_with_output().unwrap().status.success(), "it was killed");
        drop(next);
    } else {
        drop(guard);
    }
    wait_until("it to be removed", || !below.join(&name).exists());
}
