//! From how a process ended to what is recorded of it. Pure.

use std::time::Duration;

use flux_launcher::wire::{EndedReport, ExitStatus, WireError};
use flux_protocol::{
    ErrorKind, ExecutionError, FunctionSpec, Lane, Outcome, OutcomeStatus, OutputLog, Timestamp, Usage, limits,
};
use nix::sys::signal::Signal;

use crate::launch::LaunchError;

/// Why the agent ended a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    Timeout(Duration),
    Deadline(Timestamp),
    Cancelled(String),
}

/// What is recorded of a process that ended.
pub(super) fn of_process(
    ended: &EndedReport,
    ending: Option<&Ending>,
    spec: &FunctionSpec,
    started_at_us: u64,
    output: OutputLog,
    notes: &mut Vec<String>,
) -> Outcome {
    let error = match ending {
        Some(ending) => Some(error_of_ending(ending)),
        None => error_of_exit(ended, spec, notes),
    };
    let status = match (&error, ending) {
        (_, Some(ending)) => status_of_ending(ending),
        (Some(_), None) => OutcomeStatus::Failed,
        (None, None) => OutcomeStatus::Success,
    };
    Outcome {
        status,
        error,
        output,
        output_ref: None,
        start: None,
        duration_ms: Duration::from_micros(ended.ended_at_us.saturating_sub(started_at_us)).into(),
        usage: Usage {
            cpu_ms: Duration::from_micros(ended.cpu_us).into(),
            memory_peak_mb: ended.memory_peak_bytes.div_ceil(limits::MIB as u64),
        },
        will_retry: false,
    }
}

pub(super) fn status_of_ending(ending: &Ending) -> OutcomeStatus {
    match ending {
        Ending::Cancelled(_) => OutcomeStatus::Cancelled,
        Ending::Timeout(_) | Ending::Deadline(_) => OutcomeStatus::Failed,
    }
}

pub(super) fn error_of_ending(ending: &Ending) -> ExecutionError {
    match ending {
        Ending::Timeout(timeout) => {
            let seconds = timeout.as_secs_f64();
            let message = format!("it ran longer than its `timeout` of {seconds} s and was ended");
            ExecutionError { limit: Some(timeout.as_secs()), ..ExecutionError::new(ErrorKind::Timeout, message) }
        }
        Ending::Deadline(deadline) => ExecutionError::new(
            ErrorKind::Timeout,
            format!("it was still running at its caller's deadline, {deadline}, and was ended"),
        ),
        Ending::Cancelled(reason) => ExecutionError::new(ErrorKind::Cancelled, reason.clone()),
    }
}

fn error_of_exit(ended: &EndedReport, spec: &FunctionSpec, notes: &mut Vec<String>) -> Option<ExecutionError> {
    let memory = spec.resources.memory;
    match ended.status {
        ExitStatus::Exited(0) => {
            if ended.oom_killed {
                notes.push(format!(
                    "one of its processes was ended for passing the memory limit of {memory} MB, though it succeeded"
                ));
            }
            None
        }
        _ if ended.oom_killed => Some(ExecutionError {
            limit: Some(memory.into()),
            ..ExecutionError::new(
                ErrorKind::OutOfMemory,
                format!("it passed its memory limit of {memory} MB; raise `resources.memory`, or use less"),
            )
        }),
        ExitStatus::Exited(code) => Some(ExecutionError {
            exit_code: Some(code),
            ..ExecutionError::new(ErrorKind::Exit, format!("it exited with code {code}"))
        }),
        ExitStatus::Signaled(number) => {
            let name = Signal::try_from(number).map_or("an unknown signal", Signal::as_str);
            Some(ExecutionError {
                signal: Some(number),
                ..ExecutionError::new(ErrorKind::Signal, format!("it was ended by {name} (signal {number})"))
            })
        }
    }
}

/// The agent's own trouble: nothing was started, and the function has no part in it.
pub(super) fn is_own_trouble(error: &LaunchError) -> bool {
    matches!(
        error,
        LaunchError::Unavailable { .. }
            | LaunchError::Start { .. }
            | LaunchError::Socket(_)
            | LaunchError::Tier { is_away: true, .. }
    )
}

/// What is recorded of a process that did not start; `None` when the attempt was lost with its launcher.
pub(super) fn of_launch_error(error: &LaunchError) -> Option<ExecutionError> {
    let told = |kind| Some(ExecutionError::new(kind, crate::error_chain(error)));
    match error {
        LaunchError::LauncherLost => None,
        LaunchError::Refused(refused) if refused.is_functions_fault() => told(ErrorKind::InvalidFunction),
        LaunchError::Request(WireError::TooLarge { .. }) => told(ErrorKind::InvalidFunction),
        LaunchError::Refused(_)
        | LaunchError::Tier { .. }
        | LaunchError::Request(_)
        | LaunchError::Unavailable { .. }
        | LaunchError::Start { .. }
        | LaunchError::Socket(_) => told(ErrorKind::Sandbox),
    }
}

/// Whether the gateway that records this publishes another attempt: an asynchronous execution whose function failed,
/// and not as often as it may.
pub(super) fn will_retry(lane: Lane, outcome: &Outcome, failures: u32, spec: Option<&FunctionSpec>) -> bool {
    let failed = outcome.status == OutcomeStatus::Failed
        && outcome.error.as_ref().is_some_and(|error| error.kind.is_function_failure());
    let allowed = spec.map_or(1, |spec| spec.retry.max_attempts);
    lane == Lane::Invoke && failed && failures.saturating_add(1) < allowed
}

