//! How statuses become a record: pure, commutative, idempotent. Engines load a record, merge, and save.
//!
//! ```text
//!   rank of a status = (attempt, phase)            queued < running < ended
//!   a higher rank replaces a lower one; an equal or lower one adds only what is missing
//!   terminal outcomes: the smallest sequence of the status log wins, whatever the attempt
//! ```

use flux_protocol::{ExecutionRecord, Phase, StatusMessage};

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    pub changed: bool,
    pub became_terminal: bool,
    pub retry_wanted: bool,
}

/// Merges a status into what is known. `None` starts a record (a direct publish has no queued one).
pub fn merge_status(
    known: Option<ExecutionRecord>,
    status: &StatusMessage,
    sequence: u64,
) -> (ExecutionRecord, Merged) {
    let Some(mut record) = known else {
        let record = started_by(status, sequence);
        let merged = Merged { changed: true, became_terminal: record.is_terminal(), retry_wanted: wants_retry(status) };
        return (record, merged);
    };
    let before = record.clone();
    let was_terminal = record.is_terminal();
    if status.is_terminal() {
        let wins = !was_terminal || record.terminal_seq.is_none_or(|kept| sequence < kept);
        if wins {
            take(&mut record, status);
            record.terminal_seq = Some(sequence);
            record.invocation = None;
        }
    } else if !was_terminal && (status.attempt, status.phase) > (record.attempt, record.phase) {
        take(&mut record, status);
    }
    record.queued_at = record.queued_at.min(status.queued_at);
    for note in &status.notes {
        if !record.notes.contains(note) {
            record.notes.push(note.clone());
            record.notes.sort();
        }
    }
    if record.traceparent.is_none() {
        record.traceparent.clone_from(&status.traceparent);
    }
    if record.deadline.is_none() {
        record.deadline = status.deadline;
    }
    let retry_wanted = wants_retry(status) && !record.is_terminal() && record.attempt == status.attempt;
    let merged =
        Merged { changed: record != before, became_terminal: !was_terminal && record.is_terminal(), retry_wanted };
    (record, merged)
}

/// Merges the record that a gateway made when it accepted, with what statuses may have told before.
pub fn merge_queued(known: Option<ExecutionRecord>, queued: ExecutionRecord) -> ExecutionRecord {
    let Some(mut record) = known else { return queued };
    record.queued_at = record.queued_at.min(queued.queued_at);
    record.position = record.position.or(queued.position);
    record.deadline = record.deadline.or(queued.deadline);
    record.traceparent = record.traceparent.or(queued.traceparent);
    record.redrive_of = record.redrive_of.or(queued.redrive_of);
    if !record.is_terminal() {
        record.invocation = record.invocation.or(queued.invocation);
        if record.version == 0 {
            record.version = queued.version;
        }
    }
    record
}

fn wants_retry(status: &StatusMessage) -> bool {
    status.phase == Phase::Ended && status.outcome.as_ref().is_some_and(|outcome| outcome.will_retry)
}

fn take(record: &mut ExecutionRecord, status: &StatusMessage) {
    record.version = status.version;
    record.attempt = status.attempt;
    record.phase = status.phase;
    record.agent_id.clone_from(&status.agent_id);
    record.started_at = status.started_at;
    record.status_at = status.at;
    record.outcome.clone_from(&status.outcome);
}

fn started_by(status: &StatusMessage, sequence: u64) -> ExecutionRecord {
    let terminal = status.is_terminal();
    ExecutionRecord {
        execution_id: status.execution_id,
        function: status.function.clone(),
        version: status.version,
        attempt: status.attempt,
        lane: status.lane,
        pool: status.pool.clone(),
        phase: status.phase,
        agent_id: status.agent_id.clone(),
        queued_at: status.queued_at,
        started_at: status.started_at,
        status_at: status.at,
        deadline: status.deadline,
        traceparent: status.traceparent.clone(),
        outcome: status.outcome.clone(),
        terminal_seq: terminal.then_some(sequence),
        position: None,
        invocation: None,
        redrive_of: status.invocation.as_ref().and_then(|invocation| invocation.redrive_of),
        notes: status.notes.clone(),
    }
}
