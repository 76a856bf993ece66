//! MicroVMs, as the agent asks their driver for them.

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
use flux_driver_link::Packets;
use flux_firecracker::{
    DRIVER, DRIVER_ARGUMENT, DriverConfig,
    wire::{Report, Request, Wanted},
};
use flux_launcher::wire::Network;
use flux_protocol::time;
use flux_runtime::Tasks;
use flux_shim::guest::{CODE, USER};
use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::{
    net::UnixStream,
    sync::{oneshot, watch},
};

use super::{
    Offer, Sandbox, Start, Tier,
    loaded::{self, Loaded},
    remote::{self, EndsHost, Host, HostEnd, Met, Told},
};
use crate::{
    executor::Process,
    launch::{LaunchError, TreeLink},
};

/// Before a driver that ended is asked for again.
const PAUSE: Duration = Duration::from_secs(1);
/// For a handler to be loaded and its guest to become a snapshot; one that takes longer is called as it is.
const LOADS_WITHIN: Duration = Duration::from_secs(10);
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(30);

/// Where the driver comes from.
#[derive(Debug)]
pub enum MicrovmSource {
    /// The process tree's root, which has the privileges.
    Tree(TreeLink),
    /// This process starts it, with its own rights.
    Direct { program: PathBuf, config: Box<DriverConfig> },
}

impl MicrovmSource {
    async fn driver(&self) -> Result<(OwnedFd, Option<std::process::Child>), LaunchError> {
        match self {
            Self::Tree(link) => Ok((link.request_driver(DRIVER).await?, None)),
            Self::Direct { program, config } => {
                let started = flux_launcher::start_driver(program, DRIVER_ARGUMENT, &config.spec().config)
                    .map_err(LaunchError::Socket)?;
                Ok((started.socket, Some(started.child)))
            }
        }
    }
}

/// The tier `microvm`.
pub struct Microvms {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    driver: Mutex<Option<Arc<Packets>>>,
    asked: Mutex<HashMap<u64, Asked>>,
    next_id: AtomicU64,
    offer: watch::Sender<Result<Arc<Offer>, String>>,
}

/// What the driver says next of a guest.
struct Answer {
    stream: OwnedFd,
    restored: bool,
    snapshot: bool,
}

/// A guest that the driver has not said the end of.
struct Asked {
    answer: Option<oneshot::Sender<Result<Answer, LaunchError>>>,
    gone: Option<oneshot::Sender<HostEnd>>,
}

struct OneGuest {
    shared: Arc<Shared>,
    id: u64,
}

impl Host for OneGuest {
    fn end(&self) {
        self.shared.end(self.id);
    }
}

fn away(message: impl Into<String>) -> LaunchError {
    LaunchError::Tier { message: message.into(), is_away: true }
}

impl Microvms {
    /// The returned future gets a driver, and the next one when it ends; it is to be run for as long as the tier is used.
    pub fn new(source: MicrovmSource, tasks: Tasks) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared {
            driver: Mutex::default(),
            asked: Mutex::default(),
            next_id: AtomicU64::new(1),
            offer: watch::Sender::new(Err("no guest has been booted yet".to_owned())),
        });
        let follow = Arc::clone(&shared).follow(source);
        (Self { shared, tasks }, follow)
    }

    /// A worker whose handler is loaded, where a snapshot is to be taken, or was.
    async fn worker(&self, id: u64, answer: Answer, start: Start) -> Result<(Met, Told), LaunchError> {
        let failed = |error: io::Error| away(format!("its guest's connection failed: {error}"));
        let loads = start.loads.clone();
        if answer.restored {
            let mut met = Met::again(stream(answer.stream)?).await?;
            loaded::reseed(&mut met).await.map_err(failed)?;
            met.started_at_us = u64::try_from(time::now().as_micros()).unwrap_or(0);
            return Ok((met, loaded::of_clone(&loads)));
        }
        let mut met = Met::start(stream(answer.stream)?, program(start, true)).await?;
        if !answer.snapshot {
            return Ok((met, Told::default()));
        }
        let told = match loaded::load(&mut met, &loads, LOADS_WITHIN).await {
            Loaded::Ready(told) => told,
            Loaded::Otherwise(told) => return Ok((met, told)),
        };
        // The guest sees this connection end before it is stopped.
        let started_at_us = met.started_at_us;
        drop(met);
        let request = Request::Snapshot { id };
        let answer = tokio::time::timeout(SNAPSHOT_WITHIN, self.shared.ask(id, &request)).await;
        let answer = answer.map_err(|_| away("its snapshot was not taken in time"))??;
        let mut met = Met::again(stream(answer.stream)?).await?;
        loaded::reseed(&mut met).await.map_err(failed)?;
        met.started_at_us = started_at_us;
        Ok((met, told))
    }
}

