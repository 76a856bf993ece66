//! The seam between the agent and what starts processes: the launcher, or in tests a program that fails on demand.

use std::{os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use flux_launcher::{Capabilities, wire::SpawnRequest};
use tokio::sync::watch;

use crate::launch::{Census, Ended, LaunchError, LauncherPool, Running};

/// Starts processes in sandboxes.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Starts a process with these as its stdin, stdout and stderr. Dropping the call kills what it may have started.
    async fn spawn(&self, request: SpawnRequest, stdio: [OwnedFd; 3]) -> Result<Box<dyn Process>, LaunchError>;

    /// Starts a worker: a process that lasts, with `channel` as its descriptor 3.
    async fn spawn_worker(
        &self,
        request: SpawnRequest,
        stdio: [OwnedFd; 3],
        channel: OwnedFd,
    ) -> Result<Box<dyn Process>, LaunchError>;

    /// What it can give; `None` while it can start nothing at all.
    fn capabilities(&self) -> watch::Receiver<Option<Arc<Capabilities>>>;
}

/// A started process. Dropped before its end, it is killed with everything it started.
#[async_trait]
pub trait Process: Send {
    fn pid(&self) -> u32;

    /// Microseconds since the epoch.
    fn started_at_us(&self) -> u64;

    /// `SIGKILL` reaches everything of the execution, any other signal its process group.
    fn kill(&self, signal: i32);

    /// Whether nothing of it lives beside its main process: what a worker leaves behind must not outlive its invocation.
    async fn is_alone(&mut self) -> bool;

    /// Ends everything of it but its main process, and makes the rest of its slot as new; whether nothing is left. Of a worker
    /// that forks.
    async fn clear(&mut self) -> bool {
        false
    }

    /// As [`Self::clear`], without waiting for it.
    fn start_clearing(&self) {}

    /// How many processes the kernel has ended at the memory limit in the cgroup that it is in; `None` where nobody knows.
    fn oom_kills(&self) -> Option<u64> {
        None
    }

    /// What its main process holds in memory, as the kernel says; `None` where nobody knows.
    fn resident_bytes(&self) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * page_bytes())
    }

    /// Waits for the end. May be dropped and called again.
    async fn wait(&mut self) -> Ended;

    /// The socket that is listened on for a worker that asked for one, once.
    fn take_listener(&mut self) -> Option<OwnedFd> {
        None
    }

    /// Who lives with a worker, where its cgroup tells.
    fn census(&self) -> Option<Census> {
        None
    }
}

fn page_bytes() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

/// The launcher as an [`Executor`].
#[derive(Debug)]
pub struct LauncherExecutor {
    pool: LauncherPool,
    capabilities: watch::Receiver<Option<Arc<Capabilities>>>,
}

impl LauncherExecutor {
    /// The returned future follows the launchers as they come and go; it is to be run for as long as the executor is used.
    pub fn new(pool: LauncherPool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let mut launchers = pool.watch();
        let (sender, capabilities) = watch::channel(capabilities_of(&mut launchers));
        let follow = async move {
            while launchers.changed().await.is_ok() {
                sender.send_replace(capabilities_of(&mut launchers));
            }
            sender.send_replace(None);
        };
        (Self { pool, capabilities }, follow)
    }
}

fn capabilities_of(launchers: &mut watch::Receiver<Option<crate::launch::Launcher>>) -> Option<Arc<Capabilities>> {
    launchers.borrow_and_update().as_ref().map(|launcher| Arc::new(launcher.capabilities().clone()))
}

#[async_trait]
impl Executor for LauncherExecutor {
    async fn spawn(&self, request: SpawnRequest, stdio: [OwnedFd; 3]) -> Result<Box<dyn Process>, LaunchError> {
        Ok(Box::new(self.pool.spawn(request, stdio).await?))
    }

    async fn spawn_worker(
        &self,
        request: SpawnRequest,
        stdio: [OwnedFd; 3],
        channel: OwnedFd,
    ) -> Result<Box<dyn Process>, LaunchError> {
        Ok(Box::new(self.pool.spawn_worker(request, stdio, channel).await?))
    }

    fn capabilities(&self) -> watch::Receiver<Option<Arc<Capabilities>>> {
        self.capabilities.clone()
    }
}

#[async_trait]
impl Process for Running {
    fn pid(&self) -> u32 {
        Running::pid(self)
    }

    fn started_at_us(&self) -> u64 {
        Running::started_at_us(self)
    }

    fn kill(&self, signal: i32) {
        Running::kill(self, signal);
    }

    async fn is_alone(&mut self) -> bool {
        Running::is_alone(self).await
    }

    async fn wait(&mut self) -> Ended {
        Running::wait(self).await
    }

    async fn clear(&mut self) -> bool {
        Running::clear(self).await
    }

    fn start_clearing(&self) {
        Running::start_clearing(self);
    }

    fn oom_kills(&self) -> Option<u64> {
        Running::oom_kills(self)
    }

    fn take_listener(&mut self) -> Option<OwnedFd> {
        Running::take_listener(self)
    }

    fn census(&self) -> Option<Census> {
        Running::census(self)
    }
}
