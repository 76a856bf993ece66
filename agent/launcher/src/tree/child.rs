//! One child of the tree: starting it, and where it is in its life.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use super::spec::{Backoff, ChildEnv, ChildSpec, Output};
use crate::sys::{process, program, socket};
use crate::wire::TREE_FD;

/// A pipe that nobody writes to: its writing end is the tree's alone, so that it is closed by the tree's end.
#[derive(Debug)]
pub(super) struct DeathPipe {
    reading: OwnedFd,
    writing: OwnedFd,
}

impl DeathPipe {
    pub(super) fn try_new() -> io::Result<Self> {
        let (reading, writing) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        Ok(DeathPipe { reading, writing })
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    Running { since: Instant },
    Waiting { until: Instant },
    Stopping { deadline: Instant, killed: bool },
    Ended,
}

#[derive(Debug)]
pub(super) struct Child {
    pub(super) spec: ChildSpec,
    pub(super) state: State,
    /// The tree's end of the link on which it asks for launchers.
    pub(super) link: Option<OwnedFd>,
    process: Option<Process>,
    backoff: Backoff,
}

impl Child {
    pub(super) fn new(spec: ChildSpec) -> Self {
        let now = Instant::now();
        Child { spec, state: State::Waiting { until: now }, link: None, process: None, backoff: Backoff::new() }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    pub(super) fn start(&mut self, death_pipe: &DeathPipe) -> io::Result<()> {
        let spec = &self.spec;
        let mut command = Command::new(&spec.program);
        command.args(&spec.args).stdin(Stdio::null()).stdout(stdio(&spec.stdout)?).stderr(stdio(&spec.stderr)?);
        match &spec.env {
            ChildEnv::Inherit(more) => command.envs(more.iter().map(|(k, v)| (k, v))),
            ChildEnv::Only(all) => command.env_clear().envs(all.iter().map(|(k, v)| (k, v))),
        };
        // Never the tree's own link, were it a child of another tree.
        command.env_remove(TREE_FD);
        let mut keep = Vec::new();
        let link = match spec.launcher {
            Some(_) => {
                let (ours, theirs) = socket::pair()?;
                command.env(TREE_FD, theirs.as_raw_fd().to_string());
                keep.push(theirs.as_raw_fd());
                Some((ours, theirs))
            }
            None => None,
        };
        let user = spec.user.filter(|_| process::is_root()).map(|u| (u.uid, u.gid));
        let die_with = Some((death_pipe.reading.as_raw_fd(), death_pipe.writing.as_raw_fd()));
        program::prepare(&mut command, program::Preparation { keep, user, die_with });
        self.process = Some(command.spawn()?);
        self.link = link.map(|(ours, _theirs)| ours);
        self.state = State::Running { since: Instant::now() };
        Ok(())
    }

    /// If it has ended by now: the exit code (128 + the signal), and how in words. Says so once.
    pub(super) fn ended(&mut self) -> Option<(i32, String)> {
        let status = match self.process.as_mut()?.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            // Not a child of ours any more; there is nothing left to wait for.
            Err(_) => std::process::ExitStatus::from_raw(0),
        };
        self.process = None;
        self.link = None;
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => (code, format!("ended with exit code {code}")),
            (None, signal) => {
                let signal = signal.unwrap_or(0);
                (128 + signal, format!("was killed by signal {signal}"))
            }
        })
    }

    /// Plans the next start and says after which delay.
    pub(super) fn schedule_restart(&mut self, now: Instant) -> Duration {
        let up = match self.state {
            State::Running { since } => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        let delay = self.backoff.after(up);
        self.state = State::Waiting { until: now + delay };
        delay
    }

    fn raw_pid(&self) -> Option<i32> {
        self.pid().and_then(|pid| i32::try_from(pid).ok())
    }

    pub(super) fn signal(&self, signal: i32) {
        if let Some(pid) = self.raw_pid() {
            // Not reaped yet, so the number is still this child's.
            let _ = process::kill(pid, signal);
        }
    }

    /// Kills it and its process group.
    pub(super) fn kill(&self) {
        if let Some(pid) = self.raw_pid() {
            let _ = process::kill_group(pid, libc::SIGKILL);
        }
    }

    pub(super) fn kill_and_wait(&mut self) {
        self.kill();
        self.link = None;
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn stdio(output: &Output) -> io::Result<Stdio> {
    Ok(match output {
        Output::Inherit => Stdio::inherit(),
        Output::Null => Stdio::null(),
        Output::File(path) => OpenOptions::new().create(true).append(true).open(path)?.into(),
    })
}
