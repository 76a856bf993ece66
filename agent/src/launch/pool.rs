//! One live launcher at a time, replaced when it dies.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use flux_launcher::LauncherConfig;
use flux_launcher::wire::{LauncherWish, SpawnRequest};
use tokio::sync::watch;

use super::{Driver, LaunchError, Launcher, Running, TreeLink};

/// How long a request waits for a launcher that is being replaced.
const WAIT_FOR_LAUNCHER: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(2);

/// Where launchers come from.
#[derive(Debug)]
pub enum Source {
    /// The process tree's root, which has the privileges.
    Tree { link: TreeLink, wish: LauncherWish },
    /// This process starts them, with its own rights.
    Direct { program: PathBuf, config: LauncherConfig },
}

impl Source {
    async fn launcher(&self) -> Result<(Launcher, Driver), LaunchError> {
        match self {
            Source::Tree { link, wish } => link.request_launcher(wish).await,
            Source::Direct { program, config } => Launcher::start_direct(program, config).await,
        }
    }
}

/// A launcher that is always there, but for the moments in which a dead one is replaced.
#[derive(Debug, Clone)]
pub struct LauncherPool {
    current: watch::Receiver<Option<Launcher>>,
}

impl LauncherPool {
    /// Gets the first launcher. The driver replaces it for as long as it is run; dropping it ends the launcher.
    pub async fn connect(source: Source) -> Result<(LauncherPool, Driver), LaunchError> {
        let (launcher, first) = source.launcher().await?;
        let (sender, current) = watch::channel(Some(launcher));
        let driver = Box::pin(replace_forever(source, first, sender));
        Ok((LauncherPool { current }, driver))
    }

    /// The live launcher, waiting for the next one while there is none.
    pub async fn launcher(&self) -> Result<Launcher, LaunchError> {
        let mut current = self.current.clone();
        // One that just died is still there until its driver has noticed.
        let waiting = current.wait_for(|launcher| launcher.as_ref().is_some_and(|l| !l.is_closed()));
        match tokio::time::timeout(WAIT_FOR_LAUNCHER, waiting).await {
            Ok(Ok(launcher)) => launcher.clone().ok_or(LaunchError::LauncherLost),
            Ok(Err(_)) => Err(LaunchError::LauncherLost),
            Err(_) => Err(LaunchError::Unavailable {
                waited_ms: u64::try_from(WAIT_FOR_LAUNCHER.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Follows the live launcher: `None` while there is none. Its capabilities belong in the heartbeat.
    pub fn watch(&self) -> watch::Receiver<Option<Launcher>> {
        self.current.clone()
    }

    /// As [`Launcher::spawn`], on the live launcher.
    pub async fn spawn(&self, request: SpawnRequest, stdio: [OwnedFd; 3]) -> Result<Running, LaunchError> {
        self.launcher().await?.spawn(request, stdio).await
    }

    /// As [`Launcher::spawn_worker`], on the live launcher.
    pub async fn spawn_worker(
        &self,
        request: SpawnRequest,
        stdio: [OwnedFd; 3],
        channel: OwnedFd,
    ) -> Result<Running, LaunchError> {
        self.launcher().await?.spawn_worker(request, stdio, channel).await
    }
}

async fn replace_forever(source: Source, first: Driver, current: watch::Sender<Option<Launcher>>) {
    let mut driver = first;
    loop {
        driver.await;
        current.send_replace(None);
        tracing::error!("the launcher died: its executions are lost; asking for a new one");
        let mut backoff = FIRST_BACKOFF;
        driver = loop {
            match source.launcher().await {
                Ok((launcher, driver)) => {
                    tracing::info!("a new launcher is ready");
                    current.send_replace(Some(launcher));
                    break driver;
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        retry_in_ms = backoff.as_millis(),
                        "no launcher"
                    );
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(LAST_BACKOFF);
                }
            }
        };
    }
}
