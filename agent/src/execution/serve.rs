//! One invocation by a worker: one that waits, or a new one.
//!
//! The answer ends an invocation, not a process. What was printed before it is read after it, and belongs to it; then the
//! worker waits for the next, unless something speaks against that.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flux_launcher::wire::{EndedReport, ExitStatus};
use flux_protocol::{
    ErrorKind, ExecutionError, FunctionSpec, Outcome, OutcomeStatus, Stream, Timestamp, Usage,
    execution::{Start, StartKind},
    function::Runtime,
    limits, time,
};
use flux_secrets::{Patterns, Redactor};
use flux_worker::{Call, Fault, Load, Used, bootstrap};
use nix::libc::SIGKILL;

use super::{
    Attempt, Secrets, environment, fresh,
    outcome::{self, Ending},
    output::Capture,
    prepare::Ready,
    run::{Ran, Started, Trouble, Watched, nobody_saw},
};
use crate::{
    executor::Process,
    lambda::RuntimeApi,
    launch::{Ended, LaunchError},
    warm::{Channel, Died, Exchange, FirstWords, Key, Lease, Parts, Served, Talk, Unfit, Worker},
};

/// A worker that closed its channel is ending, or is ended.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// How one invocation came to its end.
struct Invoked {
    watched: Watched<Exchange>,
    ending: Option<Ending>,
    started: Instant,
    started_at_us: u64,
    is_new: bool,
}

impl Attempt {
    pub(super) async fn serve(&mut self, ready: &Ready) -> Ran {
        let spec = &ready.version.spec;
        let key = Key { function: spec.name.clone(), version: ready.version.version };
        // Given once for an attempt, however many workers it takes.
        let mut given = None;
        loop {
            // With `keep_warm: 0` none ever waits.
            let taken = tokio::select! {
                biased;
                stop = self.execution.until_stopped() => return Started::Stopped(stop.clone()).ran(),
                taken = self.node.warm.take(&key) => taken,
            };
            let _claim = self.node.warm.claim(spec.resources.memory);
            let (lease, waiting) = taken;
            let began = Instant::now();
            let (worker, is_new) = match waiting {
                Some(worker) => (worker, false),
                None => match self.start_worker_within(ready, &mut given).await {
                    Ok(worker) => (worker, true),
                    Err(not_started) => return not_started.ran(),
                },
            };
            if let Some(ran) = self.served_by(ready, worker, is_new, lease, began).await {
                return ran;
            }
            tracing::debug!("a worker ended just before its invocation; another one serves it");
        }
    }

    async fn start_worker_within(&self, ready: &Ready, given: &mut Option<Secrets>) -> Result<Worker, Started> {
        let secrets = match given {
            Some(secrets) => secrets.clone(),
            none => none.insert(self.secrets(&ready.version).await?).clone(),
        };
        let mut trouble = Trouble::default();
        loop {
            match self.start_worker(ready, secrets.clone()).await {
                Err(Started::Refused(error)) => self.wait_out(error, &mut trouble).await?,
                other => return other,
            }
        }
    }

    async fn start_worker(&self, ready: &Ready, secrets: Secrets) -> Result<Worker, Started> {
        let spec = &ready.version.spec;
        let parts = Parts::make().map_err(refused)?;
        let pipes = parts.pipes;
        let (process, talk) = match spec.runtime {
            Runtime::Lambda => self.start_bootstrap(ready, &secrets, parts.stdio).await?,
            _ => self.start_interpreter(ready, &secrets, parts.stdio).await?,
        };
        tracing::debug!(pid = process.pid(), version = ready.version.version, "a worker started");
        let (version, code) = (Arc::clone(&ready.version), ready.code.clone());
        let oom_kills = spec.fresh.then(|| process.oom_kills()).flatten();
        Ok(Worker { process, talk, pipes, served: 0, cpu_us: 0, oom_kills, version, secrets, _code: code })
    }

