//! Containers, as the agent asks the container driver for them.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use flux_containers::{
    CODE, DRIVER, DRIVER_ARGUMENT, DriverConfig, Packets,
    wire::{Container, Report, Request, Why},
};
use flux_runtime::Tasks;
use futures::FutureExt as _;
use nix::libc::SIGKILL;
use parking_lot::Mutex;
use tokio::{
    net::UnixStream,
    sync::{oneshot, watch},
};

use super::{
    Offer, Sandbox, Start, Tier,
    remote::{self, EndsHost, Host, HostEnd, Waiting},
};
use crate::{
    executor::Process,
    launch::{ExitStatus, LaunchError, TreeLink},
};

/// Before a driver that ended is asked for again, or Docker is looked for.
const PAUSE: Duration = Duration::from_secs(1);
/// What a shell says of a process that a signal ended, and Docker too.
const SIGNALED: i32 = 128;

/// Where the driver comes from.
#[derive(Debug)]
pub enum ContainerSource {
    /// The process tree's root, which has the privileges. The socket of Docker is only looked for.
    Tree { link: TreeLink, socket: PathBuf },
    /// This process starts it, with its own rights.
    Direct { program: PathBuf, config: DriverConfig },
}

impl ContainerSource {
    /// Waits until there is something for a driver to do: most machines have no Docker, and need none.
    async fn until_docker(&self, offer: &watch::Sender<Result<Arc<Offer>, String>>) {
        let (Self::Tree { socket, .. } | Self::Direct { config: DriverConfig { socket, .. }, .. }) = self;
        // What may not be looked at may be there.
        while std::fs::symlink_metadata(socket).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            offer.send_if_modified(|said| {
                let why = format!("there is no Docker at {}", socket.display());
                let is_new = said.as_ref().err() != Some(&why);
                *said = Err(why);
                is_new
            });
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The socket to a driver, and its process where it is ours to wait for.
    async fn driver(&self) -> Result<(OwnedFd, Option<std::process::Child>), LaunchError> {
        match self {
            Self::Tree { link, .. } => Ok((link.request_driver(DRIVER).await?, None)),
            Self::Direct { program, config } => {
                let started = flux_launcher::start_driver(program, DRIVER_ARGUMENT, &config.spec().config)
                    .map_err(LaunchError::Socket)?;
                Ok((started.socket, Some(started.child)))
            }
        }
    }
}

/// The tier `container`.
pub struct Containers {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    driver: Mutex<Option<Arc<Packets>>>,
    asked: Mutex<HashMap<u64, Asked>>,
    next_id: AtomicU64,
    offer: watch::Sender<Result<Arc<Offer>, String>>,
}

/// A container that the driver has not said the end of.
struct Asked {
    started: Option<oneshot::Sender<Result<OwnedFd, LaunchError>>>,
    gone: Option<oneshot::Sender<HostEnd>>,
    unwatched: bool,
}

struct OneContainer {
    shared: Arc<Shared>,
    id: u64,
}

impl Host for OneContainer {
    fn end(&self) {
        self.shared.end(self.id);
    }
}

impl Containers {
    /// The returned future gets a driver, and the next one when it ends; it is to be run for as long as the tier is used.
    pub fn new(source: ContainerSource, tasks: Tasks) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared {
            driver: Mutex::default(),
            asked: Mutex::default(),
            next_id: AtomicU64::new(1),
            offer: watch::Sender::new(Err("the container driver has not said anything yet".to_owned())),
        });
        let follow = Arc::clone(&shared).follow(source);
        (Self { shared, tasks }, follow)
    }
}

