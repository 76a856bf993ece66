//! One process from its start to its end: its limits in time, its output, and what may end it early.
//!
//! One timer serves all that has to happen at a time: first `running` is said (most executions are over before), then the
//! limit ends it, then SIGKILL follows a SIGTERM that was not heeded.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use flux_launcher::wire::EndedReport;
use flux_protocol::{
    ErrorKind, FunctionSpec, Outcome, OutcomeStatus, Phase, Timestamp, execution::Start, function::Isolation, limits,
    subject, time,
};
use futures::FutureExt as _;
use nix::libc::{SIGKILL, SIGTERM};

use super::{
    Attempt, Secrets, environment,
    outcome::{self, Ending},
    output::{Capture, Source},
    prepare::Ready,
    stdin,
};
use crate::{
    executor::Process,
    held::Stop,
    launch::{Ended, ExitStatus, LaunchError},
    retry,
    sandbox::Sandbox,
};

/// Starting is tried again for this long while the agent's own trouble is in the way (no launcher, no descriptors).
const START_WITHIN: Duration = Duration::from_secs(30);

pub(super) enum Ran {
    /// `by_cancel`: a cancel is what ended it.
    Ended { outcome: Box<Outcome>, by_cancel: bool },
    /// With its launcher; nobody knows how far it came.
    Lost,
    /// The agent goes away.
    Abandoned,
}

/// What the one timer is for, next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alarm {
    SayRunning,
    Limit,
    Kill,
    KillAgain,
    GiveUp,
    None,
}

struct Clock {
    started: Instant,
    limit: Option<Instant>,
    /// When SIGTERM was sent, or SIGKILL.
    asked_to_end: Option<Instant>,
    killed: Option<Instant>,
    /// Of a worker that forks, which the first SIGKILL spares.
    killed_again: bool,
    said_running: bool,
}

impl Clock {
    fn next(&self, grace: Duration) -> (Alarm, Option<Instant>) {
        if let Some(killed) = self.killed {
            if !self.killed_again {
                return (Alarm::KillAgain, Some(killed + limits::FORK_ENDS_WITHIN));
            }
            return (Alarm::GiveUp, Some(killed + limits::KILL_TAKES_AT_MOST));
        }
        if let Some(asked) = self.asked_to_end {
            return (Alarm::Kill, Some(asked + grace));
        }
        let running = (!self.said_running).then(|| self.started + limits::RUNNING_STATUS_AFTER);
        match (running, self.limit) {
            (Some(running), Some(limit)) if limit <= running => (Alarm::Limit, Some(limit)),
            (Some(running), _) => (Alarm::SayRunning, Some(running)),
            (None, Some(limit)) => (Alarm::Limit, Some(limit)),
            (None, None) => (Alarm::None, None),
        }
    }
}

impl Attempt {
    /// In a process of its own, or by a worker.
    pub(super) async fn run_or_serve(&mut self, ready: &Ready) -> Ran {
        if ready.version.spec.runtime.has_workers() {
            return self.serve(ready).await;
        }
        let _claim = self.node.warm.claim(ready.version.spec.resources.memory);
        self.run(ready).await
    }