    async fn start_bootstrap(
        &self,
        ready: &Ready,
        secrets: &Secrets,
        stdio: [OwnedFd; 3],
    ) -> Result<(Box<dyn Process>, Talk), Started> {
        let version = &ready.version;
        let mut request = environment::bootstrap_request(version, ready.code.as_ref(), &self.node.addresses);
        environment::give(&mut request, secrets);
        let mut process = self.spawned(self.node.executor.spawn(request, stdio)).await?;
        let listener = process.take_listener().ok_or_else(|| refused(io::ErrorKind::NotConnected.into()))?;
        let api = RuntimeApi::new(listener.into(), process.pid(), process.census(), &version.spec).map_err(refused)?;
        Ok((process, Talk::Lambda(Box::new(api))))
    }

    async fn start_interpreter(
        &self,
        ready: &Ready,
        secrets: &Secrets,
        stdio: [OwnedFd; 3],
    ) -> Result<(Box<dyn Process>, Talk), Started> {
        let spec = &ready.version.spec;
        let bootstrap = if spec.fresh { bootstrap::forking(spec.runtime) } else { bootstrap::of(spec.runtime) };
        let found = self.interpreter(spec).zip(bootstrap);
        let Some((interpreter, bootstrap)) = found else {
            let message = format!("this agent has no `{}`; another one may", spec.runtime);
            return Err(Started::Late(Box::new(super::failed(ErrorKind::Sandbox, message))));
        };
        let first = FirstWords { bootstrap, load: Load { fresh: spec.fresh, ..Load::from(spec.entry()) } };
        let addresses = &self.node.addresses;
        let code = ready.code.as_ref();
        let mut start = environment::worker_request(&ready.version, code, addresses, &interpreter, bootstrap.arguments);
        environment::give(&mut start.request, secrets);
        first.encode(&mut start.loads);
        let (channel, their_channel) = Channel::pair(first).map_err(refused)?;
        let sandbox = self.sandbox(spec)?;
        let process = self.spawned(sandbox.start(start, stdio, Some(their_channel))).await?;
        Ok((process, Talk::Framed(channel)))
    }

    /// `None`: the worker was gone, and nothing of the invocation has reached it.
    async fn served_by(
        &mut self,
        ready: &Ready,
        mut worker: Worker,
        is_new: bool,
        lease: Lease,
        began: Instant,
    ) -> Option<Ran> {
        let spec = &ready.version.spec;
        let started = Instant::now();
        let started_at_us =
            if is_new { worker.process.started_at_us() } else { u64::try_from(time::now().as_micros()).unwrap_or(0) };
        self.started_at = i64::try_from(started_at_us).ok().map(Timestamp::from_micros);
        let call = self.call(ready);
        let hidden = worker.secrets.hidden().cloned();
        let (node, execution, attempt) =
            (Arc::clone(&self.node), Arc::clone(&self.execution), self.execution.attempt());
        let mut capture = Capture::new(node, execution, attempt, worker.pipes, hidden.as_ref());
        let mut ending = None;
        let mut watched = {
            let last_words = worker.talk.last_words();
            let mut sparing;
            let process: &mut dyn Process = if spec.fresh {
                sparing = fresh::Sparing::new(&mut *worker.process, worker.talk.forks().cloned());
                &mut sparing
            } else {
                &mut *worker.process
            };
            let exchange = worker.talk.exchange(&call, &ready.payload);
            tokio::pin!(exchange);
            let watched = self.watch(process, &mut capture, spec, &mut ending, exchange.as_mut()).await;
            match watched {
                // It may have answered just before its end, or said why there is no answer: all that was heard is read.
                Watched::Ended(ended) if ending.is_none() => match tokio::time::timeout(last_words, exchange).await {
                    Ok(Exchange::Served(served)) => Watched::Answered(Exchange::Served(served)),
                    Ok(Exchange::NotLoaded(fault)) => Watched::Answered(Exchange::NotLoaded(fault)),
                    Ok(Exchange::NotSent) => Watched::Answered(Exchange::NotSent),
                    _ => Watched::Ended(ended),
                },
                watched => watched,
            }
        };
        if matches!(watched, Watched::Ended(_))
            && ending.is_none()
            && let Some(served) = worker.talk.take_answer()
        {
            watched = Watched::Answered(Exchange::Served(served));
        }
        let ended_unheard =
            !is_new && ending.is_none() && matches!(watched, Watched::Ended(_)) && worker.talk.is_unread();
        if matches!(watched, Watched::Answered(Exchange::NotSent)) && ending.is_none() || ended_unheard {
            return None;
        }
        if let Watched::Answered(Exchange::Closed) = watched {
            watched = ended(&mut *worker.process).await;
        }
        let answered = matches!(watched, Watched::Answered(_));
        // Whoever it left behind may hold the pipes of one that ended; one that lives holds them itself.
        if !capture.read_rest() && !answered {
            let _ = tokio::time::timeout(limits::PIPE_DRAIN, capture.pump()).await;
        }
        worker.pipes = capture.finish().await;
        let invoked = Invoked { watched, ending, started, started_at_us, is_new };
        Some(self.conclude(spec, worker, lease, invoked, began).await)
    }