/// What of an output fits a message when it cannot be stored apart: half from its start and half from its end.
pub(super) fn cut_inline(log: OutputLog) -> OutputLog {
    let half = limits::INLINE_OUTPUT / 2;
    let mut dropped = log.dropped_bytes;
    let mut head = Vec::new();
    let mut rest = log.chunks.into_iter().peekable();
    let mut bytes = 0;
    while let Some(chunk) = rest.next_if(|chunk| bytes + chunk.data.len() <= half) {
        bytes += chunk.data.len();
        head.push(chunk);
    }
    let mut tail = Vec::new();
    bytes = 0;
    for chunk in rest.rev() {
        bytes += chunk.data.len();
        if bytes <= half {
            tail.push(chunk);
        } else {
            dropped += chunk.data.len() as u64;
        }
    }
    head.extend(tail.into_iter().rev());
    OutputLog { chunks: head, dropped_bytes: dropped }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_protocol::{Chunk, Stream, function::parse_yaml};
    use proptest::prelude::*;

    use super::*;

    fn spec() -> FunctionSpec {
        parse_yaml("name: f\nhandler: f\nresources: { cpu: 100, memory: 64 }\nretry: { max_attempts: 3, backoff: 1s }")
            .expect("a function")
    }

    fn ended(status: ExitStatus, oom_killed: bool) -> EndedReport {
        EndedReport { id: 1, status, oom_killed, cpu_us: 1_500, memory_peak_bytes: 1, ended_at_us: 5_000 }
    }

    #[test]
    fn every_end_has_its_kind() {
        let timeout = Ending::Timeout(Duration::from_secs(2));
        let deadline = Ending::Deadline(Timestamp::from_millis(0));
        let cancelled = Ending::Cancelled("by hand".to_owned());
        let table = [
            (ExitStatus::Exited(0), false, None, None),
            (ExitStatus::Exited(0), true, None, None),
            (ExitStatus::Exited(3), false, None, Some((ErrorKind::Exit, Some(3), None, None))),
            (ExitStatus::Exited(3), true, None, Some((ErrorKind::OutOfMemory, None, None, Some(64)))),
            (ExitStatus::Signaled(9), true, None, Some((ErrorKind::OutOfMemory, None, None, Some(64)))),
            (ExitStatus::Signaled(11), false, None, Some((ErrorKind::Signal, None, Some(11), None))),
            (ExitStatus::Signaled(9), false, Some(&timeout), Some((ErrorKind::Timeout, None, None, Some(2)))),
            (ExitStatus::Exited(0), false, Some(&deadline), Some((ErrorKind::Timeout, None, None, None))),
            (ExitStatus::Signaled(15), false, Some(&cancelled), Some((ErrorKind::Cancelled, None, None, None))),
        ];
        for (status, oom, ending, expected) in table {
            let mut notes = Vec::new();
            let outcome = of_process(&ended(status, oom), ending, &spec(), 2_000, OutputLog::default(), &mut notes);
            let told = outcome.error.as_ref().map(|e| (e.kind, e.exit_code, e.signal, e.limit));
            assert_eq!(told, expected, "{status:?} {oom} {ending:?}");
            assert_eq!(outcome.duration_ms.micros, 3_000);
            assert_eq!(outcome.usage.memory_peak_mb, 1);
            assert_eq!(outcome.status == OutcomeStatus::Cancelled, matches!(ending, Some(Ending::Cancelled(_))));
            assert_eq!(notes.is_empty(), !(oom && expected.is_none()));
        }
        let outcome = of_process(
            &ended(ExitStatus::Signaled(11), false),
            None,
            &spec(),
            0,
            OutputLog::default(),
            &mut Vec::new(),
        );
        assert!(outcome.error.expect("an error").message.contains("SIGSEGV"));
    }

    #[test]
    fn only_a_functions_own_failures_are_retried_and_only_async() {
        let failed = |kind| Outcome::without_process(OutcomeStatus::Failed, ExecutionError::new(kind, ""));
        let spec = spec();
        for (lane, kind, failures, expected) in [
            (Lane::Invoke, ErrorKind::Exit, 0, true),
            (Lane::Invoke, ErrorKind::Timeout, 1, true),
            (Lane::Invoke, ErrorKind::Exit, 2, false),
            (Lane::Invoke, ErrorKind::AgentLost, 0, false),
            (Lane::Invoke, ErrorKind::InvalidFunction, 0, false),
            (Lane::Call, ErrorKind::Exit, 0, false),
        ] {
            assert_eq!(
                will_retry(lane, &failed(kind), failures, Some(&spec)),
                expected,
                "{lane:?} {kind:?} {failures}"
            );
        }
        let cancelled =
            Outcome::without_process(OutcomeStatus::Cancelled, ExecutionError::new(ErrorKind::Cancelled, ""));
        assert!(!will_retry(Lane::Invoke, &cancelled, 0, Some(&spec)));
    }

    proptest! {
        #[test]
        fn a_cut_output_fits_and_counts_what_is_gone(sizes in prop::collection::vec(0_usize..70_000, 0..40), lost in 0_u64..9) {
            let chunks: Vec<Chunk> = (1..)
                .zip(&sizes)
                .map(|(seq, size)| Chunk { seq, stream: Stream::Stdout, data: Bytes::from(vec![b'x'; *size]) })
                .collect();
            let whole = OutputLog { chunks, dropped_bytes: lost };
            let cut = cut_inline(whole.clone());
            prop_assert!(cut.len() <= limits::INLINE_OUTPUT);
            prop_assert_eq!(cut.len() as u64 + cut.dropped_bytes, whole.len() as u64 + lost);
            prop_assert!(cut.chunks.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        }
    }
}
