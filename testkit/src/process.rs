//! Flux's own binaries as processes of a test: started, killed, stopped, waited for, and gone in the end.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::{
    locate::{FluxBin, path_with_nats_server, program_name},
    log::Log,
    process_tree::{Process, descendants},
    wait::eventually_some,
};

/// What to start, and with what. The child sees the test's environment without any `FLUX_…` of it, except where
/// [`FluxCommand::env`] gives one.
#[derive(Debug)]
pub struct FluxCommand {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
}

impl FluxCommand {
    /// One of Flux's own binaries, as [`FluxBin::locate`] finds it, with a `nats-server` on its `PATH`.
    pub fn new(name: &str) -> Self {
        Self::of_program(FluxBin::locate(name)).env("PATH", path_with_nats_server())
    }

    /// Any program.
    pub fn of_program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), envs: Vec::new(), stdin: Vec::new() }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What [`FluxCommand::output`] writes to its standard input; a spawned process reads none.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Starts it, with what it prints in a file that is shown if the test fails.
    pub fn spawn(self) -> FluxProcess {
        let name = program_name(&self.program);
        let dir = tempfile::Builder::new().prefix("flux-log-").tempdir().expect("cannot make a temporary directory");
        let log = Log::new(&name, dir.path().join(format!("{name}.log")));
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.writer()).stderr(log.writer());
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display()));
        FluxProcess { name, running: Running::new(child), log, _dir: dir }
    }

    /// Runs it to its end, and returns what it printed. Panics, after killing it, when `deadline` passes first.
    pub async fn output(self, deadline: Duration) -> Output {
        let mut command = tokio::process::Command::from(self.command());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {self:?}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin was asked for");
        let run = async {
            // It may end without reading everything: that is its right.
            let feed = async {
                let _ = stdin.write_all(&self.stdin).await;
                drop(stdin);
            };
            tokio::join!(feed, child.wait_with_output()).1
        };
        match tokio::time::timeout(deadline, run).await {
            Ok(output) => output.expect("cannot read what it printed"),
            Err(_) => panic!("{} {:?} had not ended after {deadline:?}", self.program.display(), self.args),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLUX_")) {
            command.env_remove(name);
        }
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A running process and what it printed. Dropping it kills it and everything that descends from it.
#[derive(Debug)]
pub struct FluxProcess {
    name: String,
    running: Running,
    log: Log,
    _dir: TempDir,
}

impl FluxProcess {
    /// Shorthand for [`FluxCommand::new`].
    pub fn command(name: &str) -> FluxCommand {
        FluxCommand::new(name)
    }

    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    pub fn is_running(&mut self) -> bool {
        self.running.exited().is_none()
    }

    /// SIGKILL, and waits until the kernel has taken the process away. Its descendants are left to themselves:
    /// what becomes of them is what a test wants to see.
    pub fn kill9(&mut self) {
        self.running.kill9();
    }

    /// SIGTERM: asks it to drain and go. Wait with [`FluxProcess::wait_exit`].
    pub fn terminate(&self) {
        self.running.signal(Signal::SIGTERM);
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&self) {
        self.running.signal(Signal::SIGINT);
    }

    /// SIGSTOP: it lives and does nothing, like a machine that hangs.
    pub fn pause(&self) {
        crate::process_tree::pause(self.running.pid());
    }

    pub fn resume(&self) {
        self.running.signal(Signal::SIGCONT);
    }

    /// Waits for its end. Panics, showing its log, when `deadline` passes first.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} (pid {}) to end", self.name, self.pid());
        eventually_some(deadline, what, || std::future::ready(self.running.exited())).await
    }

    pub fn descendants(&self) -> Vec<Process> {
        descendants(self.pid())
    }

    /// The first descendant whose name or arguments contain `part`. Panics with the whole tree if there is none.
    pub fn descendant(&self, part: &str) -> Process {
        let tree = self.descendants();
        let found = tree.iter().find(|process| process.name.contains(part) || process.command.contains(part));
        found
            .cloned()
            .unwrap_or_else(|| panic!("no descendant of {} (pid {}) has {part:?}: {tree:#?}", self.name, self.pid()))
    }

    /// What it printed so far, standard output and error together.
    pub fn log(&self) -> String {
        self.log.text()
    }
}

impl Drop for FluxProcess {
    fn drop(&mut self) {
        let tree = self.descendants();
        self.running.kill9();
        for process in tree {
            process.kill9();
        }
        self.log.show_if_panicking();
    }
}

/// A child process of the test, killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn new(child: Child) -> Self {
        Self { child }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid is positive")
    }

    /// How it ended, once it did.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("cannot wait for a child process")
    }

    pub(crate) fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The child is not reaped before `exited` or `kill9`, so the pid is still its own; gone is fine.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A server that a test kills, stops, pauses and starts again: nothing runs while it is down.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    running: Option<Running>,
}

impl Server {
    /// One that is down.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, running: None }
    }

    pub(crate) fn spawn(&mut self, command: &mut Command) {
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; `scripts/setup.sh test` installs what tests need", self.name)
        });
        self.running = Some(Running::new(child));
    }

    /// Panics if it ended by itself: waiting for it is in vain.
    pub(crate) fn assert_up(&mut self, log: &Log) {
        let exited = self.running.as_mut().and_then(Running::exited);
        assert!(exited.is_none(), "{} ended ({exited:?}):\n{}", self.name, log.tail());
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| running.exited().is_none())
    }

    fn up(&self) -> &Running {
        self.running.as_ref().unwrap_or_else(|| panic!("{} is down", self.name))
    }

    /// Panics while it is down, as what follows does.
    pub(crate) fn pid(&self) -> i32 {
        self.up().pid()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.up().signal(signal);
    }

    /// SIGSTOP: connections stay open and nothing answers, like a network that swallows packets.
    pub(crate) fn pause(&self) {
        crate::process_tree::pause(self.pid());
    }

    /// SIGKILL: it is gone when this returns.
    pub(crate) fn kill9(&mut self) {
        drop(self.running.take());
    }

    /// Has it end in order, and waits for that; one that is down is.
    pub(crate) async fn stop(&mut self, by: Signal, within: Duration) {
        let Some(mut running) = self.running.take() else { return };
        running.signal(by);
        // A paused one takes the signal only when it goes on.
        running.signal(Signal::SIGCONT);
        crate::wait::eventually_some(within, format!("{} to stop", self.name), || std::future::ready(running.exited()))
            .await;
    }
}