impl Shared {
    async fn follow(self: Arc<Self>, source: ContainerSource) {
        loop {
            source.until_docker(&self.offer).await;
            let why = match source.driver().await {
                Ok((socket, process)) => {
                    let ended = self.listen(socket).await;
                    if let Some(process) = process {
                        reap(process).await;
                    }
                    ended.map_or_else(|error| format!("its driver failed: {error}"), |()| "its driver ended".to_owned())
                }
                Err(error) => crate::error_chain(&error),
            };
            tracing::error!(why, "there is no container driver; asking for another one");
            *self.driver.lock() = None;
            drop(self.offer.send_replace(Err(format!("there is no container driver: {why}"))));
            // Nobody tells of them any more: dropping the senders is what says so.
            self.asked.lock().clear();
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn listen(&self, socket: OwnedFd) -> io::Result<()> {
        let driver = Arc::new(Packets::try_new(socket)?);
        *self.driver.lock() = Some(Arc::clone(&driver));
        while let Some((report, stream)) = driver.receive().await? {
            self.hear(report, stream);
        }
        Ok(())
    }

    fn hear(&self, report: Report, stream: Option<OwnedFd>) {
        match report {
            Report::Ready(offer) => {
                tracing::info!(docker = offer.release, "Docker answers: functions in containers are run");
                let offer = Offer { missing: offer.missing, refuses: offer.refuses };
                drop(self.offer.send_replace(Ok(Arc::new(offer))));
            }
            Report::Absent { reason } => {
                tracing::info!(reason, "functions in containers are not run");
                drop(self.offer.send_replace(Err(reason)));
            }
            Report::Started { id } => {
                let waiting = self.asked.lock().get_mut(&id).and_then(|asked| asked.started.take());
                match (waiting, stream) {
                    (Some(waiting), Some(stream)) => drop(waiting.send(Ok(stream))),
                    _ => self.end(id),
                }
            }
            Report::Failed { id, why, message } => {
                let asked = self.asked.lock().remove(&id);
                if let Some(waiting) = asked.and_then(|asked| asked.started) {
                    let _ = waiting.send(Err(LaunchError::Tier { message, is_away: why == Why::Absent }));
                }
            }
            Report::Ended { id, code } => {
                if let Some(Asked { gone: Some(gone), unwatched, .. }) = self.asked.lock().remove(&id) {
                    let _ = gone.send(if unwatched { HostEnd::Lost } else { HostEnd::Ended(status(code)) });
                }
            }
            Report::Unwatched { id } => {
                if let Some(asked) = self.asked.lock().get_mut(&id) {
                    asked.unwatched = true;
                }
            }
        }
    }

    fn end(&self, id: u64) {
        let known = self.asked.lock().contains_key(&id);
        let driver = self.driver.lock().clone();
        if let Some(driver) = driver.filter(|_| known)
            && let Err(error) = driver.try_send(&Request::End { id })
        {
            // With its stream the container ends by itself, and Docker removes it.
            tracing::warn!(%error, "the container driver does not listen");
        }
    }
}

/// What the container's first process ended with; unknown of one that was removed at once.
fn status(code: Option<i32>) -> ExitStatus {
    match code {
        Some(code) if code > SIGNALED => ExitStatus::Signaled(code - SIGNALED),
        Some(code) if code > 0 => ExitStatus::Exited(code),
        _ => ExitStatus::Signaled(SIGKILL),
    }
}

async fn reap(mut process: std::process::Child) {
    for _ in 0..500 {
        if !matches!(process.try_wait(), Ok(None)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[async_trait]
impl Sandbox for Containers {
    async fn start(
        &self,
        start: Start,
        stdio: [OwnedFd; 3],
        channel: Option<OwnedFd>,
    ) -> Result<Box<dyn Process>, LaunchError> {
        let shared = &self.shared;
        let away = |message: String| LaunchError::Tier { message, is_away: true };
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let Some(driver) = shared.driver.lock().clone() else {
            return Err(away("there is no container driver for the moment".to_owned()));
        };
        let (started_tx, started) = oneshot::channel();
        let (gone_tx, gone) = oneshot::channel();
        let asked = Asked { started: Some(started_tx), gone: Some(gone_tx), unwatched: false };
        shared.asked.lock().insert(id, asked);
        let host: Arc<dyn Host> = Arc::new(OneContainer { shared: Arc::clone(shared), id });
        // From here on, whatever was made of it is taken away with the call, and in the end with the process.
        let host = EndsHost(host);
        let request = Request::Start(Box::new(container(id, &start)));
        driver.send(&request, None).await.map_err(LaunchError::Socket)?;
        let stream = started.await.map_err(|_| away("the container driver ended".to_owned()))??;
        let stream = std::os::unix::net::UnixStream::from(stream);
        stream.set_nonblocking(true).map_err(LaunchError::Socket)?;
        let stream = UnixStream::from_std(stream).map_err(LaunchError::Socket)?;
        let gone = gone.map(|gone| gone.unwrap_or(HostEnd::Lost)).boxed();
        let waiting = Waiting { stream, host, gone };
        let is_worker = channel.is_some();
        Ok(Box::new(remote::start(&self.tasks, waiting, program(start, is_worker), stdio, channel).await?))
    }
}

impl Tier for Containers {
    fn offer(&self) -> watch::Receiver<Result<Arc<Offer>, String>> {
        self.shared.offer.subscribe()
    }
}

fn container(id: u64, start: &Start) -> Container {
    let limits = start.request.limits;
    Container {
        id,
        function: start.function.to_string(),
        version: start.version,
        image: start.image.clone().unwrap_or_default(),
        code: start.code.clone(),
        memory_bytes: limits.memory_bytes,
        cpu_millicores: limits.cpu_millicores,
        pids_max: limits.pids_max,
        open_files: limits.open_files,
        network: start.request.network,
    }
}

/// What the shim is told: the container's user and limits hold for it already.
fn program(start: Start, channel: bool) -> flux_shim::Start {
    flux_shim::Start {
        program: start.request.program,
        args: start.request.args,
        env: start.request.env,
        directory: if start.code.is_some() { CODE.to_owned() } else { String::new() },
        user: None,
        open_files: 0,
        channel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_exit_code_is_its_first_processs_end() {
        for (code, expected) in [
            (Some(137), ExitStatus::Signaled(9)),
            (Some(143), ExitStatus::Signaled(15)),
            (Some(70), ExitStatus::Exited(70)),
            (None, ExitStatus::Signaled(9)),
            (Some(0), ExitStatus::Signaled(9)),
        ] {
            assert_eq!(status(code), expected, "{code:?}");
        }
    }
}