    async fn run(&mut self, ready: &Ready) -> Ran {
        let spec = &ready.version.spec;
        let secrets = match self.secrets(&ready.version).await {
            Ok(secrets) => secrets,
            Err(not_given) => return not_given.ran(),
        };
        let (mut process, mut capture) = match self.start_within(ready, &secrets).await {
            Ok(started) => started,
            Err(not_started) => return not_started.ran(),
        };
        let started_at_us = process.started_at_us();
        self.started_at = i64::try_from(started_at_us).ok().map(Timestamp::from_micros);
        tracing::debug!(pid = process.pid(), version = ready.version.version, "started");
        let mut ending = None;
        let answer = std::pin::pin!(std::future::pending::<Infallible>());
        let ended = self.watch(&mut *process, &mut capture, spec, &mut ending, answer).await;
        drop(process);
        // What it wrote last is still in the pipes, unless someone it left behind holds them open.
        if !capture.read_rest() {
            let _ = tokio::time::timeout(limits::PIPE_DRAIN, capture.pump()).await;
        }
        capture.finish().await;
        if matches!(ended, Watched::Undying) {
            self.notes.push("its process did not end at SIGKILL; its usage is not known".to_owned());
        }
        let report = match ended {
            Watched::Abandoned => return Ran::Abandoned,
            // An attempt that was to end anyway has its outcome; one more would be cancelled or late as well.
            Watched::Ended(Ended::LauncherLost) if ending.is_none() => return Ran::Lost,
            Watched::Ended(Ended::LauncherLost) | Watched::Undying => nobody_saw(),
            Watched::Ended(Ended::Finished(report)) => report,
            Watched::Answered(never) => match never {},
        };
        let output = self.take_output();
        let mut outcome = outcome::of_process(&report, ending.as_ref(), spec, started_at_us, output, &mut self.notes);
        outcome.start = Some(Start::COLD);
        let by_cancel = outcome.status == OutcomeStatus::Cancelled;
        Ran::Ended { outcome: Box::new(outcome), by_cancel }
    }

    async fn start_within(&self, ready: &Ready, secrets: &Secrets) -> Result<(Box<dyn Process>, Capture), Started> {
        let mut trouble = Trouble::default();
        loop {
            match self.start(ready, secrets).await {
                Err(Started::Refused(error)) => self.wait_out(error, &mut trouble).await?,
                other => return other,
            }
        }
    }

    /// What keeps the agent from starting anything is no failure of the function: it is waited for, within limits.
    pub(super) async fn wait_out(&self, error: LaunchError, trouble: &mut Trouble) -> Result<(), Started> {
        if !outcome::is_own_trouble(&error) || Instant::now() >= trouble.until {
            return Err(Started::Refused(error));
        }
        self.check_age().map_err(Started::Late)?;
        trouble.tries += 1;
        let tries = trouble.tries;
        tracing::warn!(error = &error as &dyn std::error::Error, tries, "not started; trying on");
        // A stop is looked at by the next try.
        let _ = tokio::time::timeout(retry::pause(tries), self.execution.until_stopped()).await;
        Ok(())
    }

    async fn start(&self, ready: &Ready, secrets: &Secrets) -> Result<(Box<dyn Process>, Capture), Started> {
        let refused = |error: std::io::Error| Started::Refused(LaunchError::Socket(error));
        let stdin = stdin::stdin(&ready.payload).map_err(refused)?;
        let (stdout, read_stdout) = stdin::output_pipe().map_err(refused)?;
        let (stderr, read_stderr) = stdin::output_pipe().map_err(refused)?;
        let attempt = self.execution.attempt();
        let spec = &ready.version.spec;
        let start = environment::request(
            &ready.version,
            ready.code.as_ref(),
            &environment::Seen {
                execution_id: self.execution.id,
                attempt,
                args: &self.invocation.args,
                payload: &ready.payload,
                deadline: environment::earlier(spec.timeout, self.invocation.deadline, time::now()),
                trace: self.trace.child(),
                addresses: &self.node.addresses,
                secrets,
            },
            self.interpreter(spec).as_deref(),
        );
        let sandbox = self.sandbox(spec)?;
        let process = self.spawned(sandbox.start(start, [stdin, stdout, stderr], None)).await?;
        let pipes = [Source::Open(read_stdout), Source::Open(read_stderr)];
        let (node, execution) = (Arc::clone(&self.node), Arc::clone(&self.execution));
        Ok((process, Capture::new(node, execution, attempt, pipes, secrets.hidden())))
    }

