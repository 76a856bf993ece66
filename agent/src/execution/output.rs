//! Reading a process's two pipes: everything is collected, and published as it comes.
//!
//! The first piece is published at once, further ones within [`limits::OUTPUT_PUBLISH_WITHIN`]. Live output may be lost
//! (a watcher asks the agent for what it missed, and the record has it all), so a broker that does not take it at once is
//! not waited for: a function must not stand still because nobody can listen.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use flux_protocol::{Chunk, Stream, agent::OutputMessage, limits, subject};
use tokio::net::unix::pipe;

use super::coalesce::Coalescer;
use crate::{held::Execution, node::Node};

/// A first read; most functions print less.
const SMALL_READ: usize = 4 * limits::KIB;
/// Longest wait for a broker whose buffer is full.
const PUBLISH_WITHIN: Duration = Duration::from_millis(20);
/// Beyond this many chunks of one attempt they are made a second apart: what describes a chunk takes memory as well.
const CHUNKS: u64 = 65_536;
const SLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Both pipes of one process.
pub(super) struct Capture {
    node: Arc<Node>,
    execution: Arc<Execution>,
    attempt: u32,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    buffer: BytesMut,
    read_size: usize,
    waiting: Coalescer,
    published_at: Option<Instant>,
    chunks: u64,
}

impl Capture {
    pub(super) fn new(
        node: Arc<Node>,
        execution: Arc<Execution>,
        attempt: u32,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    ) -> Self {
        Self {
            node,
            execution,
            attempt,
            stdout: Some(stdout),
            stderr: Some(stderr),
            buffer: BytesMut::new(),
            read_size: SMALL_READ,
            waiting: Coalescer::default(),
            published_at: None,
            chunks: 0,
        }
    }

    /// Reads and publishes until both pipes are at their end. May be dropped and called again.
    pub(super) async fn pump(&mut self) {
        while self.stdout.is_some() || self.stderr.is_some() {
            let due = self.due();
            tokio::select! {
                ready = readable(self.stdout.as_ref()) => self.read(Stream::Stdout, ready),
                ready = readable(self.stderr.as_ref()) => self.read(Stream::Stderr, ready),
                () = sleep_until(due) => {}
            }
            if self.due().is_some_and(|due| due <= Instant::now()) {
                self.publish(false).await;
            }
        }
    }

    /// Publishes what is left.
    pub(super) async fn finish(mut self) {
        self.publish(true).await;
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

    fn read(&mut self, stream: Stream, ready: io::Result<()>) {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(open) = pipe else { return };
        if self.buffer.capacity() < self.read_size / 2 {
            self.buffer.reserve(self.read_size);
        }
        let room = self.buffer.capacity();
        match ready.and_then(|()| open.try_read_buf(&mut self.buffer)) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                if count == room {
                    self.read_size = limits::OUTPUT_CHUNK;
                }
                self.waiting.push(stream, self.buffer.split());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(execution_id = %self.execution.id, %error, "a pipe could not be read to its end");
                *pipe = None;
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

async fn readable(pipe: Option<&pipe::Receiver>) -> io::Result<()> {
    match pipe {
        Some(pipe) => pipe.readable().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
