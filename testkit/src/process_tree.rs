//! Processes as `/proc` shows them: who descends from whom, and what is left over.
//!
//! What cannot be read (another user's environment, a process that ended meanwhile) is skipped: run as root to see all.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::eventually_some;

/// How long after its cause a leftover may live.
const GONE_WITHIN: Duration = Duration::from_secs(3);

/// A process, at the moment it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// The kernel's name of it: at most 15 bytes of the program's file name.
    pub name: String,
    /// Its arguments joined by spaces; empty for a zombie.
    pub command: String,
    /// The kernel's letter: R running, S sleeping, T stopped, Z zombie.
    pub state: char,
    /// Those that are not gone yet, its first one included.
    threads: u32,
    /// Clock ticks since boot when it started: with the pid, what it is for as long as the machine is up.
    started: u64,
}

impl Process {
    /// The process with this id, unless there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // `pid (name) state parent …`, and the name may hold anything, parentheses too.
        let (before, after) = stat.rsplit_once(") ")?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_whitespace().collect();
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            name,
            command: String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " "),
            state: fields.first()?.chars().next()?,
            threads: fields.get(17)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// Is this very process still there, and not a zombie? One of whose threads some are left is there.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.started == self.started && !now.is_dead())
    }

    /// SIGKILL, if it is still this process.
    pub fn kill9(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// SIGSTOP: it lives and does nothing, like a machine that hangs.
    pub fn pause(&self) {
        if self.is_alive() {
            pause(self.pid);
        }
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// A process that was killed is a zombie as soon as its first thread is; while others are left it still has its
    /// descriptors, and cannot be waited for.
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    fn mentions(&self, marker: &str) -> bool {
        let has = |bytes: &[u8]| bytes.windows(marker.len()).any(|window| window == marker.as_bytes());
        let link = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        let within = |path: PathBuf| path.to_string_lossy().contains(marker);
        self.command.contains(marker)
            || std::fs::read(format!("/proc/{}/environ", self.pid)).is_ok_and(|env| has(&env))
            || within(link("cwd"))
            || within(link("exe"))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, child of {}, {}): {}", self.pid, self.name, self.parent, self.state, self.command)
    }
}

/// Stops a process, and returns once it has: a thread that runs on another core does so for a moment after the signal.
pub(crate) fn pause(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    let begun = std::time::Instant::now();
    while !is_stopped(pid) {
        assert!(begun.elapsed() < GONE_WITHIN, "process {pid} does not stop at SIGSTOP");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether no thread of it runs; one that is gone does not.
fn is_stopped(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let state = |stat: String| stat.rsplit_once(") ").and_then(|(_, after)| after.chars().next());
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat"));
        stat.map_or(true, |stat| matches!(state(stat), Some('T' | 't' | 'Z' | 'X')))
    })
}

/// Is there a process with this id that is not a zombie?
pub fn is_alive(pid: i32) -> bool {
    Process::of(pid).is_some_and(|process| !process.is_dead())
}

/// All living descendants of a process, without itself, each after its parent. One whose parent ended has become
/// a child of init or of a subreaper, and is found only if that is within the tree.
pub fn descendants(pid: i32) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all() {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            next.push(child.pid);
            if !child.is_dead() {
                found.push(child);
            }
        }
    }
    found
}

/// Living processes that have `marker` in their arguments, environment, working directory or program path, without
/// the caller and its ancestors. A test's own temporary directory is a good marker.
pub fn processes_matching(marker: &str) -> Vec<Process> {
    assert!(marker.len() >= 8, "{marker:?} is too short to tell one test's processes from others");
    let ours = own_line();
    all().into_iter().filter(|p| !p.is_dead() && !ours.contains(&p.pid) && p.mentions(marker)).collect()
}

/// Panics if processes with `marker` (see [`processes_matching`]) are still there after three seconds.
pub async fn assert_no_processes_left(marker: &str) {
    let mut last = Vec::new();
    let gone = tokio::time::timeout(GONE_WITHIN, async {
        eventually_some(GONE_WITHIN * 2, "no process left", || {
            last = processes_matching(marker);
            let gone = last.is_empty().then_some(());
            async move { gone }
        })
        .await;
    })
    .await;
    let list: Vec<String> = last.iter().map(Process::to_string).collect();
    assert!(gone.is_ok(), "left over after {GONE_WITHIN:?}, with {marker:?}:\n  {}", list.join("\n  "));
}

fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| Process::of(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

fn own_line() -> HashSet<i32> {
    let mut line = HashSet::new();
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|pid| *pid > 0 && line.insert(*pid)) {
        next = Process::of(pid).map(|process| process.parent);
    }
    line
}