    pub(super) fn sandbox(&self, spec: &FunctionSpec) -> Result<&dyn Sandbox, Started> {
        self.node.sandbox(spec.isolation).ok_or_else(|| {
            let message = format!("this agent has no `isolation: {}`; another one may", spec.isolation.as_str());
            Started::Late(Box::new(super::failed(ErrorKind::Sandbox, message)))
        })
    }

    /// The program of the function's runtime: this agent's, or that of its image.
    pub(super) fn interpreter(&self, spec: &FunctionSpec) -> Option<String> {
        match spec.isolation {
            Isolation::Process => self.node.runtimes.read().of(spec.runtime).map(|found| found.program.clone()),
            Isolation::Container | Isolation::Microvm => environment::in_images(spec.runtime).map(str::to_owned),
        }
    }

    /// Starts it, unless it is stopped first.
    pub(super) async fn spawned(
        &self,
        spawn: impl Future<Output = Result<Box<dyn Process>, LaunchError>>,
    ) -> Result<Box<dyn Process>, Started> {
        if let Some(stop) = self.execution.until_stopped().now_or_never() {
            return Err(Started::Stopped(stop.clone()));
        }
        tokio::pin!(spawn);
        tokio::select! {
            biased;
            process = &mut spawn => process.map_err(Started::Refused),
            stop = self.execution.until_stopped() => {
                // The launcher may be starting it: whoever cancelled it hears so when nothing of it can start any more.
                if matches!(stop, Stop::Cancelled(_))
                    && let Ok(Ok(mut process)) = tokio::time::timeout(limits::KILL_TAKES_AT_MOST, spawn).await
                {
                    process.kill(SIGKILL);
                    let _ = tokio::time::timeout(limits::KILL_TAKES_AT_MOST, process.wait()).await;
                }
                Err(Started::Stopped(stop.clone()))
            }
        }
    }

    /// Reads, waits for its end or a worker's answer, and ends it when its time is up or it is asked to.
    pub(super) async fn watch<A>(
        &self,
        process: &mut dyn Process,
        capture: &mut Capture,
        spec: &FunctionSpec,
        ending: &mut Option<Ending>,
        mut answer: Pin<&mut impl Future<Output = A>>,
    ) -> Watched<A> {
        // Most are over when the launcher tells of them, and then there is nothing to wait or to listen for.
        if let Some(ended) = process.wait().now_or_never() {
            return Watched::Ended(ended);
        }
        let grace = spec.stop_grace;
        let started = Instant::now();
        let (limit, at_limit) = self.limit(spec, started);
        let mut clock =
            Clock { started, limit, asked_to_end: None, killed: None, killed_again: !spec.fresh, said_running: false };
        let pump = capture.pump();
        tokio::pin!(pump);
        let mut pumping = true;
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        loop {
            let (alarm, at) = clock.next(grace);
            if let Some(at) = at.map(tokio::time::Instant::from_std)
                && timer.deadline() != at
            {
                timer.as_mut().reset(at);
            }
            let end = tokio::select! {
                answer = &mut answer => return Watched::Answered(answer),
                ended = process.wait() => return Watched::Ended(ended),
                () = &mut pump, if pumping => {
                    pumping = false;
                    continue;
                }
                stop = self.execution.until_stopped(), if clock.asked_to_end.is_none() => match stop {
                    Stop::Abandoned => return Watched::Abandoned,
                    Stop::Cancelled(reason) => Some(Ending::Cancelled(reason.clone())),
                },
                () = &mut timer, if at.is_some() => match alarm {
                    Alarm::SayRunning => {
                        clock.said_running = true;
                        self.say_running();
                        None
                    }
                    Alarm::Limit => at_limit.clone(),
                    Alarm::Kill => {
                        process.kill(SIGKILL);
                        clock.killed = Some(Instant::now());
                        None
                    }
                    // The first one finds nobody where a worker was just about to fork.
                    Alarm::KillAgain => {
                        process.kill(SIGKILL);
                        clock.killed_again = true;
                        None
                    }
                    Alarm::GiveUp => return Watched::Undying,
                    Alarm::None => None,
                },
            };
            if let Some(why) = end {
                *ending = Some(why);
                let now = Instant::now();
                clock.asked_to_end = Some(now);
                if grace.is_zero() {
                    process.kill(SIGKILL);
                    clock.killed = Some(now);
                } else {
                    process.kill(SIGTERM);
                }
            }
        }
    }

