//! Reading a process's two pipes: everything is collected, and published as it comes.
//!
//! The first piece is published at once, further ones within [`limits::OUTPUT_PUBLISH_WITHIN`]. Live output may be lost
//! (a watcher asks the agent for what it missed, and the record has it all), so a broker that does not take it at once is
//! not waited for: a function must not stand still because nobody can listen.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use flux_protocol::{Chunk, Stream, agent::OutputMessage, limits, subject};
use flux_secrets::{Patterns, Redactor};
use tokio::net::unix::pipe;

use super::{coalesce::Coalescer, stdin::PIPE_BYTES};
use crate::{held::Execution, node::Node};

/// A first read; most functions print less.
const SMALL_READ: usize = 4 * limits::KIB;
/// Longest wait for a broker whose buffer is full.
const PUBLISH_WITHIN: Duration = Duration::from_millis(20);
/// Beyond this many chunks of one attempt they are made a second apart: what describes a chunk takes memory as well.
const CHUNKS: u64 = 65_536;
const SLOW_INTERVAL: Duration = Duration::from_secs(1);

/// The end of a pipe that is read. Most processes are over before anyone would have waited for their output, so it goes
/// into the event loop only when somebody does: two wakes and four system calls less for each execution.
pub(crate) enum Source {
    Open(OwnedFd),
    Watched(pipe::Receiver),
    Ended,
}

impl Source {
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self, Self::Ended)
    }

    /// Puts it into the event loop.
    fn watch(&mut self) -> io::Result<()> {
        match std::mem::replace(self, Self::Ended) {
            Self::Open(fd) => *self = Self::Watched(pipe::Receiver::from_owned_fd(fd)?),
            other => *self = other,
        }
        Ok(())
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Watched(pipe) => pipe.readable().await,
            Self::Open(_) | Self::Ended => std::future::pending().await,
        }
    }

    /// Appends what is there, as far as the event loop has heard of it.
    fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Watched(pipe) => pipe.try_read_buf(buffer),
            Self::Open(_) | Self::Ended => self.read_now(buffer),
        }
    }

    /// Appends what is there, also what nobody has heard of yet.
    fn read_now(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let fd = match self {
            Self::Open(fd) => fd.as_fd(),
            Self::Watched(pipe) => pipe.as_fd(),
            Self::Ended => return Ok(0),
        };
        let mut there = [0; SMALL_READ];
        let count = nix::unistd::read(fd, &mut there)?;
        buffer.extend_from_slice(&there[..count]);
        Ok(count)
    }

    /// Throws away what is there: nobody's, once all who could have written it are gone.
    pub(crate) fn discard(&self) {
        let mut nobodys = BytesMut::new();
        while matches!(self.read_now(&mut nobodys), Ok(1..)) {
            nobodys.clear();
        }
    }

    /// Whether nothing is there to read.
    pub(crate) fn is_silent(&self) -> bool {
        !matches!(self.read_now(&mut BytesMut::new()), Ok(1..))
    }
}

/// Both pipes of one process.
pub(super) struct Capture {
    node: Arc<Node>,
    execution: Arc<Execution>,
    attempt: u32,
    stdout: Source,
    stderr: Source,
    buffer: BytesMut,
    read_size: usize,
    waiting: Coalescer,
    /// Of stdout and stderr, where there is something to hide.
    redactors: Option<[Redactor; 2]>,
    published_at: Option<Instant>,
    chunks: u64,
}

impl Capture {
    pub(super) fn new(
        node: Arc<Node>,
        execution: Arc<Execution>,
        attempt: u32,
        [stdout, stderr]: [Source; 2],
        hidden: Option<&Patterns>,
    ) -> Self {
        Self {
            node,
            execution,
            attempt,
            stdout,
            stderr,
            buffer: BytesMut::new(),
            read_size: SMALL_READ,
            waiting: Coalescer::default(),
            redactors: hidden.map(|patterns| [(); 2].map(|()| Redactor::new(patterns.clone()))),
            published_at: None,
            chunks: 0,
        }
    }

