//! Without slots: a directory of its own for each execution, and a search for what it left running.
//!
//! No PID namespace ends a function's processes here. Two things stand in for it. The launcher is a *subreaper*: an
//! orphan becomes its child, wherever it moved itself. And each process inherits `FLUX_LAUNCHER=<work dir>#<launcher>.<id>` in
//! its environment, which says whose it is, also to the next launcher of the same work directory, after a kill -9.
//! A function that clears the environment of a daemon it leaves escapes the latter until no execution runs that is older
//! than the daemon; the capabilities say that the PID namespace is missing.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::registry::Registry;
use crate::cgroup::{CgroupError, Cgroups, SlotCgroup};
use crate::config::Runner;
use crate::sys::process;
use crate::wire::Limits;

/// The environment variable that marks a process as a launcher's.
pub(crate) const MARKER: &str = "FLUX_LAUNCHER";

/// How long an empty environment is taken for one that is just being set up.
const EXEC_PATIENCE: Duration = Duration::from_millis(10);

/// How many looks in a row must find nothing: a process can be born behind a listing's back while its parent ends.
const QUIET_LOOKS: u32 = 2;

/// The place for executions without slots.
#[derive(Debug)]
pub(crate) struct Plain {
    work_dir: PathBuf,
    user: Option<Runner>,
    own_pid: i32,
    cgroups: Option<Cgroups>,
    idle_cgroups: Mutex<Vec<SlotCgroup>>,
    next_cgroup: AtomicU32,
    /// Read while a process is made and listed, written while zombies are reaped: else a sweep could take the status
    /// of a process that ended before its thread listed it.
    starting: RwLock<()>,
}

/// One execution's private directory.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) marker: String,
    pub(crate) directory: String,
    id: u64,
}

impl Plain {
    pub(crate) fn new(work_dir: &Path, user: Option<Runner>, cgroups: Option<Cgroups>) -> Self {
        Plain {
            work_dir: work_dir.to_owned(),
            user,
            own_pid: i32::try_from(std::process::id()).unwrap_or(0),
            cgroups,
            idle_cgroups: Mutex::default(),
            next_cgroup: AtomicU32::new(0),
            starting: RwLock::new(()),
        }
    }

    pub(crate) fn own_pid(&self) -> i32 {
        self.own_pid
    }

    pub(crate) fn starting(&self) -> RwLockReadGuard<'_, ()> {
        self.starting.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn scratch_root(&self) -> PathBuf {
        self.work_dir.join(format!("tmp-{}", self.own_pid))
    }

    /// Makes the private directory of execution `id`.
    pub(crate) fn scratch(&self, id: u64) -> io::Result<Scratch> {
        let directory = self.scratch_root().join(id.to_string());
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        if let Some(user) = self.user {
            chown(&directory, Some(user.uid), Some(user.gid))?;
        }
        Ok(Scratch {
            marker: format!("{}#{}.{id}", self.work_dir.display(), self.own_pid),
            directory: directory.to_string_lossy().into_owned(),
            id,
        })
    }

    fn idle_cgroups(&self) -> MutexGuard<'_, Vec<SlotCgroup>> {
        self.idle_cgroups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cgroup with these limits, where there are cgroups.
    pub(crate) fn cgroup(&self, limits: &Limits) -> Result<Option<SlotCgroup>, CgroupError> {
        let Some(cgroups) = &self.cgroups else {
            return Ok(None);
        };
        let idle = self.idle_cgroups().pop();
        let mut cgroup = match idle {
            Some(cgroup) => cgroup,
            None => cgroups.make(self.next_cgroup.fetch_add(1, Ordering::Relaxed))?,
        };
        cgroup.set_limits(limits)?;
        Ok(Some(cgroup))
    }

    /// Ends what the execution left and removes its directory.
    pub(crate) fn clean(&self, scratch: &Scratch, pgid: Option<i32>, cgroup: Option<SlotCgroup>, registry: &Registry) {
        if let Some(pgid) = pgid {
            let _ = process::kill_group(pgid, libc::SIGKILL);
            let mut quiet = 0;
            for _ in 0..50 {
                let in_cgroup = cgroup.as_ref().is_some_and(SlotCgroup::kill_all);
                let found = self.sweep(scratch.id, registry) || in_cgroup;
                quiet = if found { 0 } else { quiet + 1 };
                if quiet == QUIET_LOOKS {
                    break;
                }
                std::thread::yield_now();
            }
        }
        if let Some(mut cgroup) = cgroup {
            cgroup.reset_peak();
            self.idle_cgroups().push(cgroup);
        }
        let _ = fs::remove_dir_all(&scratch.directory);
    }