    /// What is recorded of it, and what becomes of the worker.
    async fn conclude(
        &mut self,
        spec: &FunctionSpec,
        mut worker: Worker,
        lease: Lease,
        invoked: Invoked,
        began: Instant,
    ) -> Ran {
        let Invoked { watched, ending, started, started_at_us, is_new } = invoked;
        let hidden = worker.secrets.hidden().cloned();
        let watched = redacted(watched, hidden.as_ref(), &mut self.notes);
        let mut start = if is_new { Start::COLD } else { Start::WARM };
        let mut outcome = match watched {
            Watched::Abandoned => return Ran::Abandoned,
            Watched::Ended(Ended::LauncherLost) if ending.is_none() => return Ran::Lost,
            Watched::Ended(Ended::LauncherLost) | Watched::Undying => {
                self.of_its_end(&nobody_saw(), ending.as_ref(), spec, started_at_us, worker.cpu_us)
            }
            Watched::Ended(Ended::Finished(mut report)) => {
                // It counts what ended at the limit since the worker's start.
                report.oom_killed &= fresh::passed_its_memory(&worker) != Some(false);
                let outcome = self.of_its_end(&report, ending.as_ref(), spec, started_at_us, worker.cpu_us);
                if ending.is_none() && worker.talk.never_asked() { not_begun(outcome) } else { outcome }
            }
            Watched::Answered(Exchange::Served(served)) => {
                if let Some(loaded_at) = served.loaded_at {
                    start.init_ms = loaded_at.duration_since(began).into();
                    lease.started(loaded_at.duration_since(began));
                }
                let took = served.answered_at.duration_since(served.loaded_at.unwrap_or(started));
                let usage = usage_of(&served.used);
                self.note_dropped(served.used.dropped_bytes);
                if worker.talk.forking().is_some() {
                    let was_stopped = ending.is_some();
                    self.returns(worker, lease, fresh::Turn { took, is_over: false, was_stopped }).await;
                    let outcome = match &ending {
                        Some(ending) => self.ended_by(ending),
                        None => self.of_answer(served.answer),
                    };
                    Outcome { duration_ms: took.into(), usage, ..outcome }
                } else if let Some(ending) = &ending {
                    end(&mut *worker.process).await;
                    Outcome { duration_ms: took.into(), usage, ..self.ended_by(ending) }
                } else {
                    if let Some(why) = worker.talk.cannot_fork() {
                        self.note_cannot_fork(why, hidden.as_ref());
                    }
                    let unfit = self.unfit(&mut worker, &served, spec).await;
                    match unfit {
                        None if !spec.keep_warm.is_zero() => lease.give_back(worker, took),
                        _ => drop((worker, lease)),
                    }
                    Outcome { duration_ms: took.into(), usage, ..self.of_answer(served.answer) }
                }
            }
            Watched::Answered(Exchange::Died(Died { loaded_at, over })) => {
                if let Some(loaded_at) = loaded_at {
                    start.init_ms = loaded_at.duration_since(began).into();
                    lease.started(loaded_at.duration_since(began));
                }
                let report = fresh::report(&over, fresh::passed_its_memory(&worker) == Some(true));
                let outcome = self.of_its_end(&report, ending.as_ref(), spec, started_at_us, 0);
                // What was not read is still there, and would be taken for the next invocation.
                if over.is_unread {
                    if ending.is_some() {
                        end(&mut *worker.process).await;
                    }
                } else {
                    let turn = fresh::Turn { took: started.elapsed(), is_over: true, was_stopped: ending.is_some() };
                    self.returns(worker, lease, turn).await;
                }
                outcome
            }
            Watched::Answered(Exchange::NotLoaded(_) | Exchange::Nonsense(_) | Exchange::NotSent)
                if let Some(ending) = &ending =>
            {
                end(&mut *worker.process).await;
                self.ended_by(ending)
            }
            Watched::Answered(Exchange::NotLoaded(fault)) if spec.runtime == Runtime::Lambda => {
                let error = raised(fault);
                let message = format!("its `bootstrap` could not be initialised: {}", error.message);
                self.failed_with(ExecutionError { message, ..error })
            }
            Watched::Answered(Exchange::NotLoaded(fault)) => self.failed_with(not_loaded(fault)),
            Watched::Answered(Exchange::Nonsense(problem)) => {
                let message = format!("its worker sent what is no answer, and was ended: {problem}");
                self.failed_with(ExecutionError::new(ErrorKind::Exit, message))
            }
            // Looked at before.
            Watched::Answered(Exchange::NotSent | Exchange::Closed) => return Ran::Lost,
        };
        outcome.start = Some(start);
        if start.kind == StartKind::Cold {
            tracing::debug!(init_ms = start.init_ms.as_f64(), "served by a new worker");
        }
        let by_cancel = outcome.status == OutcomeStatus::Cancelled;
        Ran::Ended { outcome: Box::new(outcome), by_cancel }
    }

