//! A process behind a shim, made to look like one of the launcher's: frames on one side, descriptors on the other.
//!
//! Two tasks, one for each direction, so that neither waits for the other: what the function prints must be taken while it is told
//! something large, and the other way round. Output and channel go through one task in the order in which the shim sent them, which is
//! the order in which they were written.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use flux_launcher::wire::RefusedReport;
use flux_protocol::{limits::KIB, time};
use flux_runtime::Tasks;
use flux_shim::{Decoder, Exit, FromShim, Status, Stream, ToShim, frame};
use futures::future::BoxFuture;
use nix::libc::SIGKILL;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    sync::{mpsc, oneshot},
};

use crate::{
    executor::Process,
    launch::{Ended, EndedReport, ExitStatus, LaunchError},
};

/// From the stream to the start of the program.
const STARTS_WITHIN: Duration = Duration::from_secs(10);
/// What was killed and does not say so is taken away.
const KILLED_WITHIN: Duration = Duration::from_millis(500);
/// After a stream's end without a word, for whoever watches the machine behind it.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// Signals that may wait.
const SIGNALS: usize = 64;
/// Room for most answers in one read.
const READ: usize = 16 * KIB;

/// What the shim is PID 1 of.
pub(super) trait Host: Send + Sync + 'static {
    /// Takes it away, whatever runs there.
    fn end(&self);
}

/// What became of it, where its shim could not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostEnd {
    /// As a process's end is told: by its first process's exit code or signal.
    Ended(ExitStatus),
    /// Whoever gave it went away, and it too; nobody saw its end.
    Lost,
}

/// A shim to be told what to start.
pub(super) struct Waiting {
    pub(super) stream: UnixStream,
    pub(super) host: EndsHost,
    /// Resolves when it is gone.
    pub(super) gone: BoxFuture<'static, HostEnd>,
}

/// What the shim said last of its process.
#[derive(Debug, Default)]
struct Seen {
    beside: AtomicU32,
    resident_bytes: AtomicU64,
}

/// Ends what is behind it when it is dropped.
pub(super) struct EndsHost(pub(super) Arc<dyn Host>);

impl Drop for EndsHost {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A process that runs behind a shim. Dropped, all of it goes.
pub(super) struct Remote {
    pid: u32,
    started_at_us: u64,
    signals: mpsc::Sender<i32>,
    seen: Arc<Seen>,
    ended: Option<oneshot::Receiver<Ended>>,
    outcome: Option<Ended>,
    host: EndsHost,
}

/// Where what a shim sends goes.
struct Outlets {
    stdout: Option<pipe::Sender>,
    stderr: Option<pipe::Sender>,
    channel: Option<OwnedWriteHalf>,
}

/// Has a shim start a process with these descriptors.
pub(super) async fn start(
    tasks: &Tasks,
    waiting: Waiting,
    start: flux_shim::Start,
    stdio: [OwnedFd; 3],
    channel: Option<OwnedFd>,
) -> Result<Remote, LaunchError> {
    let Waiting { stream, host, gone } = waiting;
    let met = Met::start(stream, start).await?;
    run(tasks, met, Told::default(), host, gone, stdio, channel)
}

/// A shim whose process runs.
pub(super) struct Met {
    pub(super) from_shim: FromStream,
    pub(super) to_shim: OwnedWriteHalf,
    pub(super) pid: u32,
    pub(super) started_at_us: u64,
}

/// What a process was told, and said, before its caller's descriptors were there.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Bytes at the beginning of the channel that it has heard already.
    pub(super) bytes: usize,
    pub(super) heard: Vec<FromShim>,
}

impl Met {
    pub(super) async fn start(stream: UnixStream, start: flux_shim::Start) -> Result<Self, LaunchError> {
        let mut bytes = Vec::new();
        ToShim::Start(Box::new(start)).encode(&mut bytes);
        Self::say(stream, &bytes).await
    }

    /// A shim whose process was started on an earlier connection.
    pub(super) async fn again(stream: UnixStream) -> Result<Self, LaunchError> {
        Self::say(stream, &[]).await
    }

    async fn say(stream: UnixStream, bytes: &[u8]) -> Result<Self, LaunchError> {
        let (from_shim, mut to_shim) = stream.into_split();
        let mut from_shim = FromStream { half: from_shim, decoder: Decoder::default(), buffer: vec![0; READ].into() };
        let starting = async {
            to_shim.write_all(bytes).await?;
            from_shim.started().await
        };
        match tokio::time::timeout(STARTS_WITHIN, starting).await {
            Ok(Ok(Ok((pid, started_at_us)))) => Ok(Self { from_shim, to_shim, pid, started_at_us }),
            Ok(Ok(Err(refused))) => Err(LaunchError::Refused(refused)),
            Ok(Err(error)) => Err(not_started(&format!("its shim's stream failed: {error}"))),
            Err(_) => Err(not_started("its shim did not answer in time")),
        }
    }
}

