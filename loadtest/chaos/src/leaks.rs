//! What must not be left when all is over: messages and consumers in the queue, descriptors, processes, cgroups,
//! temporary files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flux_testkit::processes_matching;

use crate::{plan::Victim, producer::Producer, strike::Topology};

/// Acks, and what the last launcher removes, come a moment behind.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// Idle connections of the harness, a file that is just being written.
const DESCRIPTORS_SPARE: usize = 48;
/// A launcher keeps up to three times as many slots as tasks may run at once (`LauncherConfig::max_slots`), and before the load it
/// has almost none. Of each it holds, as counted in `/proc/<launcher>/fd` with 1, 4, 8 and 16 of them: its holder's pidfd and
/// socket; `tasks` of the three hierarchies of cgroup v1; what the memory one tells of its peak and its OOM kills (v2 has fewer).
const SLOTS_OF_A_TASK: usize = 3;
const DESCRIPTORS_OF_A_SLOT: usize = 2 + 3 + 2;
/// How files begin that are written beside their place, and are renamed or removed then.
const TEMPORARY: [&str; 5] = [".put-", ".unpack-", ".gone-", ".tmp", ".new"];

/// Open descriptors of each long-lived process, by what it is.
pub(crate) fn descriptors<T: Topology>(topology: &T) -> BTreeMap<Victim, usize> {
    let count = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).ok();
    // RabbitMQ opens what it likes of its segments and tables.
    let watched = victims(topology).into_iter().filter(|victim| *victim != Victim::Rabbit);
    watched.filter_map(|victim| Some((victim, count(topology.process(victim)?.pid)?))).collect()
}

fn victims<T: Topology>(topology: &T) -> BTreeSet<Victim> {
    topology.menu().faults.into_iter().filter_map(|(fault, _)| fault.victim()).collect()
}

/// While it still runs, and nothing is on its way.
pub(crate) async fn of_running<T: Topology>(
    topology: &T,
    producer: &Producer,
    before: &BTreeMap<Victim, usize>,
) -> Vec<String> {
    let until = Instant::now() + GONE_WITHIN;
    let mut left = Vec::new();
    while Instant::now() < until {
        left = producer.left().await;
        for (victim, now) in descriptors(topology) {
            let at_first = before.get(&victim).copied().unwrap_or(usize::MAX / 2);
            let spare = match victim {
                Victim::Launcher(_) => T::TASKS * SLOTS_OF_A_TASK * DESCRIPTORS_OF_A_SLOT,
                _ => DESCRIPTORS_SPARE,
            };
            if now > at_first + spare {
                left.push(format!("{} has {now} open descriptors, and had {at_first} before the load", victim.role()));
            }
        }
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    left
}

/// The launchers that run now. Cgroups are named after them, and others of this machine may have theirs.
pub(crate) fn launchers<T: Topology>(topology: &T) -> Vec<i32> {
    let victims = victims(topology).into_iter().filter(|victim| matches!(victim, Victim::Launcher(_)));
    victims.filter_map(|victim| topology.process(victim)).map(|process| process.pid).collect()
}

/// After it was stopped: `launchers` are those that it had, and `others` the cgroups that were left by others before it began.
pub(crate) async fn of_stopped<T: Topology>(
    topology: &T,
    launchers: &BTreeSet<i32>,
    others: &BTreeSet<PathBuf>,
) -> Vec<String> {
    let until = Instant::now() + GONE_WITHIN;
    let mut left = Vec::new();
    while Instant::now() < until {
        let markers = topology.markers();
        let processes = markers.iter().flat_map(|marker| processes_matching(marker));
        left = processes.map(|process| format!("a process is left: {process}")).collect();
        let ours = launchers_cgroups()
            .into_iter()
            .filter(|path| launchers.contains(&launcher_of(path)) && !others.contains(path));
        left.extend(ours.map(|path| format!("{} is left", path.display())));
        for dir in markers {
            let found = temporary_below(Path::new(&dir));
            left.extend(found.iter().map(|path| format!("{} is left", path.display())));
        }
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    left
}

/// Every directory that a launcher makes for itself, in each hierarchy. Only below this process's own: what other runs beside it
/// make, or left, is named by the same numbers.
pub(crate) fn launchers_cgroups() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let own = own_cgroups();
    let mut next = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = next.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let path = entry.path();
            if launcher_of(&path) > 0 {
                if own.iter().any(|own| path.starts_with(own)) {
                    found.insert(path);
                }
            } else if depth < 6 {
                next.push((path, depth + 1));
            }
        }
    }
    found
}

/// Where this process is in each hierarchy: `<number>:<controllers>:<path>`, where version 2 has no controllers.
fn own_cgroups() -> Vec<PathBuf> {
    let lines = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut own = Vec::new();
    for line in lines.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let mounts = [controllers].into_iter().chain(controllers.split(',')).chain(["unified"]);
        own.extend(mounts.map(|mount| Path::new("/sys/fs/cgroup").join(mount).join(path.trim_start_matches('/'))));
    }
    own
}

/// The pid in `flux-<pid>`; 0 for any other directory.
fn launcher_of(path: &Path) -> i32 {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_prefix("flux-").and_then(|pid| pid.parse().ok()).unwrap_or(0)
}

fn temporary_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if TEMPORARY.iter().any(|beginning| name.starts_with(beginning)) {
                found.push(path);
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(path);
            }
        }
    }
    found
}