    fn call(&self, ready: &Ready) -> Call {
        let spec = &ready.version.spec;
        Call {
            execution_id: self.execution.id.to_string(),
            function: spec.name.to_string(),
            version: ready.version.version,
            attempt: self.execution.attempt(),
            deadline_ms: environment::earlier(spec.timeout, self.invocation.deadline, time::now())
                .map(Timestamp::as_millis),
            args: self.invocation.args.clone(),
            traceparent: self.trace.child().to_string(),
        }
    }

    /// Whether the worker is not to be used again; said where the function's author can do something about it.
    async fn unfit(&mut self, worker: &mut Worker, served: &Served, spec: &FunctionSpec) -> Option<Unfit> {
        worker.served += 1;
        worker.cpu_us = worker.cpu_us.saturating_add(served.used.cpu_us);
        let unfit = if worker.talk.cannot_fork().is_some() {
            Some(Unfit::Ends)
        } else if fresh::is_current(&self.node, worker) {
            worker.unfit(served.used.threads_left, served.used.peak_bytes).await
        } else {
            Some(Unfit::Replaced)
        };
        let said = match unfit? {
            Unfit::Spoiled => {
                Some("a callback that an earlier call began had failed, or had asked the process to exit".to_owned())
            }
            Unfit::Threads(left) => Some(format!("{left} of its threads still ran")),
            Unfit::Processes => Some("processes that it had started still ran".to_owned()),
            Unfit::Closed => Some("it had closed its standard output or error".to_owned()),
            Unfit::DoesNotAsk => {
                let seconds = limits::LAMBDA_ASKS_AGAIN.as_secs();
                Some(format!("it did not ask for its next invocation within {seconds} s"))
            }
            Unfit::Memory => Some(format!("it held more than {} % of its memory", limits::WORKER_MEMORY_PERCENT)),
            Unfit::Ends | Unfit::Invocations | Unfit::Replaced => None,
        };
        if let Some(said) = said.filter(|_| !spec.keep_warm.is_zero()) {
            self.notes.push(format!("when it had answered, {said}: its worker was ended, and the next start is cold"));
        }
        unfit
    }