/// From here on it is what its caller's descriptors are connected to.
pub(super) fn run(
    tasks: &Tasks,
    met: Met,
    before: Told,
    host: EndsHost,
    gone: BoxFuture<'static, HostEnd>,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    channel: Option<OwnedFd>,
) -> Result<Remote, LaunchError> {
    let Met { from_shim, to_shim, pid, started_at_us } = met;
    let (told, said) = match channel.map(channel_ends).transpose().map_err(LaunchError::Socket)? {
        Some((told, said)) => (Some(told), Some(said)),
        None => (None, None),
    };
    let sender = |fd| pipe::Sender::from_owned_fd(fd).map_err(LaunchError::Socket);
    let outlets = Outlets { stdout: Some(sender(stdout)?), stderr: Some(sender(stderr)?), channel: said };
    let (signals, asked) = mpsc::channel(SIGNALS);
    let (ended_tx, ended) = oneshot::channel();
    let seen = Arc::new(Seen::default());
    let feed = if told.is_none() { Some(File::from(stdin)) } else { None };
    let told = told.map(|half| Channel { half, skip: before.bytes });
    tasks.spawn("to a shim", tell(to_shim, feed, told, asked, Arc::clone(&host.0)));
    tasks.spawn("from a shim", hear(from_shim, before.heard, outlets, Arc::clone(&seen), gone, ended_tx));
    Ok(Remote { pid, started_at_us, signals, seen, ended: Some(ended), outcome: None, host })
}

fn not_started(why: &str) -> LaunchError {
    LaunchError::Tier { message: format!("the function was not started: {why}"), is_away: false }
}

fn channel_ends(channel: OwnedFd) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    let channel = std::os::unix::net::UnixStream::from(channel);
    channel.set_nonblocking(true)?;
    Ok(UnixStream::from_std(channel)?.into_split())
}

/// The caller's end of a worker's channel, less what the worker has heard already.
struct Channel {
    half: OwnedReadHalf,
    skip: usize,
}

/// The shim's words, one after another.
pub(super) struct FromStream {
    half: OwnedReadHalf,
    decoder: Decoder,
    buffer: Box<[u8]>,
}