    /// Ends what an execution has beside its main process, and empties its directory; whether nothing is left.
    pub(crate) fn clear(&self, id: u64, main: i32, registry: &Registry) -> bool {
        let mut quiet = 0;
        for _ in 0..50 {
            quiet = if self.sweep(id, registry) { 0 } else { quiet + 1 };
            if quiet == QUIET_LOOKS {
                break;
            }
            std::thread::yield_now();
        }
        empty(&self.scratch_root().join(id.to_string())).is_ok() && !self.has_others(id, main, registry)
    }

    /// Ends orphans that their own execution's clean-up missed; cheap while there are none, since an orphan is always
    /// a child of the launcher.
    pub(crate) fn end_strays(&self, registry: &Registry) {
        if process::has_children() {
            // No execution has this id.
            self.sweep(0, registry);
        }
    }

    /// Whether execution `id` has processes beside `main`, or orphans of nobody live that may be its own: those that are not
    /// older than it.
    pub(crate) fn has_others(&self, id: u64, main: i32, registry: &Registry) -> bool {
        let prefix = self.marker_prefix();
        let since = read_stat(main).map_or(0, |stat| stat.began);
        processes().iter().filter(|process| !process.zombie && process.pid != main).any(|process| {
            match marker_of(process).and_then(|m| owner_id(&m, &prefix)) {
                Some(owner) => owner == id,
                None => process.began >= since && self.is_orphan(process, registry),
            }
        })
    }

    /// Whether it is nobody's child any more; one that is just being started is not listed, but will be.
    fn is_orphan(&self, process: &ProcessEntry, registry: &Registry) -> bool {
        process.parent == self.own_pid && !registry.has_pid(process.pid) && {
            let _started = self.starting.write().unwrap_or_else(PoisonError::into_inner);
            !registry.has_pid(process.pid)
        }
    }

    /// Kills the processes of execution `ended` and orphans of nobody; `true` if it found any alive.
    fn sweep(&self, ended: u64, registry: &Registry) -> bool {
        let prefix = self.marker_prefix();
        let mut found = false;
        for process in processes() {
            let orphan = process.parent == self.own_pid;
            if process.zombie {
                if orphan {
                    self.reap_orphan(process.pid, registry);
                }
                continue;
            }
            let owner = marker_of(&process).and_then(|m| owner_id(&m, &prefix));
            let stray = match owner {
                Some(id) => id == ended || (orphan && !registry.is_running(id)),
                None => orphan && !may_be_of_one(&process, registry),
            };
            if stray && !registry.has_pid(process.pid) {
                // A process that is being started right now has the marker of a request that is not listed yet.
                let _reaping = self.starting.write().unwrap_or_else(PoisonError::into_inner);
                let still_stray = match owner {
                    Some(id) => id == ended || !registry.is_running(id),
                    None => !may_be_of_one(&process, registry),
                };
                if still_stray && !registry.has_pid(process.pid) {
                    found |= process::kill(process.pid, libc::SIGKILL).is_ok();
                }
            }
        }
        found
    }

    fn reap_orphan(&self, pid: i32, registry: &Registry) {
        let _reaping = self.starting.write().unwrap_or_else(PoisonError::into_inner);
        if !registry.has_pid(pid) {
            let _ = process::try_reap(pid);
        }
    }

    /// What the markers of all launchers of this work directory start with.
    fn directory_prefix(&self) -> Vec<u8> {
        format!("{MARKER}={}#", self.work_dir.display()).into_bytes()
    }

    fn marker_prefix(&self) -> Vec<u8> {
        format!("{MARKER}={}#{}.", self.work_dir.display(), self.own_pid).into_bytes()
    }

