//! The agent's end of a worker's channel.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use flux_protocol::limits;
use flux_worker::{
    Call, Decoder, Fault, FrameError, FromWorker, Load, Over, ToWorker, Used, bootstrap::Bootstrap, frame,
};
use nix::sys::socket::{MsgFlags, recv};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

/// A payload up to this size goes out with its frame's head; a larger one is not copied for that.
const JOINED: usize = 64 * limits::KIB;
/// Room for most answers in one read.
const READ: usize = 16 * limits::KIB;

#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    /// Until its first invocation.
    first: Option<FirstWords>,
    decoder: Decoder,
    out: Vec<u8>,
    forks: Arc<Forks>,
}

/// Whether a worker's process has a child that serves, or waits to. Known once it has loaded its handler.
#[derive(Debug, Default)]
pub(crate) struct Forks {
    does: AtomicBool,
    /// Of one that was to, and does not.
    why_not: OnceLock<String>,
}

impl Forks {
    pub(crate) fn does(&self) -> bool {
        self.does.load(Ordering::Acquire)
    }

    /// Why it served by itself, and can serve nobody else.
    pub(crate) fn why_not(&self) -> Option<&str> {
        self.why_not.get().map(String::as_str)
    }
}

/// What a worker is told before its first invocation.
#[derive(Debug, Clone)]
pub(crate) struct FirstWords {
    pub(crate) bootstrap: Bootstrap,
    pub(crate) load: Load,
}

impl FirstWords {
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        ToWorker::Program(self.bootstrap.program).encode_head(into);
        ToWorker::Load(&self.load).encode_head(into);
    }
}

/// An invocation that was answered.
#[derive(Debug)]
pub(crate) struct Served {
    /// When a cold worker had its handler.
    pub(crate) loaded_at: Option<Instant>,
    pub(crate) answered_at: Instant,
    pub(crate) used: Used,
    pub(crate) answer: Result<Bytes, Fault>,
}

/// A forked child that ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Died {
    /// When a cold worker had its handler.
    pub(crate) loaded_at: Option<Instant>,
    pub(crate) over: Over,
}

/// What came of an invocation.
#[derive(Debug)]
pub(crate) enum Exchange {
    Served(Served),
    /// The process that was forked for it ended without an answer.
    Died(Died),
    /// The handler could not be loaded.
    NotLoaded(Fault),
    /// The worker was gone, or went before it had read all of it: it began nothing.
    NotSent,
    /// Its end was closed before an answer came: its process ends, or has.
    Closed,
    /// It said what is not of the protocol.
    Nonsense(String),
}

/// Why nothing more is to be heard.
enum Unheard {
    /// The worker's end was closed before it had read all that it was told.
    Unread,
    Nonsense(FrameError),
}

impl From<FrameError> for Unheard {
    fn from(error: FrameError) -> Self {
        Self::Nonsense(error)
    }
}

impl Channel {
    /// A channel, and the worker's end of it, which reads as any file does: waiting.
    pub(crate) fn pair(first: FirstWords) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from_std(ours)?;
        let (decoder, out, forks) = (Decoder::default(), Vec::new(), Arc::default());
        Ok((Self { stream, first: Some(first), decoder, out, forks }, theirs.into()))
    }

    pub(crate) const fn forks(&self) -> &Arc<Forks> {
        &self.forks
    }

    /// After an answer: waits for the end of the child that gave it. `None` where something else is said.
    pub(crate) async fn until_over(&mut self) -> Option<Over> {
        match self.receive().await {
            Ok(Some(FromWorker::Over(over))) => Some(over),
            _ => None,
        }
    }

    /// Nothing is left of the child that ended: the next one may begin.
    pub(crate) async fn fork(&mut self) -> io::Result<()> {
        self.out.clear();
        ToWorker::Fork.encode_head(&mut self.out);
        self.stream.write_all(&self.out).await
    }

    /// Whether it is open, and the worker says nothing unasked.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let heard = recv(self.stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        self.decoder.is_empty() && heard == Err(nix::errno::Errno::EAGAIN)
    }

    /// Whether the worker is gone and had not read all that it was told. The kernel says so, once.
    pub(crate) fn is_unread(&self) -> bool {
        let mut byte = [0];
        let heard = recv(self.stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        heard == Err(nix::errno::Errno::ECONNRESET)
    }

    /// Has one invocation served.
    pub(crate) async fn exchange(&mut self, call: &Call, payload: &Bytes) -> Exchange {
        let first = self.first.take();
        let is_to_fork = first.as_ref().is_some_and(|first| first.load.fresh);
        if let Err(error) = self.send(first.as_ref(), call, payload).await {
            tracing::debug!(%error, "an invocation was not sent whole");
            // What is said before its end, such as why the handler cannot be loaded, is still there.
            if first.is_none() {
                return Exchange::NotSent;
            }
        }
        let mut loaded_at = None;
        loop {
            let said = match self.receive().await {
                Ok(Some(said)) => said,
                Ok(None) => return Exchange::Closed,
                Err(Unheard::Unread) if first.is_none() => return Exchange::NotSent,
                Err(Unheard::Unread) => return Exchange::Closed,
                Err(Unheard::Nonsense(error)) => return Exchange::Nonsense(error.to_string()),
            };
            let (used, answer) = match said {
                FromWorker::Hello { version, .. } if version != frame::VERSION => {
                    let ours = frame::VERSION;
                    return Exchange::Nonsense(format!("it speaks version {version} of the protocol, and not {ours}"));
                }
                FromWorker::Hello { .. } => continue,
                FromWorker::Ready { cannot_fork } => {
                    loaded_at = Some(Instant::now());
                    match cannot_fork.filter(|_| is_to_fork) {
                        Some(why) => drop(self.forks.why_not.set(why)),
                        None => self.forks.does.store(is_to_fork, Ordering::Release),
                    }
                    continue;
                }
                FromWorker::Over(over) if over.is_unread && first.is_none() => return Exchange::NotSent,
                FromWorker::Over(over) => return Exchange::Died(Died { loaded_at, over }),
                FromWorker::Failed(fault) => return Exchange::NotLoaded(fault),
                FromWorker::Result(used, result) => (used, Ok(result)),
                FromWorker::Error(used, fault) => (used, Err(fault)),
            };
            return Exchange::Served(Served { loaded_at, answered_at: Instant::now(), used, answer });
        }
    }

    async fn send(&mut self, first: Option<&FirstWords>, call: &Call, payload: &Bytes) -> io::Result<()> {
        self.out.clear();
        if let Some(first) = first {
            first.encode(&mut self.out);
        }
        ToWorker::Invoke(call, payload).encode_head(&mut self.out);
        if payload.len() <= JOINED {
            self.out.extend_from_slice(payload);
            return self.stream.write_all(&self.out).await;
        }
        self.stream.write_all(&self.out).await?;
        self.stream.write_all(payload).await
    }

    async fn receive(&mut self) -> Result<Option<FromWorker>, Unheard> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let buffer = self.decoder.buffer();
            if buffer.capacity() - buffer.len() < READ {
                buffer.reserve(READ);
            }
            match self.stream.read_buf(buffer).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Unheard::Unread),
                Err(error) => {
                    tracing::debug!(%error, "a worker's channel ended");
                    return Ok(None);
                }
            }
        }
    }
}
