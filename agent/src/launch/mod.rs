//! The agent's side of the launcher: requests out, replies in, and a new launcher when one dies.
//!
//! [`Launcher`] is one launcher process. [`LauncherPool`] is what the agent holds: it has at most one live launcher,
//! notices its death, and gets the next one from the tree (or starts it). Executions of a dead launcher end as
//! [`Ended::LauncherLost`], since its kernel objects died with it; whether they run again is their caller's matter.
//!
//! Nothing here spawns a task: whatever has to run in the background comes back as a [`Driver`], to be given to the
//! supervisor, which knows what to do when it ends.

mod connection;
mod pool;
mod running;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flux_launcher::wire::{LauncherAnswer, LauncherWish, MAX_REPLY, RefusedReport, SpawnRequest, WireError};
use flux_launcher::{Capabilities, LauncherConfig, socket};
use futures::future::BoxFuture;
use tokio::io::unix::AsyncFd;

use connection::Connection;
pub use flux_launcher::wire::{EndedReport, ExitStatus, Limits, Network};
pub use pool::{LauncherPool, Source};
pub use running::{Census, Ended, Killer, Running};

/// A background future: run it until it ends, or nothing is received.
pub type Driver = BoxFuture<'static, ()>;

/// How long a launcher may take to say hello; making its first slot is most of it.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an execution was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher said no: see [`RefusedReport::is_functions_fault`] for whose fault it is.
    #[error("{}", .0.message)]
    Refused(RefusedReport),
    #[error("the launcher ended before it answered")]
    LauncherLost,
    #[error("there was no launcher within {waited_ms} ms")]
    Unavailable { waited_ms: u64 },
    #[error("the request cannot be sent")]
    Request(#[source] WireError),
    #[error("a launcher could not be started: {what}")]
    Start {
        what: String,
        #[source]
        source: Option<io::Error>,
    },
    #[error("the launcher's socket failed")]
    Socket(#[source] io::Error),
}

impl LaunchError {
    /// Another try, perhaps on another launcher, can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            LaunchError::Refused(refused) => !refused.is_functions_fault(),
            LaunchError::Request(error) => error.is_retryable(),
            LaunchError::LauncherLost
            | LaunchError::Unavailable { .. }
            | LaunchError::Start { .. }
            | LaunchError::Socket(_) => true,
        }
    }

    fn start(what: impl Into<String>, source: impl Into<Option<io::Error>>) -> Self {
        LaunchError::Start { what: what.into(), source: source.into() }
    }
}

/// One launcher process. Cheap to clone; when its [`Driver`] is dropped it kills what runs and ends.
#[derive(Debug, Clone)]
pub struct Launcher {
    connection: Arc<Connection>,
    capabilities: Arc<Capabilities>,
}

impl Launcher {
    /// Starts `program` as a launcher, with this process's own rights, and waits for its hello.
    ///
    /// `program` calls [`flux_launcher::run_if_launcher`] first thing in its `main`.
    pub async fn start_direct(program: &Path, config: &LauncherConfig) -> Result<(Launcher, Driver), LaunchError> {
        let started = flux_launcher::start_launcher(program, config)
            .map_err(|e| LaunchError::start(format!("running {}", program.display()), e))?;
        let (launcher, driver) = Launcher::connect(started.spawn, started.control).await?;
        let mut child = started.child;
        let driver = Box::pin(async move {
            driver.await;
            // Reap it; its own end takes up to two seconds when something resists being killed.
            for _ in 0..500 {
                if !matches!(child.try_wait(), Ok(None)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Ok((launcher, driver))
    }

    /// Takes over the agent's ends of a launcher's sockets and waits for its hello.
    pub async fn connect(spawn: OwnedFd, control: OwnedFd) -> Result<(Launcher, Driver), LaunchError> {
        let connection = Connection::try_new(spawn, control).map_err(LaunchError::Socket)?;
        let capabilities = tokio::time::timeout(HELLO_TIMEOUT, connection.hello())
            .await
            .map_err(|_| LaunchError::start("it did not say hello in time", None))??;
        let connection = Arc::new(connection);
        let driver = connection::drive(&connection);
        Ok((Launcher { connection, capabilities: Arc::new(capabilities) }, driver))
    }

    /// What this launcher can give.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Starts a process and waits until it runs its program. `request.id` is chosen here.
    ///
    /// The descriptors are closed on this side once they are sent. A dropped call kills what it may have started.
    pub async fn spawn(&self, request: SpawnRequest, stdio: [OwnedFd; 3]) -> Result<Running, LaunchError> {
        Connection::spawn(&self.connection, request, stdio.into()).await
    }

    /// As [`Launcher::spawn`], a worker: a process that lasts, with `channel` as its descriptor 3.
    pub async fn spawn_worker(
        &self,
        mut request: SpawnRequest,
        [stdin, stdout, stderr]: [OwnedFd; 3],
        channel: OwnedFd,
    ) -> Result<Running, LaunchError> {
        request.channel = true;
        Connection::spawn(&self.connection, request, vec![stdin, stdout, stderr, channel]).await
    }

    /// Resolves when the launcher is gone.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Whether the launcher is gone.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// A round trip to the launcher's control thread: proof that kills are heard.
    pub async fn ping(&self) -> Result<Duration, LaunchError> {
        self.connection.ping().await
    }
}

/// The link to the process tree's root, inherited as the descriptor that `FLUX_TREE_FD` names.
#[derive(Debug)]
pub struct TreeLink {
    socket: AsyncFd<OwnedFd>,
}

impl TreeLink {
    /// Takes over the inherited descriptor `number`; once.
    pub fn inherited(number: i32) -> io::Result<Self> {
        TreeLink::new_from(socket::inherited(number)?)
    }

    /// Takes over an open link.
    pub fn new_from(link: OwnedFd) -> io::Result<Self> {
        Ok(TreeLink { socket: connection::async_fd(link)? })
    }

    /// Asks the tree for a launcher.
    pub async fn request_launcher(&self, wish: LauncherWish) -> Result<(Launcher, Driver), LaunchError> {
        let question =
            serde_json::to_vec(&wish).map_err(|e| LaunchError::start("encoding the wish", io::Error::from(e)))?;
        connection::send(&self.socket, &question, &[])
            .await
            .map_err(|e| LaunchError::start("asking the process tree", e))?;
        let mut buffer = vec![0; MAX_REPLY];
        let packet = connection::recv(&self.socket, &mut buffer)
            .await
            .map_err(|e| LaunchError::start("hearing from the process tree", e))?;
        let bytes = buffer.get(..packet.len).unwrap_or_default();
        let answer: LauncherAnswer = serde_json::from_slice(bytes)
            .map_err(|e| LaunchError::start("the process tree's answer", io::Error::from(e)))?;
        match answer {
            LauncherAnswer::Failed { message } => Err(LaunchError::start(message, None)),
            LauncherAnswer::Started { .. } => {
                let mut fds = packet.fds.into_iter();
                let (Some(spawn), Some(control)) = (fds.next(), fds.next()) else {
                    return Err(LaunchError::start("the answer came without sockets", None));
                };
                Launcher::connect(spawn, control).await
            }
        }
    }
}
