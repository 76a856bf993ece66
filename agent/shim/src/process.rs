//! The one process: its descriptors, its start, and the shim's ends of them.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, IntoRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        resource::{Resource, setrlimit},
        signal::SigSet,
        socket::{Shutdown, shutdown},
        stat::{Mode, fchmod},
    },
    unistd::{Pid, dup2, dup3, pipe2},
};

use crate::{
    Place, Start,
    beside::Beside,
    usage::{cpu_us, now_us, oom_kills},
};

/// The descriptor that a worker's channel is.
const CHANNEL: i32 = 3;
/// Bytes on their way to the process: when so many wait, no more are taken from the agent.
const WAITING: usize = 256 << 10;

/// The descriptor that is to be a worker's channel, held so that nothing else lies there.
#[derive(Debug)]
pub(crate) struct ChannelSlot {
    held: OwnedFd,
    nothing: OwnedFd,
}

impl ChannelSlot {
    /// Before anything else is opened.
    pub(crate) fn hold() -> io::Result<Self> {
        let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let mut held = null()?;
        while held.as_raw_fd() < CHANNEL {
            // Of stdin, stdout or stderr, which this process was started without.
            let _kept = held.into_raw_fd();
            held = null()?;
        }
        if held.as_raw_fd() != CHANNEL {
            return Err(io::Error::other("descriptor 3 is in use: nothing may be open but stdin, stdout and stderr"));
        }
        Ok(Self { held, nothing: null()? })
    }

    /// Children inherit `channel` there until it is cleared.
    fn set(&mut self, channel: &OwnedFd) -> io::Result<()> {
        Ok(dup2(channel, &mut self.held)?)
    }

    fn clear(&mut self) -> io::Result<()> {
        Ok(dup3(&self.nothing, &mut self.held, OFlag::O_CLOEXEC)?)
    }
}

/// What is to be written to the process, as far as it has not taken it.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) file: File,
    waiting: Vec<u8>,
    /// Of `waiting`, what was written.
    done: usize,
    /// Nothing follows: closed once all is written.
    ended: bool,
}

impl Feed {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        never_wait(&fd)?;
        Ok(Self { file: fd.into(), waiting: Vec::new(), done: 0, ended: false })
    }

    pub(crate) fn waits(&self) -> bool {
        self.done < self.waiting.len()
    }

    fn is_full(&self) -> bool {
        self.waiting.len() - self.done >= WAITING
    }

    /// Writes what can be written now. `false`: it is over, all being written, or nobody reading.
    fn flush(&mut self) -> bool {
        while self.waits() {
            match self.file.write(&self.waiting[self.done..]) {
                Ok(written) => self.done += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.waiting.clear();
        self.done = 0;
        !self.ended
    }

    /// Of a channel: nothing more is written, and what is said on it is still read.
    fn shut(&mut self) {
        self.waiting.clear();
        self.done = 0;
        let _ = shutdown(self.file.as_raw_fd(), Shutdown::Write);
    }

    fn push(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend_from_slice(bytes);
        self.ended |= bytes.is_empty();
        self.flush()
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) started_at_us: u64,
    pub(crate) stdin: Option<Feed>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
    /// Both ways.
    pub(crate) channel: Option<Feed>,
    pub(crate) beside: Beside,
    pub(crate) cpu_before_us: u64,
    pub(crate) oom_kills_before: u64,
}

impl Process {
    pub(crate) fn start(start: &Start, place: Place, slot: &mut ChannelSlot, blocked: &SigSet) -> io::Result<Self> {
        if start.open_files > 0 {
            setrlimit(Resource::RLIMIT_NOFILE, start.open_files, start.open_files)?;
        }
        let mut command = Command::new(program(start));
        command.args(&start.args).envs(start.env.iter().map(|(name, value)| (name, value))).process_group(0);
        if !start.directory.is_empty() {
            command.current_dir(&start.directory);
        }
        if let Some((uid, gid)) = start.user {
            command.uid(uid).gid(gid);
        }
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        command.stdout(Stdio::from(their_stdout)).stderr(Stdio::from(their_stderr));
        let (stdin, channel, theirs) = if start.channel {
            let (ours, theirs) = UnixStream::pair()?;
            command.stdin(Stdio::null());
            (None, Some(Feed::new(ours.into())?), Some(OwnedFd::from(theirs)))
        } else {
            let (their_stdin, stdin) = pipe2(OFlag::O_CLOEXEC)?;
            open_to_all(&their_stdin)?;
            command.stdin(Stdio::from(their_stdin));
            (Some(Feed::new(stdin)?), None, None)
        };
        let (cpu_before_us, oom_kills_before) = (cpu_us(), oom_kills(place));
        if let Some(theirs) = &theirs {
            slot.set(theirs)?;
        }
        let started_at_us = now_us();
        // A child inherits the mask.
        blocked.thread_unblock()?;
        let spawned = command.spawn();
        blocked.thread_block()?;
        slot.clear()?;
        let pid = i32::try_from(spawned?.id()).map_err(io::Error::other)?;
        Ok(Self {
            pid: Pid::from_raw(pid),
            started_at_us,
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
            channel,
            beside: Beside::default(),
            cpu_before_us,
            oom_kills_before,
        })
    }

    /// Whether it is worth hearing more of what is meant for it.
    pub(crate) fn takes_more(&self) -> bool {
        ![&self.stdin, &self.channel].into_iter().flatten().any(Feed::is_full)
    }

    pub(crate) fn feed_stdin(&mut self, bytes: &[u8]) {
        if !self.stdin.as_mut().is_some_and(|stdin| stdin.push(bytes)) {
            self.stdin = None;
        }
    }

    pub(crate) fn feed_channel(&mut self, bytes: &[u8]) {
        // Where it reads no more, what it said before its end is still to be heard.
        if let Some(channel) = &mut self.channel
            && !channel.push(bytes)
        {
            channel.shut();
        }
    }

    pub(crate) fn flush(&mut self) {
        if self.stdin.as_mut().is_some_and(|stdin| !stdin.flush()) {
            self.stdin = None;
        }
        if let Some(channel) = &mut self.channel
            && !channel.flush()
        {
            channel.shut();
        }
    }
}

/// What one read of a descriptor that never waits brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    Bytes(usize),
    NothingNow,
    End,
}

pub(crate) fn read_now(mut file: &File, buffer: &mut [u8]) -> Piece {
    match file.read(buffer) {
        Ok(0) => Piece::End,
        Ok(count) => Piece::Bytes(count),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Piece::NothingNow
        }
        Err(_) => Piece::End,
    }
}

/// A name is looked for in `PATH`; a path is meant below the working directory.
fn program(start: &Start) -> std::ffi::OsString {
    if start.program.contains('/') {
        return Path::new(&start.directory).join(&start.program).into();
    }
    start.program.clone().into()
}

fn pipe() -> io::Result<(File, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    never_wait(&ours)?;
    open_to_all(&theirs)?;
    Ok((ours.into(), theirs))
}

fn never_wait(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(io::Error::from)
}

/// Opening `/dev/stdout` looks at the pipe's own mode, and the process may have another user.
fn open_to_all(pipe: impl AsFd) -> io::Result<()> {
    fchmod(pipe, Mode::from_bits_truncate(0o666)).map_err(io::Error::from)
}