    /// Reads and publishes until both pipes are at their end. May be dropped and called again.
    pub(super) async fn pump(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Err(error) = self.source(stream).watch() {
                self.unreadable(stream, &error);
            }
        }
        while self.is_open() {
            let due = self.due();
            tokio::select! {
                ready = self.stdout.readable() => drop(self.read(Stream::Stdout, ready)),
                ready = self.stderr.readable() => drop(self.read(Stream::Stderr, ready)),
                () = sleep_until(due) => {}
            }
            if self.due().is_some_and(|due| due <= Instant::now()) {
                self.publish(false).await;
            }
        }
    }

    /// Reads what is there without waiting. `false` where a pipe has not come to its end: someone still holds it open.
    pub(super) fn read_rest(&mut self) -> bool {
        for stream in [Stream::Stdout, Stream::Stderr] {
            // No more than a pipe holds: whoever still writes must not keep this up.
            for _ in 0..PIPE_BYTES / SMALL_READ {
                if !self.take(stream, Source::read_now) {
                    break;
                }
            }
        }
        !self.is_open()
    }

    fn is_open(&self) -> bool {
        self.stdout.is_open() || self.stderr.is_open()
    }

    fn source(&mut self, stream: Stream) -> &mut Source {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr | Stream::Result => &mut self.stderr,
        }
    }

    fn unreadable(&mut self, stream: Stream, error: &io::Error) {
        tracing::warn!(execution_id = %self.execution.id, %error, "a pipe could not be read to its end");
        *self.source(stream) = Source::Ended;
    }

    /// Publishes what is left. A worker's pipes go on to its next invocation.
    pub(super) async fn finish(mut self) -> [Source; 2] {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(redactors) = &mut self.redactors {
                let rest = redactor(redactors, stream).finish();
                self.waiting.push(stream, rest.as_slice().into());
            }
        }
        self.publish(true).await;
        [self.stdout, self.stderr]
    }

    /// When what waits is to be published.
    fn due(&self) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        let interval = if self.chunks < CHUNKS { limits::OUTPUT_PUBLISH_WITHIN } else { SLOW_INTERVAL };
        match self.published_at {
            Some(at) if self.waiting.len() < limits::INLINE_OUTPUT => Some(at + interval),
            _ => Some(Instant::now()),
        }
    }

    /// Whether there was something, so that there may be more.
    fn read(&mut self, stream: Stream, ready: io::Result<()>) -> bool {
        self.take(stream, |source, buffer| ready.and_then(|()| source.read(buffer)))
    }

    fn take(&mut self, stream: Stream, read: impl FnOnce(&Source, &mut BytesMut) -> io::Result<usize>) -> bool {
        if self.buffer.capacity() < self.read_size / 2 {
            self.buffer.reserve(self.read_size);
        }
        let room = self.buffer.capacity();
        let source = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr | Stream::Result => &self.stderr,
        };
        match read(source, &mut self.buffer) {
            Ok(0) => {
                *self.source(stream) = Source::Ended;
                false
            }
            Ok(count) => {
                if count == room {
                    self.read_size = limits::OUTPUT_CHUNK;
                }
                let read = self.buffer.split();
                match &mut self.redactors {
                    None => self.waiting.push(stream, read),
                    Some(redactors) => {
                        let shown = redactor(redactors, stream).push(&read);
                        self.waiting.push(stream, shown.as_slice().into());
                    }
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                self.unreadable(stream, &error);
                false
            }
        }
    }

    async fn publish(&mut self, last: bool) {
        let mut chunks: Vec<Chunk> = Vec::new();
        {
            let mut collector = self.execution.output.lock();
            self.waiting.take(last, |stream, data| chunks.push(collector.push(stream, data)));
        }
        if chunks.is_empty() {
            return;
        }
        self.published_at = Some(Instant::now());
        self.chunks += chunks.len() as u64;
        for chunk in chunks {
            let message = OutputMessage { attempt: self.attempt, chunk };
            let Ok(body) = serde_json::to_vec(&message) else { continue };
            let subject = subject::output(&self.node.id, self.execution.id);
            // Full, closed or slow: see the module's text.
            let _ = tokio::time::timeout(PUBLISH_WITHIN, self.node.broker.signal(subject, body.into())).await;
        }
    }
}

const fn redactor(redactors: &mut [Redactor; 2], stream: Stream) -> &mut Redactor {
    let [stdout, stderr] = redactors;
    match stream {
        Stream::Stdout => stdout,
        Stream::Stderr | Stream::Result => stderr,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