    /// Else one would look for it in vain: an emitter that is made in one call goes on in that call's context.
    fn note_dropped(&mut self, bytes: u64) {
        if bytes > 0 {
            let note = "what callbacks print that an earlier call began belongs to nobody";
            self.notes.push(format!("{bytes} bytes of output were dropped: {note}"));
        }
    }

    fn of_answer(&mut self, answer: Result<Bytes, Fault>) -> Outcome {
        let error = match answer {
            Ok(result) => {
                self.execution.output.lock().push(Stream::Result, result);
                None
            }
            Err(fault) => Some(raised(fault)),
        };
        let status = if error.is_some() { OutcomeStatus::Failed } else { OutcomeStatus::Success };
        Outcome { status, error, ..self.printed() }
    }

    /// It was asked to end, and answered: its signal may still be on its way, or its process half shut down. What ended it
    /// is what counts, as it is for a process that exits with 0 then.
    fn ended_by(&mut self, ending: &Ending) -> Outcome {
        let status = outcome::status_of_ending(ending);
        Outcome { status, error: Some(outcome::error_of_ending(ending)), ..self.printed() }
    }

    /// The process ended, and with it the invocation.
    fn of_its_end(
        &mut self,
        report: &EndedReport,
        ending: Option<&Ending>,
        spec: &FunctionSpec,
        started_at_us: u64,
        cpu_us_before: u64,
    ) -> Outcome {
        let own = EndedReport { cpu_us: report.cpu_us.saturating_sub(cpu_us_before), ..*report };
        let output = self.printed().output;
        let mut outcome = outcome::of_process(&own, ending, spec, started_at_us, output, &mut self.notes);
        if ending.is_none() && report.status == ExitStatus::Exited(0) {
            outcome.status = OutcomeStatus::Failed;
            outcome.error = Some(ExecutionError {
                exit_code: Some(0),
                ..ExecutionError::new(ErrorKind::Exit, "its process ended with code 0 before the handler returned")
            });
        }
        outcome
    }

    fn failed_with(&mut self, error: ExecutionError) -> Outcome {
        Outcome { status: OutcomeStatus::Failed, error: Some(error), ..self.printed() }
    }

    /// A success that has what was printed, and nothing else.
    fn printed(&mut self) -> Outcome {
        let output = self.take_output();
        Outcome {
            status: OutcomeStatus::Success,
            error: None,
            output,
            output_ref: None,
            duration_ms: Duration::ZERO.into(),
            start: None,
            usage: Usage::default(),
            will_retry: false,
        }
    }
}

fn refused(error: io::Error) -> Started {
    Started::Refused(LaunchError::Socket(error))
}

/// A Lambda package whose program ended before it asked for anything.
fn not_begun(mut outcome: Outcome) -> Outcome {
    if let Some(error) = &mut outcome.error {
        let how = std::mem::take(&mut error.message);
        error.message = match (error.kind, error.exit_code) {
            (ErrorKind::Exit, Some(0)) => {
                "its `bootstrap` ended with code 0 and never asked for an invocation".to_owned()
            }
            _ => format!("its `bootstrap` ended before it asked for an invocation: {how}"),
        };
    }
    outcome
}

/// Waits for the process of a worker that closed its channel, and ends one that lives on.
async fn ended(process: &mut dyn Process) -> Watched<Exchange> {
    if let Ok(ended) = tokio::time::timeout(ENDS_WITHIN, process.wait()).await {
        return Watched::Ended(ended);
    }
    match end(process).await {
        Some(ended) => Watched::Ended(ended),
        None => Watched::Undying,
    }
}