impl Shared {
    async fn follow(self: Arc<Self>, source: MicrovmSource) {
        loop {
            let why = match source.driver().await {
                Ok((socket, process)) => {
                    let ended = self.listen(socket).await;
                    if let Some(mut process) = process {
                        // It ends with its socket; the kernel keeps its number until it was waited for.
                        let _ = tokio::task::spawn_blocking(move || process.wait()).await;
                    }
                    ended.map_or_else(|error| format!("its driver failed: {error}"), |()| "its driver ended".to_owned())
                }
                Err(error) => crate::error_chain(&error),
            };
            tracing::error!(why, "there is no driver of microVMs; asking for another one");
            *self.driver.lock() = None;
            drop(self.offer.send_replace(Err(format!("there is no driver of microVMs: {why}"))));
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
            Report::Ready { release, jailed } => {
                tracing::info!(firecracker = release, jailed, "a guest was booted: functions in microVMs are run");
                let mut offer = Offer { missing: Vec::new(), refuses: vec![Network::Host] };
                if !jailed {
                    let (layer, reason) = ("microvm jail", "Flux is not root, or was told of no jailer");
                    offer.missing.push(flux_launcher::Missing { layer: layer.to_owned(), reason: reason.to_owned() });
                }
                drop(self.offer.send_replace(Ok(Arc::new(offer))));
            }
            Report::Absent { reason } => {
                tracing::warn!(reason, "functions in microVMs are not run");
                drop(self.offer.send_replace(Err(reason)));
            }
            Report::Started { id, restored, snapshot } => self.answered(id, stream, restored, snapshot),
            Report::Snapshotted { id, problem } => {
                if let Some(problem) = problem {
                    tracing::warn!(problem, "no snapshot was taken of a guest");
                }
                self.answered(id, stream, false, false);
            }
            Report::Failed { id, message, retryable } => {
                if let Some(waiting) = self.asked.lock().remove(&id).and_then(|asked| asked.answer) {
                    let _ = waiting.send(Err(LaunchError::Tier { message, is_away: retryable }));
                }
            }
            Report::Ended { id } => {
                if let Some(gone) = self.asked.lock().remove(&id).and_then(|asked| asked.gone) {
                    let _ = gone.send(HostEnd::Lost);
                }
            }
        }
    }

    fn answered(&self, id: u64, stream: Option<OwnedFd>, restored: bool, snapshot: bool) {
        let waiting = self.asked.lock().get_mut(&id).and_then(|asked| asked.answer.take());
        match (waiting, stream) {
            (Some(waiting), Some(stream)) => drop(waiting.send(Ok(Answer { stream, restored, snapshot }))),
            _ => self.end(id),
        }
    }

    /// What the driver says next of this guest.
    async fn ask(&self, id: u64, request: &Request) -> Result<Answer, LaunchError> {
        let (sender, answer) = oneshot::channel();
        let driver = self.driver.lock().clone().ok_or_else(|| away("there is no driver of microVMs for the moment"))?;
        match self.asked.lock().get_mut(&id) {
            Some(asked) => asked.answer = Some(sender),
            None => return Err(away("the guest ended")),
        }
        driver.send(request, None).await.map_err(LaunchError::Socket)?;
        answer.await.map_err(|_| away("the driver of microVMs, or the guest, ended"))?
    }

