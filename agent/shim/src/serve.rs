//! One loop over the stream, the process's descriptors and the signals.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill, killpg},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    Decoder, Exit, FromShim, Place, Start, Status, Stream, ToShim,
    beside::resident_bytes,
    frame::{CHUNK, VERSION, encode_output, encode_said},
    process::{ChannelSlot, Piece, Process, read_now},
    usage::{cpu_us, memory_peak_bytes, now_us, oom_kills},
};

/// What a pipe holds: who goes on printing is not waited for.
const PIPE_BYTES: usize = 64 << 10;
/// After the process ended, for what it left in its pipes.
const DRAIN: Duration = Duration::from_millis(250);

/// Why a stream is served no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The agent's end of it is closed.
    Disconnected,
    /// A SIGTERM came that is not the agent's: whoever runs the container ends it. The process was passed it, and has ended; its end
    /// is not told, since it is not its own.
    Asked,
}

/// Serves one stream after another. The process it started lives on between them.
#[derive(Debug)]
pub struct Shim {
    place: Place,
    slot: ChannelSlot,
    signals: SignalFd,
    blocked: SigSet,
    process: Option<Process>,
    asked_to_end: bool,
    buffer: Box<[u8]>,
    /// A frame on its way out.
    out: Vec<u8>,
}

/// What the loop heard in one turn.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    signals: bool,
    stream: bool,
    stdout: bool,
    stderr: bool,
    channel: bool,
}

