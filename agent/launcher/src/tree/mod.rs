//! The root of the process tree: starts the platform's processes, restarts them, ends them in order.
//!
//! It is what a terminal or a service manager talks to, and it holds the privileges that the others have given up, so
//! it does as little as it can: one thread, one `poll`, no runtime, no socket but the links to its own children. Call
//! [`run`] first thing in `main`, before any thread exists.
//!
//! ```text
//!             started                 died, Backoff
//!   (spec) ───────────► running ───────────────────────► waiting ──┐ 50 ms … 2 s
//!                        │   ▲                                      │
//!            SIGTERM to  │   └──────────────────────────────────────┘
//!            the tree    ▼
//!                      stopping (SIGTERM sent, then SIGKILL at its deadline) ───► ended
//! ```
//!
//! Children have process groups of their own, so that a terminal's Ctrl-C reaches the tree alone; they die with it,
//! whatever kills it. Stopping goes by `stop_order`, lowest first: the next order is signalled once the ones before it
//! have ended, so that a worker can still tell its broker that it drains.

mod child;
mod spec;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Child as Process;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::start::{start_driver, start_launcher};
use crate::sys::{memory, socket};
use crate::wire::{LauncherAnswer, LauncherWish, MAX_REPLY};
use child::{Child, DeathPipe, State};
pub use spec::{ChildEnv, ChildSpec, DriverSpec, Output, RestartPolicy, TreeEvent};

/// How long launchers get to clean up once their agents have ended; a little more than they take at the most.
const LAUNCHER_DEADLINE: Duration = Duration::from_secs(4);

/// Why the tree ended. Nothing that it started is left in either case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeEnd {
    /// `SIGINT` or `SIGTERM` asked for it, and everything stopped within its deadline.
    Stopped,
    /// A second signal, or a deadline, made it kill.
    Killed,
    /// A child that is not restarted ended; `code` is its exit code, or 128 + its signal.
    ChildEnded { name: String, code: i32 },
}

impl TreeEnd {
    /// What `main` should exit with.
    pub fn exit_code(&self) -> i32 {
        match self {
            TreeEnd::Stopped => 0,
            TreeEnd::Killed => 1,
            TreeEnd::ChildEnded { code, .. } => *code,
        }
    }
}

/// A tree that could not be started; what had started was killed again.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{name} could not be started from {program}")]
    Start {
        name: String,
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("the process tree could not prepare its signals and pipes")]
    Prepare(#[source] io::Error),
}

impl TreeError {
    /// What is missing at the first start is missing at the next.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Writes an event as one line to stderr: the log of a tree without a better one.
pub fn log_to_stderr(event: &TreeEvent) {
    eprintln!("flux: {event}");
}

/// Starts `children` in the order given and keeps them running until a signal, or a child that is not restarted, ends
/// the tree. `log` is told of everything that an administrator would want to read.
pub fn run(children: Vec<ChildSpec>, log: &mut dyn FnMut(&TreeEvent)) -> Result<TreeEnd, TreeError> {
    let signals = block_signals().map_err(TreeError::Prepare)?;
    let death_pipe = DeathPipe::try_new().map_err(TreeError::Prepare)?;
    let mut tree = Tree {
        children: children.into_iter().map(Child::new).collect(),
        launchers: Vec::new(),
        death_pipe,
        stopping: None,
        killed: false,
        log,
    };
    let started = tree.start_all();
    let ended = started.and_then(|()| tree.watch(&signals));
    tree.kill_everything();
    ended
}

fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// A launcher, or a driver.
struct Helper {
    what: String,
    process: Process,
    /// The ends of whoever asked.
    sockets: Vec<OwnedFd>,
}

impl Helper {
    fn start(asker: &ChildSpec, wish: LauncherWish) -> io::Result<Self> {
        let program = Path::new("/proc/self/exe");
        let none = || io::Error::from(io::ErrorKind::Unsupported);
        if let Some(name) = wish.driver {
            let spec = asker.drivers.iter().find(|driver| driver.name == name).ok_or_else(none)?;
            let started = start_driver(program, &spec.argument, &spec.config)?;
            let what = format!("a driver of {name}");
            return Ok(Self { what, process: started.child, sockets: vec![started.socket] });
        }
        let config = asker.launcher.clone().ok_or_else(none)?;
        let config = crate::LauncherConfig {
            tasks: wish.tasks.unwrap_or(config.tasks),
            max_slots: wish.max_slots.unwrap_or(config.max_slots),
            ..config
        };
        let started = start_launcher(program, &config)?;
        Ok(Self {
            what: "a launcher".to_owned(),
            process: started.child,
            sockets: vec![started.spawn, started.control],
        })
    }
}

struct Tree<'a> {
    children: Vec<Child>,
    /// And drivers.
    launchers: Vec<Process>,
    death_pipe: DeathPipe,
    /// Once stopping: the child that ended it, or none for a signal.
    stopping: Option<Option<(String, i32)>>,
    /// Something had to be killed on the way down.
    killed: bool,
    log: &'a mut dyn FnMut(&TreeEvent),
}