impl FromStream {
    async fn started(&mut self) -> io::Result<Result<(u32, u64), RefusedReport>> {
        loop {
            match self.next().await? {
                Some(FromShim::Hello { version: frame::VERSION }) => {}
                Some(FromShim::Started { pid, started_at_us }) => return Ok(Ok((pid, started_at_us))),
                Some(FromShim::Refused { errno, message }) => {
                    return Ok(Err(RefusedReport { id: 0, step: "exec".to_owned(), errno, message }));
                }
                Some(other) => return Err(io::Error::other(format!("it said {other:?}"))),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    pub(super) async fn next(&mut self) -> io::Result<Option<FromShim>> {
        loop {
            if let Some(said) = self.decoder.next_from_shim().map_err(io::Error::other)? {
                return Ok(Some(said));
            }
            match self.half.read(&mut self.buffer).await? {
                0 => return Ok(None),
                count => self.decoder.push(&self.buffer[..count]),
            }
        }
    }
}

/// Everything that goes to the shim, until its caller lets go of it; that closes the stream, and ends all behind it.
async fn tell(
    mut to_shim: OwnedWriteHalf,
    stdin: Option<File>,
    mut channel: Option<Channel>,
    mut signals: mpsc::Receiver<i32>,
    host: Arc<dyn Host>,
) {
    let mut frames = Vec::new();
    let mut buffer = vec![0; frame::CHUNK];
    let mut stdin = stdin;
    // Signals that came while a frame was on its way.
    let mut late = Vec::new();
    loop {
        frames.clear();
        tokio::select! {
            biased;
            signal = next_signal(&mut late, &mut signals) => match signal {
                Some(signal) => {
                    ToShim::Signal(signal).encode(&mut frames);
                    if signal == SIGKILL {
                        // Behind what the function does not read, it would wait with it.
                        let _ = tokio::time::timeout(KILLED_WITHIN, to_shim.write_all(&frames)).await;
                        break;
                    }
                }
                None => return,
            },
            // Whole in a pipe, or in memory: reading it does not wait.
            () = std::future::ready(()), if stdin.is_some() => {
                let count = stdin.as_mut().and_then(|stdin| stdin.read(&mut buffer).ok()).unwrap_or(0);
                frame::encode_stdin(&buffer[..count], &mut frames);
                if count == 0 {
                    stdin = None;
                }
            }
            count = read(channel.as_mut(), &mut buffer), if channel.is_some() => match count {
                0 => {
                    channel = None;
                    frame::encode_channel(&[], &mut frames);
                }
                count => frame::encode_channel(&buffer[..count], &mut frames),
            },
        }
        let sent = tokio::select! {
            biased;
            sent = to_shim.write_all(&frames) => sent.is_ok(),
            () = killed(&mut late, &mut signals) => false,
        };
        if !sent {
            break;
        }
    }
    // Its end is told by who hears; where that takes long, there is a harder way.
    let _ = tokio::time::timeout(KILLED_WITHIN, until_closed(&mut signals)).await;
    host.end();
    until_closed(&mut signals).await;
}

async fn next_signal(late: &mut Vec<i32>, signals: &mut mpsc::Receiver<i32>) -> Option<i32> {
    if late.is_empty() { signals.recv().await } else { Some(late.remove(0)) }
}

/// Until a SIGKILL comes, or nobody can send one any more.
async fn killed(late: &mut Vec<i32>, signals: &mut mpsc::Receiver<i32>) {
    while let Some(signal) = signals.recv().await.filter(|signal| *signal != SIGKILL) {
        late.push(signal);
    }
}

async fn until_closed(signals: &mut mpsc::Receiver<i32>) {
    while signals.recv().await.is_some() {}
}

async fn read(channel: Option<&mut Channel>, buffer: &mut [u8]) -> usize {
    let Some(channel) = channel else { return std::future::pending().await };
    while channel.skip > 0 {
        let most = channel.skip.min(buffer.len());
        match channel.half.read(&mut buffer[..most]).await.unwrap_or(0) {
            0 => return 0,
            count => channel.skip -= count,
        }
    }
    channel.half.read(buffer).await.unwrap_or(0)
}

/// Everything that comes from the shim, until the process's end.
async fn hear(
    mut from_shim: FromStream,
    before: Vec<FromShim>,
    mut outlets: Outlets,
    seen: Arc<Seen>,
    gone: BoxFuture<'static, HostEnd>,
    ended: oneshot::Sender<Ended>,
) {
    for said in before {
        outlets.pass_on(said, &seen).await;
    }
    let exit = loop {
        match from_shim.next().await {
            Ok(Some(FromShim::Exited(exit))) => break Some(exit),
            Ok(Some(said)) => outlets.pass_on(said, &seen).await,
            Ok(None) => break None,
            Err(error) => {
                tracing::debug!(%error, "a shim's stream ended");
                break None;
            }
        }
    };
    // What it wrote is at its end when its end is told.
    drop(outlets);
    let end = match exit {
        Some(exit) => Ended::Finished(report(&exit)),
        None => match tokio::time::timeout(HEARD_WITHIN, gone).await {
            Ok(HostEnd::Ended(status)) => Ended::Finished(unseen(status)),
            Ok(HostEnd::Lost) | Err(_) => Ended::LauncherLost,
        },
    };
    let _ = ended.send(end);
}

impl Outlets {
    async fn pass_on(&mut self, said: FromShim, seen: &Seen) {
        match said {
            FromShim::Output(Stream::Stdout, bytes) => write(&mut self.stdout, &bytes).await,
            FromShim::Output(Stream::Stderr, bytes) => write(&mut self.stderr, &bytes).await,
            FromShim::Channel { beside, resident_bytes, bytes } => {
                seen.beside.store(beside, Ordering::Relaxed);
                seen.resident_bytes.store(resident_bytes, Ordering::Relaxed);
                write(&mut self.channel, &bytes).await;
            }
            _ => {}
        }
    }
}

/// Nobody reads any more: nobody needs it.
async fn write<W: tokio::io::AsyncWrite + Unpin>(outlet: &mut Option<W>, bytes: &[u8]) {
    if let Some(open) = outlet
        && open.write_all(bytes).await.is_err()
    {
        *outlet = None;
    }
}

fn report(exit: &Exit) -> EndedReport {
    EndedReport {
        id: 0,
        status: match exit.status {
            Status::Exited(code) => ExitStatus::Exited(code),
            Status::Signaled(signal) => ExitStatus::Signaled(signal),
        },
        oom_killed: exit.oom_killed,
        cpu_us: exit.cpu_us,
        memory_peak_bytes: exit.memory_peak_bytes,
        ended_at_us: exit.ended_at_us,
    }
}

fn unseen(status: ExitStatus) -> EndedReport {
    let ended_at_us = u64::try_from(time::now().as_micros()).unwrap_or(0);
    EndedReport { id: 0, status, oom_killed: false, cpu_us: 0, memory_peak_bytes: 0, ended_at_us }
}

#[async_trait]
impl Process for Remote {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn started_at_us(&self) -> u64 {
        self.started_at_us
    }

    fn kill(&self, signal: i32) {
        if self.signals.try_send(signal).is_err() {
            // So many wait that none is heard.
            self.host.0.end();
        }
    }

    async fn is_alone(&mut self) -> bool {
        self.seen.beside.load(Ordering::Relaxed) == 0
    }

    fn resident_bytes(&self) -> Option<u64> {
        Some(self.seen.resident_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    async fn wait(&mut self) -> Ended {
        if let Some(outcome) = self.outcome {
            return outcome;
        }
        let outcome = match self.ended.as_mut() {
            Some(ended) => ended.await.unwrap_or(Ended::LauncherLost),
            None => Ended::LauncherLost,
        };
        self.ended = None;
        self.outcome = Some(outcome);
        outcome
    }
}