impl Shim {
    /// Before anything else is opened, and before any thread exists: it takes descriptor 3 and the signals.
    ///
    /// # Errors
    /// Descriptor 3 is in use, or the kernel refuses a signal descriptor.
    pub fn new(place: Place) -> io::Result<Self> {
        let slot = ChannelSlot::hold()?;
        let mut blocked = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            blocked.add(signal);
        }
        blocked.thread_block()?;
        let signals = SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // A function of the same user must not write into the agent's stream.
        nix::sys::prctl::set_dumpable(false)?;
        let buffer = vec![0; CHUNK].into_boxed_slice();
        Ok(Self { place, slot, signals, blocked, process: None, asked_to_end: false, buffer, out: Vec::new() })
    }

    /// Serves until the agent's end is closed; what is said that is not of the protocol closes it too.
    pub fn serve(&mut self, stream: OwnedFd) -> Over {
        let mut stream = File::from(stream);
        let said = self.serve_stream(&mut stream);
        if let Err(error) = said {
            eprintln!("flux-shim: {error}");
        }
        if self.is_over() { Over::Asked } else { Over::Disconnected }
    }

    fn is_over(&self) -> bool {
        self.asked_to_end && self.process.is_none()
    }

    /// Ends everything that was started. For the end of the shim, or before another function.
    pub fn end_all(&mut self) {
        if let Some(process) = self.process.take() {
            kill_all(process.pid);
        }
    }

    fn serve_stream(&mut self, stream: &mut File) -> io::Result<()> {
        self.say(stream, &FromShim::Hello { version: VERSION })?;
        if let Some(process) = &self.process {
            let (pid, started_at_us) = (process.pid.as_raw().cast_unsigned(), process.started_at_us);
            self.say(stream, &FromShim::Started { pid, started_at_us })?;
        }
        let mut decoder = Decoder::default();
        loop {
            let ready = self.wait(stream)?;
            if let Some(process) = &mut self.process {
                process.flush();
            }
            if ready.stdout {
                self.send_output(stream, Stream::Stdout)?;
            }
            if ready.stderr {
                self.send_output(stream, Stream::Stderr)?;
            }
            if ready.channel {
                self.send_channel(stream)?;
            }
            if ready.signals {
                self.on_signals(stream)?;
            }
            if ready.stream {
                let count = match stream.read(&mut self.buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                decoder.push(&self.buffer[..count]);
                while let Some(said) = decoder.next_to_shim().map_err(io::Error::other)? {
                    self.on_said(stream, said)?;
                }
            }
            if self.is_over() {
                return Ok(());
            }
        }
    }

    fn wait(&self, stream: &File) -> io::Result<Ready> {
        let process = self.process.as_ref();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let listens = process.is_none_or(Process::takes_more);
        // Nothing is asked of it then but whether it is closed.
        fds.push(PollFd::new(stream.as_fd(), if listens { PollFlags::POLLIN } else { PollFlags::empty() }));
        let outputs = process.map(|process| [&process.stdout, &process.stderr]).into_iter().flatten();
        let open: Vec<bool> = outputs.clone().map(Option::is_some).collect();
        for output in outputs.flatten() {
            fds.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        let channel = process.and_then(|process| process.channel.as_ref());
        if let Some(channel) = channel {
            let out = if channel.waits() { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(channel.file.as_fd(), PollFlags::POLLIN | out));
        }
        if let Some(stdin) = process.and_then(|process| process.stdin.as_ref()).filter(|stdin| stdin.waits()) {
            fds.push(PollFd::new(stdin.file.as_fd(), PollFlags::POLLOUT));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| {
            let heard = fd.revents().unwrap_or(PollFlags::empty());
            heard.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
        });
        let mut next = || ready.next().unwrap_or(false);
        Ok(Ready {
            signals: next(),
            stream: next(),
            stdout: open.first() == Some(&true) && next(),
            stderr: open.get(1) == Some(&true) && next(),
            channel: channel.is_some() && next(),
        })
    }

    fn on_said(&mut self, stream: &mut File, said: ToShim) -> io::Result<()> {
        match said {
            ToShim::Start(start) => self.start(stream, &start),
            ToShim::Stdin(bytes) => {
                if let Some(process) = &mut self.process {
                    process.feed_stdin(&bytes);
                }
                Ok(())
            }
            ToShim::Channel(bytes) => {
                if let Some(process) = &mut self.process {
                    process.feed_channel(&bytes);
                }
                Ok(())
            }
            ToShim::Signal(number) => {
                if let Some(process) = &self.process {
                    signal(process.pid, number);
                }
                Ok(())
            }
            ToShim::Wake { now_us, seed } => match self.place {
                Place::Guest => crate::wake::wake(now_us, &seed),
                // The clock and the kernel's randomness are the host's.
                Place::Container => Ok(()),
            },
        }
    }

    fn start(&mut self, stream: &mut File, start: &Start) -> io::Result<()> {
        if self.process.is_some() {
            let message = "a process runs here already".to_owned();
            return self.say(stream, &FromShim::Refused { errno: nix::libc::EBUSY, message });
        }
        match Process::start(start, self.place, &mut self.slot, &self.blocked) {
            Ok(process) => {
                let (pid, started_at_us) = (process.pid.as_raw().cast_unsigned(), process.started_at_us);
                self.process = Some(process);
                self.say(stream, &FromShim::Started { pid, started_at_us })?;
                // Signals were not held back while it was started: one that ended at once is looked for.
                self.on_signals(stream)
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                let message = format!("`{}` could not be started: {error}", start.program);
                self.say(stream, &FromShim::Refused { errno, message })
            }
        }
    }

    fn on_signals(&mut self, stream: &mut File) -> io::Result<()> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            // SIGCHLD is looked at below.
            if let Ok(Signal::SIGTERM | Signal::SIGINT) = Signal::try_from(info.ssi_signo.cast_signed()) {
                self.asked_to_end = true;
                if let Some(process) = &self.process {
                    signal(process.pid, nix::libc::SIGTERM);
                }
            }
        }
        let main = self.process.as_ref().map(|process| process.pid);
        // Everything that ends here is this process's to wait for.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (pid, status) = match status {
                WaitStatus::Exited(pid, code) => (pid, Status::Exited(code)),
                WaitStatus::Signaled(pid, signal, _) => (pid, Status::Signaled(signal as i32)),
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            if Some(pid) == main {
                let ended_at_us = now_us();
                self.conclude(stream, status, ended_at_us)?;
            }
        }
        Ok(())
    }

    /// The process ended: with it goes what it left behind, and all that was printed and said is told before its end.
    fn conclude(&mut self, stream: &mut File, status: Status, ended_at_us: u64) -> io::Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        kill_all(process.pid);
        let until = Instant::now() + DRAIN;
        for output in [Stream::Stdout, Stream::Stderr] {
            while self.send_output(stream, output)? {
                let Some(file) = self.output(output) else { break };
                let left = until.saturating_duration_since(Instant::now());
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::ZERO);
                if poll(&mut fds, timeout).unwrap_or(0) == 0 {
                    break;
                }
            }
        }
        while self.send_channel(stream)? {}
        let Some(process) = self.process.take() else { return Ok(()) };
        if self.asked_to_end {
            return Ok(());
        }
        let exit = Exit {
            status,
            oom_killed: oom_kills(self.place) > process.oom_kills_before,
            cpu_us: cpu_us().saturating_sub(process.cpu_before_us),
            memory_peak_bytes: memory_peak_bytes(self.place),
            ended_at_us,
        };
        self.say(stream, &FromShim::Exited(exit))
    }

    fn output(&self, output: Stream) -> Option<&File> {
        let process = self.process.as_ref()?;
        match output {
            Stream::Stdout => process.stdout.as_ref(),
            Stream::Stderr => process.stderr.as_ref(),
        }
    }

    /// Sends what was printed, no more than a pipe holds. `false` at its end.
    fn send_output(&mut self, stream: &mut File, output: Stream) -> io::Result<bool> {
        let mut sent = 0;
        while sent < PIPE_BYTES {
            let Some(process) = &mut self.process else { return Ok(false) };
            let open = match output {
                Stream::Stdout => &mut process.stdout,
                Stream::Stderr => &mut process.stderr,
            };
            let Some(file) = open.as_ref() else { return Ok(false) };
            match read_now(file, &mut self.buffer) {
                Piece::Bytes(count) => {
                    self.out.clear();
                    encode_output(output, &self.buffer[..count], &mut self.out);
                    stream.write_all(&self.out)?;
                    sent += count;
                }
                Piece::NothingNow => return Ok(true),
                Piece::End => {
                    *open = None;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Sends what was said on the channel, and before it what was printed until then. `false` where there is no more.
    fn send_channel(&mut self, stream: &mut File) -> io::Result<bool> {
        let Some(channel) = self.process.as_ref().and_then(|process| process.channel.as_ref()) else {
            return Ok(false);
        };
        let piece = read_now(&channel.file, &mut self.buffer);
        let count = match piece {
            Piece::Bytes(count) => count,
            Piece::NothingNow => return Ok(false),
            Piece::End => {
                if let Some(process) = &mut self.process {
                    process.channel = None;
                }
                return Ok(false);
            }
        };
        let said = self.buffer[..count].to_vec();
        self.send_output(stream, Stream::Stdout)?;
        self.send_output(stream, Stream::Stderr)?;
        let Some(process) = &mut self.process else { return Ok(false) };
        let beside = process.beside.count(process.pid);
        self.out.clear();
        encode_said(beside, resident_bytes(process.pid), &said, &mut self.out);
        stream.write_all(&self.out)?;
        Ok(true)
    }

    fn say(&mut self, stream: &mut File, said: &FromShim) -> io::Result<()> {
        self.out.clear();
        said.encode(&mut self.out);
        stream.write_all(&self.out)
    }
}

fn signal(process: Pid, number: i32) {
    match Signal::try_from(number) {
        Ok(Signal::SIGKILL) => kill_all(process),
        Ok(number) => drop(killpg(process, number)),
        Err(_) => {}
    }
}

/// Everything, where all that there is was started here; else the process's group.
fn kill_all(process: Pid) {
    if Pid::this().as_raw() == 1 {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    } else {
        let _ = killpg(process, Signal::SIGKILL);
    }
}
