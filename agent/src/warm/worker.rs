//! One worker: its process, its channel, and the pipes that it prints to.

use std::{io, os::fd::OwnedFd, sync::Arc};

use flux_protocol::{FunctionVersion, limits};
use flux_worker::Used;
use futures::FutureExt as _;

use super::talk::Talk;
use crate::{
    code::CodeFolder,
    execution::{Secrets, Source, output_pipe},
    executor::Process,
};

/// Dropped, it is killed with everything in its slot.
pub(crate) struct Worker {
    pub(crate) process: Box<dyn Process>,
    pub(crate) talk: Talk,
    /// stdout and stderr.
    pub(crate) pipes: [Source; 2],
    pub(crate) served: u64,
    /// Of what it served, as it said.
    pub(crate) cpu_us: u64,
    /// Ended by the kernel at the memory limit before its next invocation, where that is known.
    pub(crate) oom_kills: Option<u64>,
    pub(crate) version: Arc<FunctionVersion>,
    /// As they were when it started.
    pub(crate) secrets: Secrets,
    /// Its code stays where it is for as long as it lives.
    pub(crate) _code: Option<CodeFolder>,
}

/// What a worker's process is started with, and the agent's ends of it.
pub(crate) struct Parts {
    pub(crate) stdio: [OwnedFd; 3],
    pub(crate) pipes: [Source; 2],
}

impl Parts {
    pub(crate) fn make() -> io::Result<Self> {
        let stdin = std::fs::File::open("/dev/null")?.into();
        let (stdout, read_stdout) = output_pipe()?;
        let (stderr, read_stderr) = output_pipe()?;
        let pipes = [Source::Open(read_stdout), Source::Open(read_stderr)];
        Ok(Self { stdio: [stdin, stdout, stderr], pipes })
    }
}

/// Why a worker is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It has ended, or does so by itself.
    Ends,
    /// What an earlier invocation began failed.
    Spoiled,
    /// Threads of the invocation still do something.
    Threads(u32),
    /// Processes live beside it.
    Processes,
    /// It has closed its stdout or stderr: what its next invocations print would be lost.
    Closed,
    /// It has not asked for its next invocation.
    DoesNotAsk,
    Memory,
    Invocations,
    /// Another version is current, or a secret has another value.
    Replaced,
}

impl Worker {
    pub(crate) fn memory_mb(&self) -> u64 {
        self.version.spec.resources.memory.into()
    }

    /// What it may hold between invocations.
    fn most_bytes(&self) -> u64 {
        self.version.spec.resources.memory_bytes() / 100 * limits::WORKER_MEMORY_PERCENT
    }

    /// Whether it holds more than that, or nobody knows.
    pub(crate) fn has_grown(&self) -> bool {
        self.process.resident_bytes().is_none_or(|bytes| bytes > self.most_bytes())
    }

    /// Whether it can take an invocation: it lives, and nothing was printed or said since its last one. What was is nobody's.
    pub(crate) fn is_quiet(&self) -> bool {
        self.talk.is_quiet() && self.pipes.iter().all(Source::is_silent)
    }

    /// What speaks against keeping it, now that it has answered.
    pub(crate) async fn unfit(&mut self, threads_left: u32, peak_bytes: u64) -> Option<Unfit> {
        if threads_left == Used::ENDS || self.process.wait().now_or_never().is_some() {
            return Some(Unfit::Ends);
        }
        if threads_left == Used::SPOILED {
            return Some(Unfit::Spoiled);
        }
        if threads_left > 0 {
            return Some(Unfit::Threads(threads_left));
        }
        if !self.pipes.iter().all(Source::is_open) {
            return Some(Unfit::Closed);
        }
        if self.served >= limits::WORKER_INVOCATIONS {
            return Some(Unfit::Invocations);
        }
        // Only one that held so much once can hold it now.
        if peak_bytes > self.most_bytes() && self.has_grown() {
            return Some(Unfit::Memory);
        }
        let has_left = match self.talk.has_left_processes() {
            Some(has_left) => has_left,
            None => !self.process.is_alone().await,
        };
        if has_left {
            return Some(Unfit::Processes);
        }
        (!self.talk.is_asking()).then_some(Unfit::DoesNotAsk)
    }
}