    /// Makes the place ready, and ends what the dead launchers of this work directory left. One that is still ending
    /// loses nothing by it.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        kill_marked(&self.directory_prefix());
        for entry in fs::read_dir(&self.work_dir)?.flatten() {
            if entry.file_name().as_bytes().starts_with(b"tmp-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        fs::DirBuilder::new().mode(0o711).create(self.scratch_root())
    }

    /// Ends what is left and removes what was made; at the launcher's end.
    pub(crate) fn end(&self) {
        kill_marked(&self.marker_prefix());
        self.idle_cgroups().clear();
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove();
        }
        let _ = fs::remove_dir_all(self.scratch_root());
    }
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }?;
    }
    Ok(())
}

/// Kills every process whose marker starts with `prefix`.
fn kill_marked(prefix: &[u8]) {
    let own_pid = std::process::id().cast_signed();
    let mut quiet = 0;
    for _ in 0..50 {
        let mut found = false;
        for process in processes() {
            let marked = || marker_of(&process).is_some_and(|m| m.starts_with(prefix));
            if !process.zombie && process.pid != own_pid && marked() {
                found |= process::kill(process.pid, libc::SIGKILL).is_ok();
            }
        }
        quiet = if found { 0 } else { quiet + 1 };
        if quiet == QUIET_LOOKS {
            return;
        }
        std::thread::yield_now();
    }
}

/// Whether something runs that is not younger than `process`, and so may have made it.
fn may_be_of_one(process: &ProcessEntry, registry: &Registry) -> bool {
    registry.pids().into_iter().any(|pid| read_stat(pid).is_none_or(|stat| stat.began <= process.began))
}

fn owner_id(marker: &[u8], prefix: &[u8]) -> Option<u64> {
    std::str::from_utf8(marker.strip_prefix(prefix)?).ok()?.parse().ok()
}

pub(super) struct ProcessEntry {
    pub(super) pid: i32,
    parent: i32,
    pub(super) zombie: bool,
    /// In ticks of the kernel since the machine's start.
    began: u64,
}

/// Every process that `/proc` shows.
pub(super) fn processes() -> Vec<ProcessEntry> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| std::str::from_utf8(entry.file_name().as_bytes()).ok()?.parse().ok())
        .filter_map(|pid: i32| {
            let Stat { state, parent, began } = read_stat(pid)?;
            Some(ProcessEntry { pid, parent, zombie: state == b'Z', began })
        })
        .collect()
}

/// What is used of a `/proc/<pid>/stat` line.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    parent: i32,
    began: u64,
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field may hold spaces and brackets.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    /// Fields between the parent and the start.
    const BETWEEN: usize = 17;
    let close = stat.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = rest.split_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { state, parent, began: fields.nth(BETWEEN)?.parse().ok()? })
}

/// The marker in a process's first environment, as `FLUX_LAUNCHER=…`.
///
/// In the midst of an `execve` the environment reads as empty for a moment; a process that looks so may be ours, so it
/// is looked at again, for up to [`EXEC_PATIENCE`]: after that it really has none.
fn marker_of(process: &ProcessEntry) -> Option<Vec<u8>> {
    let kernel_thread = process.pid == 2 || process.parent == 2;
    let mut environ = fs::read(format!("/proc/{}/environ", process.pid)).ok()?;
    let until = Instant::now() + EXEC_PATIENCE;
    while environ.is_empty() && !kernel_thread && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(500));
        environ = fs::read(format!("/proc/{}/environ", process.pid)).ok()?;
    }
    environ
        .split(|&b| b == 0)
        .find(|entry| entry.strip_prefix(MARKER.as_bytes()).is_some_and(|r| r.starts_with(b"=")))
        .map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_brackets_in_its_name_parses() {
        let line = b"7 (a) b) S 42 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9001 226271232";
        assert_eq!(parse_stat(line), Some(Stat { state: b'S', parent: 42, began: 9001 }));
        assert_eq!(parse_stat(b"7 (x"), None);
    }

    #[test]
    fn a_marker_names_its_execution() {
        assert_eq!(owner_id(b"FLUX_LAUNCHER=/w#7.12", b"FLUX_LAUNCHER=/w#7."), Some(12));
        assert_eq!(owner_id(b"FLUX_LAUNCHER=/w#71.12", b"FLUX_LAUNCHER=/w#7."), None);
    }
}