    fn end(&self, id: u64) {
        let known = self.asked.lock().contains_key(&id);
        let driver = self.driver.lock().clone();
        if let Some(driver) = driver.filter(|_| known)
            && let Err(error) = driver.try_send(&Request::End { id })
        {
            // A guest that nobody is connected to ends by itself.
            tracing::warn!(%error, "the driver of microVMs does not listen");
        }
    }
}

fn stream(descriptor: OwnedFd) -> Result<UnixStream, LaunchError> {
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true).map_err(LaunchError::Socket)?;
    UnixStream::from_std(stream).map_err(LaunchError::Socket)
}

#[async_trait]
impl Sandbox for Microvms {
    async fn start(
        &self,
        start: Start,
        stdio: [OwnedFd; 3],
        channel: Option<OwnedFd>,
    ) -> Result<Box<dyn Process>, LaunchError> {
        let shared = &self.shared;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (gone_tx, gone) = oneshot::channel();
        shared.asked.lock().insert(id, Asked { answer: None, gone: Some(gone_tx) });
        let host: Arc<dyn Host> = Arc::new(OneGuest { shared: Arc::clone(shared), id });
        // From here on, whatever was made of it is taken away with the call, and in the end with the process.
        let host = EndsHost(host);
        let wanted = wanted(id, &start, channel.is_some())?;
        let answer = shared.ask(id, &Request::Start(Box::new(wanted))).await?;
        let (met, told) = match &channel {
            Some(_) => self.worker(id, answer, start).await?,
            None => (Met::start(stream(answer.stream)?, program(start, false)).await?, Told::default()),
        };
        let gone = gone.map(|gone| gone.unwrap_or(HostEnd::Lost)).boxed();
        Ok(Box::new(remote::run(&self.tasks, met, told, host, gone, stdio, channel)?))
    }
}

impl Tier for Microvms {
    fn offer(&self) -> watch::Receiver<Result<Arc<Offer>, String>> {
        self.shared.offer.subscribe()
    }
}

fn wanted(id: u64, start: &Start, is_worker: bool) -> Result<Wanted, LaunchError> {
    let missing = || LaunchError::Tier { message: "a microVM without code".to_owned(), is_away: false };
    let Start { function, version, request, code, loads, has_secrets, .. } = start;
    let memory_mb = u32::try_from(request.limits.memory_bytes >> 20).unwrap_or(u32::MAX);
    // All that the process is started with and told: another of anything is another guest.
    let whole = (function, version, &request.program, &request.args, &request.env, loads, request.limits.open_files);
    Ok(Wanted {
        id,
        function: format!("{function}@{version} {}", digest(&whole)),
        code: code.clone().ok_or_else(missing)?,
        memory_mb,
        cpu_millicores: request.limits.cpu_millicores,
        // Such a function is refused when it is deployed; a snapshot would keep its secrets on the disk.
        snapshot: is_worker && !loads.is_empty() && !has_secrets,
    })
}

fn digest(of: &impl serde::Serialize) -> String {
    flux_protocol::Digest::of(&serde_json::to_vec(of).unwrap_or_default()).to_string()
}

fn program(start: Start, channel: bool) -> flux_shim::Start {
    let mut env = start.request.env;
    for (name, value) in [("HOME", "/tmp"), ("TMPDIR", "/tmp"), ("LANG", "C.UTF-8")] {
        if env.iter().all(|(given, _)| given != name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    flux_shim::Start {
        program: start.request.program,
        args: start.request.args,
        env,
        directory: CODE.to_owned(),
        user: Some((USER, USER)),
        open_files: start.request.limits.open_files,
        channel,
    }
}

#[cfg(test)]
mod tests {
    use flux_launcher::wire::SpawnRequest;
    use flux_protocol::FunctionName;

    use super::*;

    #[test]
    fn a_worker_with_secrets_never_becomes_a_snapshot() {
        let mut start = Start {
            function: FunctionName::parse("f").expect("a name"),
            version: 1,
            request: SpawnRequest::default(),
            image: None,
            code: Some("/code".into()),
            loads: vec![1],
            has_secrets: false,
        };
        assert!(wanted(1, &start, true).expect("wanted").snapshot);
        start.has_secrets = true;
        assert!(!wanted(1, &start, true).expect("wanted").snapshot);
    }
}
