//! A started execution, as its caller holds it.

use std::sync::Arc;

use flux_launcher::wire::EndedReport;
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
}

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
        Running { killer: Killer { connection, id }, pid, started_at_us, ended: Some(ended), outcome: None }
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

impl Drop for Running {
    fn drop(&mut self) {
        if self.outcome.is_none() {
            self.killer.kill(nix::libc::SIGKILL);
        }
    }
}