impl Tree<'_> {
    fn start_all(&mut self) -> Result<(), TreeError> {
        for child in &mut self.children {
            child.start(&self.death_pipe).map_err(|source| TreeError::Start {
                name: child.spec.name.clone(),
                program: child.spec.program.display().to_string(),
                source,
            })?;
            (self.log)(&TreeEvent::Started { name: child.spec.name.clone(), pid: child.pid().unwrap_or(0) });
        }
        Ok(())
    }

    fn watch(&mut self, signals: &SignalFd) -> Result<TreeEnd, TreeError> {
        memory::forget_start_up();
        loop {
            self.reap();
            if self.stopping.is_some() && self.advance_stop() {
                return Ok(self.end());
            }
            self.start_due();
            let (signalled, asking) = self.wait(signals)?;
            for index in asking {
                self.answer(index);
            }
            if signalled {
                while let Ok(Some(info)) = signals.read_signal() {
                    if self.on_signal(info.ssi_signo.cast_signed()) {
                        return Ok(TreeEnd::Killed);
                    }
                }
            }
        }
    }

    /// `true` for "kill at once".
    fn on_signal(&mut self, number: i32) -> bool {
        match Signal::try_from(number) {
            Ok(Signal::SIGHUP) => {
                for child in &self.children {
                    child.signal(libc::SIGHUP);
                }
            }
            Ok(signal @ (Signal::SIGINT | Signal::SIGTERM)) => {
                if self.stopping.is_some() {
                    (self.log)(&TreeEvent::KillingAll);
                    return true;
                }
                (self.log)(&TreeEvent::Stopping { signal: signal.as_str() });
                self.stopping = Some(None);
            }
            // SIGCHLD: reaping is done on every turn.
            _ => {}
        }
        false
    }

    /// Notices which children have ended, and decides what becomes of each.
    fn reap(&mut self) {
        self.launchers.retain_mut(|launcher| matches!(launcher.try_wait(), Ok(None)));
        for child in &mut self.children {
            let Some((code, description)) = child.ended() else {
                continue;
            };
            let name = child.spec.name.clone();
            if self.stopping.is_some() {
                (self.log)(&TreeEvent::Ended { name, how: description });
                child.state = State::Ended;
                continue;
            }
            match child.spec.restart {
                RestartPolicy::Backoff => {
                    let delay = child.schedule_restart(Instant::now());
                    (self.log)(&TreeEvent::Restarting { name, how: description, delay });
                }
                RestartPolicy::Never => {
                    (self.log)(&TreeEvent::Ended { name: name.clone(), how: description });
                    child.state = State::Ended;
                    self.stopping = Some(Some((name, code)));
                }
            }
        }
    }

    fn start_due(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let now = Instant::now();
        for child in &mut self.children {
            if !matches!(child.state, State::Waiting { until } if until <= now) {
                continue;
            }
            let name = child.spec.name.clone();
            match child.start(&self.death_pipe) {
                Ok(()) => (self.log)(&TreeEvent::Started { name, pid: child.pid().unwrap_or(0) }),
                Err(error) => {
                    let delay = child.schedule_restart(now);
                    (self.log)(&TreeEvent::Restarting { name, how: format!("could not be started: {error}"), delay });
                }
            }
        }
    }

    /// Signals the lowest order that is still there, and kills what is past its deadline; `true` when all have ended.
    fn advance_stop(&mut self) -> bool {
        let now = Instant::now();
        for child in &mut self.children {
            if matches!(child.state, State::Waiting { .. }) {
                child.state = State::Ended;
            }
        }
        let present = self.children.iter().filter(|c| !matches!(c.state, State::Ended));
        let Some(order) = present.map(|c| c.spec.stop_order).min() else {
            return true;
        };
        for child in self.children.iter_mut().filter(|c| c.spec.stop_order == order) {
            match child.state {
                State::Running { .. } => {
                    child.signal(libc::SIGTERM);
                    child.state = State::Stopping { deadline: now + child.spec.stop_timeout, killed: false };
                }
                State::Stopping { deadline, killed: false } if deadline <= now => {
                    let name = child.spec.name.clone();
                    (self.log)(&TreeEvent::TooSlow { name, after: child.spec.stop_timeout });
                    child.kill();
                    child.state = State::Stopping { deadline, killed: true };
                    self.killed = true;
                }
                _ => {}
            }
        }
        false
    }

    fn end(&mut self) -> TreeEnd {
        match self.stopping.take().flatten() {
            Some((name, code)) => TreeEnd::ChildEnded { name, code },
            None if self.killed => TreeEnd::Killed,
            None => TreeEnd::Stopped,
        }
    }

    /// When something is due without anybody saying so.
    fn next_turn(&self) -> Option<Instant> {
        let due = |child: &Child| match child.state {
            State::Waiting { until } => Some(until),
            State::Stopping { deadline, killed: false } => Some(deadline),
            _ => None,
        };
        self.children.iter().filter_map(due).min()
    }

    /// Waits for a signal, a question on a link, or the next turn; says whether there is a signal, and who asks.
    fn wait(&self, signals: &SignalFd) -> Result<(bool, Vec<usize>), TreeError> {
        let timeout = match self.next_turn() {
            None => PollTimeout::NONE,
            Some(at) => {
                // Rounded up, so that it is due when we wake.
                let ms = at.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
                PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut indices = Vec::new();
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        for (index, child) in self.children.iter().enumerate() {
            if let Some(link) = &child.link {
                indices.push(index);
                fds.push(PollFd::new(link.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(TreeError::Prepare(error.into())),
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let (first, links) = fds.split_at(1);
        let asking = indices.into_iter().zip(links).filter(|(_, fd)| ready(fd)).map(|(index, _)| index).collect();
        Ok((first.iter().any(ready), asking))
    }

    /// Serves one question on a child's link.
    fn answer(&mut self, index: usize) {
        let Some(child) = self.children.get_mut(index) else {
            return;
        };
        let Some(link) = &child.link else {
            return;
        };
        let mut buffer = vec![0; MAX_REPLY];
        let question = match socket::recv(link.as_fd(), &mut buffer) {
            Ok(packet) if packet.len > 0 => buffer.get(..packet.len).unwrap_or_default(),
            // Its end is closed, as a rule because it died: its next start brings a new link.
            _ => {
                child.link = None;
                return;
            }
        };
        let name = child.spec.name.clone();
        let started = serde_json::from_slice::<LauncherWish>(question)
            .map_err(io::Error::from)
            .and_then(|wish| Helper::start(&child.spec, wish));
        let sent = match started {
            Ok(Helper { what, process, sockets }) => {
                let pid = process.id();
                (self.log)(&TreeEvent::Launcher { name, what, pid });
                self.launchers.push(process);
                let answer = serde_json::to_vec(&LauncherAnswer::Started { pid }).unwrap_or_default();
                let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                socket::try_send(link.as_fd(), &answer, &sockets)
            }
            Err(error) => {
                let message = format!("it could not be started: {error}");
                (self.log)(&TreeEvent::NoLauncher { name, message: message.clone() });
                let answer = serde_json::to_vec(&LauncherAnswer::Failed { message }).unwrap_or_default();
                socket::try_send(link.as_fd(), &answer, &[])
            }
        };
        if sent.is_err() {
            // The launcher's sockets are closed with this, so it ends too.
            child.link = None;
        }
    }

    /// Leaves nothing behind, whatever happened before.
    fn kill_everything(&mut self) {
        for child in &mut self.children {
            child.kill_and_wait();
        }
        let deadline = Instant::now() + LAUNCHER_DEADLINE;
        // Their agents are gone, so they are on their way out by themselves, and clean up as they go.
        while !self.launchers.is_empty() && Instant::now() < deadline {
            self.launchers.retain_mut(|launcher| matches!(launcher.try_wait(), Ok(None)));
            std::thread::sleep(Duration::from_millis(1));
        }
        for mut launcher in self.launchers.drain(..) {
            let _ = launcher.kill();
            let _ = launcher.wait();
        }
    }
}
