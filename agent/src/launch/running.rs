//! A started execution, as its caller holds it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use flux_launcher::wire::EndedReport;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use tokio::sync::oneshot;

use super::connection::Connection;

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its main process ended, in whatever way.
    Finished(EndedReport),
    /// Its launcher died, and it with the launcher; nobody saw its status.
    LauncherLost,
}

/// A process that runs. Dropped before it ended, it is killed with everything it started.
#[derive(Debug)]
pub struct Running {
    killer: Killer,
    pid: u32,
    started_at_us: u64,
    ended: Option<oneshot::Receiver<EndedReport>>,
    outcome: Option<Ended>,
    /// A worker's cgroup.
    cgroup: Option<OwnedFd>,
    /// Where a worker is spoken to that listens.
    listener: Option<OwnedFd>,
}

/// Tells who lives in a worker's cgroup.
#[derive(Debug)]
pub struct Census(OwnedFd);

impl Census {
    /// How many processes do, as far as a short look tells: from some on it says a few.
    pub fn count(&self) -> Option<usize> {
        members(&self.0).ok()
    }
}

/// Room for a few pids: more than one is too many.
const PIDS: usize = 64;
/// Room for what a memory cgroup has counted.
const EVENTS: usize = 512;

/// Signals one execution, from anywhere, also while somebody waits for it.
#[derive(Debug, Clone)]
pub struct Killer {
    connection: Arc<Connection>,
    id: u64,
}

impl Killer {
    /// `SIGKILL` reaches everything of the execution, any other signal its process group.
    pub fn kill(&self, signal: i32) {
        self.connection.kill(self.id, signal);
    }
}

impl Running {
    pub(super) fn new(
        connection: Arc<Connection>,
        id: u64,
        pid: u32,
        started_at_us: u64,
        ended: oneshot::Receiver<EndedReport>,
    ) -> Self {
        Running {
            killer: Killer { connection, id },
            pid,
            started_at_us,
            ended: Some(ended),
            outcome: None,
            cgroup: None,
            listener: None,
        }
    }

    pub(super) fn listening_on(mut self, listener: Option<OwnedFd>) -> Self {
        self.listener = listener;
        self
    }

    /// The socket that the launcher listens on for it, once.
    pub fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// Of a worker that is in a cgroup.
    pub fn census(&self) -> Option<Census> {
        self.cgroup.as_ref()?.try_clone().ok().map(Census)
    }

    pub(super) fn in_cgroup(mut self, cgroup: Option<OwnedFd>) -> Self {
        self.cgroup = cgroup;
        self
    }

    /// As the launcher sees it, which is not what the function's own `getpid` says.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// `CLOCK_REALTIME`, just after the program was entered.
    pub fn started_at_us(&self) -> u64 {
        self.started_at_us
    }

    /// See [`Killer::kill`].
    pub fn kill(&self, signal: i32) {
        self.killer.kill(signal);
    }

    /// A handle that can kill while [`Running::wait`] is awaited elsewhere.
    pub fn killer(&self) -> Killer {
        self.killer.clone()
    }

    /// Whether nothing lives beside the main process. A worker's cgroup tells without the launcher; else it is asked.
    pub async fn is_alone(&self) -> bool {
        match &self.cgroup {
            Some(cgroup) => members(cgroup).is_ok_and(|members| members == 1),
            None => self.killer.connection.is_alone(self.killer.id).await.unwrap_or(false),
        }
    }

    /// Ends all but the main process, and makes the rest of its slot as new; whether nothing is left.
    pub async fn clear(&self) -> bool {
        self.killer.connection.clear(self.killer.id).await
    }

    /// The same, without waiting for it.
    pub fn start_clearing(&self) {
        self.killer.connection.start_clearing(self.killer.id);
    }

    /// How many processes the kernel has ended in its cgroup at the memory limit, since that was made.
    pub fn oom_kills(&self) -> Option<u64> {
        let cgroup = self.cgroup.as_ref()?;
        ["memory.events", "memory.oom_control"].into_iter().find_map(|file| oom_kills(cgroup, file))
    }

    /// Waits for the end. May be dropped and called again; once it ended it says the same each time.
    pub async fn wait(&mut self) -> Ended {
        if let Some(outcome) = self.outcome {
            return outcome;
        }
        let outcome = match self.ended.as_mut() {
            Some(ended) => ended.await.map_or(Ended::LauncherLost, Ended::Finished),
            None => Ended::LauncherLost,
        };
        self.ended = None;
        self.outcome = Some(outcome);
        outcome
    }
}

/// How many processes are in a cgroup, as far as a short look tells: 2 may be more.
fn members(cgroup: &OwnedFd) -> io::Result<usize> {
    // Anew each time: on version 1 an open file says what it said before.
    let list = openat(cgroup, "cgroup.procs", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut pids = [0; PIDS];
    let len = nix::unistd::read(&list, &mut pids)?;
    Ok(pids[..len].iter().filter(|byte| **byte == b'\n').count())
}

fn oom_kills(cgroup: &OwnedFd, file: &str) -> Option<u64> {
    let file = openat(cgroup, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut said = [0; EVENTS];
    let len = nix::unistd::read(&file, &mut said).ok()?;
    let said = std::str::from_utf8(said.get(..len)?).ok()?;
    said.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.outcome.is_none() {
            self.killer.kill(nix::libc::SIGKILL);
        }
    }
}