/// Ends a worker at once, whatever it was told before: whoever hears of its end can rely on it.
pub(super) async fn end(process: &mut dyn Process) -> Option<Ended> {
    process.kill(SIGKILL);
    tokio::time::timeout(limits::KILL_TAKES_AT_MOST, process.wait()).await.ok()
}

/// What a handler returned or raised, without the secrets that are hidden in what it prints.
fn redacted(watched: Watched<Exchange>, hidden: Option<&Patterns>, notes: &mut Vec<String>) -> Watched<Exchange> {
    let Some(hidden) = hidden else { return watched };
    let text = |text: String| String::from_utf8_lossy(&Redactor::whole(hidden, text.as_bytes())).into_owned();
    let fault = |fault: Fault| Fault {
        kind: text(fault.kind),
        message: text(fault.message),
        stack: text(fault.stack),
        ..fault
    };
    match watched {
        Watched::Answered(Exchange::Served(served)) => {
            let answer = match served.answer {
                Ok(result) => Ok(redacted_result(hidden, &result, notes)),
                Err(raised) => Err(fault(raised)),
            };
            Watched::Answered(Exchange::Served(Served { answer, ..served }))
        }
        Watched::Answered(Exchange::NotLoaded(raised)) => Watched::Answered(Exchange::NotLoaded(fault(raised))),
        Watched::Answered(Exchange::Nonsense(said)) => Watched::Answered(Exchange::Nonsense(text(said))),
        other => other,
    }
}

/// What was JSON stays JSON: a secret that is a number, or a part of one or of a word, leaves a text behind that is none.
fn redacted_result(hidden: &Patterns, result: &[u8], notes: &mut Vec<String>) -> Bytes {
    let is_json = |text: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
    let masked = Redactor::whole(hidden, result);
    if masked == result || is_json(&masked) || !is_json(result) {
        return masked.into();
    }
    notes.push("its result is no JSON without the secrets in it: it is a JSON string of what is left".to_owned());
    serde_json::Value::from(String::from_utf8_lossy(&masked)).to_string().into()
}

fn usage_of(used: &Used) -> Usage {
    Usage {
        cpu_ms: Duration::from_micros(used.cpu_us).into(),
        memory_peak_mb: used.peak_bytes.div_ceil(limits::MIB as u64),
    }
}

/// An exception of the handler.
fn raised(fault: Fault) -> ExecutionError {
    let Fault { kind, message, stack, .. } = fault;
    let message = if message.is_empty() { kind.clone() } else { message };
    ExecutionError {
        error_type: Some(kind.into()),
        stack: Some(stack).filter(|stack| !stack.is_empty()).map(Into::into),
        ..ExecutionError::new(ErrorKind::Exit, message)
    }
}

/// A handler that is not there is no function; one whose module raises when it is loaded failed.
fn not_loaded(fault: Fault) -> ExecutionError {
    if fault.missing {
        return ExecutionError::new(ErrorKind::InvalidFunction, fault.message);
    }
    let error = raised(fault);
    ExecutionError { message: format!("its module could not be loaded: {}", error.message), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_was_json_is_json_without_its_secrets() {
        let hidden = Patterns::of([&b"12345"[..], b"hunter2"]).expect("patterns");
        for (result, expected, noted) in [
            (r#"{"pin":12345}"#, r#""{\"pin\":***}""#, true),
            ("[1123456]", r#""[1***6]""#, true),
            (r#"{"word":"hunter2"}"#, r#"{"word":"***"}"#, false),
            (r#"{"n": 1.50}"#, r#"{"n": 1.50}"#, false),
            ("no JSON 12345", "no JSON ***", false),
        ] {
            let mut notes = Vec::new();
            let redacted = redacted_result(&hidden, result.as_bytes(), &mut notes);
            assert_eq!(redacted, expected, "{result}");
            assert_eq!(!notes.is_empty(), noted, "{result}: {notes:?}");
        }
    }
}