    /// The earlier of the function's timeout and the caller's deadline.
    fn limit(&self, spec: &FunctionSpec, started: Instant) -> (Option<Instant>, Option<Ending>) {
        let timeout = spec.timeout.map(|timeout| (started + timeout, Ending::Timeout(timeout)));
        let deadline = self
            .invocation
            .deadline
            .map(|deadline| (started + deadline.since(time::now()).min(limits::TIMEOUT), Ending::Deadline(deadline)));
        match (timeout, deadline) {
            (Some(timeout), Some(deadline)) => Some(if timeout.0 <= deadline.0 { timeout } else { deadline }),
            (either, None) | (None, either) => either,
        }
        .unzip()
    }

    /// Off the path of the execution: a status that waits for the broker must not hold up its output.
    fn say_running(&self) {
        let status = self.status(Phase::Running, None);
        let node = Arc::clone(&self.node);
        let reply_to = self.invocation.reply_to.clone().filter(|reply_to| subject::is_gateway_reply(reply_to));
        let execution = Arc::clone(&self.execution);
        self.node.tasks.spawn("running status", async move {
            let Ok(encoded) = serde_json::to_vec(&status).map(bytes::Bytes::from) else { return };
            if let Some(reply_to) = reply_to {
                let _ = node.broker.signal(reply_to, encoded.clone()).await;
            }
            let mut tries = 0;
            // Once it ended, its end is what is worth saying.
            while execution.is_running() {
                match node.broker.publish_status_bytes(node.id.as_str(), &status, encoded.clone()).await {
                    Ok(()) => return,
                    Err(error) => {
                        tries += 1;
                        tracing::debug!(error = &error as &dyn std::error::Error, tries, "`running` was not recorded");
                        tokio::time::sleep(retry::pause(tries)).await;
                    }
                }
            }
        });
    }
}

fn refused(error: &LaunchError) -> Ran {
    match outcome::of_launch_error(error) {
        Some(error) => {
            let outcome = Outcome::without_process(OutcomeStatus::Failed, error);
            Ran::Ended { outcome: Box::new(outcome), by_cancel: false }
        }
        None => Ran::Lost,
    }
}

/// How long starting was tried, and until when it is.
pub(super) struct Trouble {
    until: Instant,
    tries: u32,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { until: Instant::now() + START_WITHIN, tries: 0 }
    }
}

/// Why there is no process.
pub(super) enum Started {
    Refused(LaunchError),
    /// It is too late to start it.
    Late(Box<Outcome>),
    Stopped(Stop),
}

impl Started {
    /// What that makes of the attempt.
    pub(super) fn ran(self) -> Ran {
        match self {
            Self::Late(outcome) => Ran::Ended { outcome, by_cancel: false },
            Self::Stopped(Stop::Abandoned) => Ran::Abandoned,
            Self::Stopped(Stop::Cancelled(reason)) => {
                Ran::Ended { outcome: Box::new(super::cancelled(&reason)), by_cancel: true }
            }
            Self::Refused(error) => refused(&error),
        }
    }
}

pub(super) enum Watched<A> {
    /// Only of a worker.
    Answered(A),
    Ended(Ended),
    /// Not even SIGKILL ended it in time.
    Undying,
    Abandoned,
}

pub(super) fn nobody_saw() -> EndedReport {
    EndedReport {
        id: 0,
        status: ExitStatus::Signaled(SIGKILL),
        oom_killed: false,
        cpu_us: 0,
        memory_peak_bytes: 0,
        ended_at_us: u64::try_from(time::now().as_micros()).unwrap_or(0),
    }
}
