//! How statuses become a record: pure, idempotent, and commutative and associative but for the two cases named below.
//! Engines load a record, merge what came, and save.
//!
//! Whatever is learned of an execution (a status, the record made when it was accepted, a message that was
//! published again) is put into the form of a record; [`join`] of two records is the record of both. So the
//! order in which they come, and how often each comes, does not matter, but in two cases. Where the queue's log gives an outcome no
//! place, the outcome that the store has first stays, whatever comes later. And of two records of one execution that gateways
//! accepted for different queues, the one that the store has first stays if it has a place or an end, and is replaced if not.
//!
//! ```text
//!   leads:  the terminal record that is in the store, where it or the other has no sequence of the status log;
//!           otherwise the terminal record with the smallest sequence, whatever its attempt;
//!           without a terminal one the highest (attempt, phase)          queued < running < ended
//!   from the leading record:   attempt, phase, agent, times, outcome
//!   from both:                 earliest queued_at and deadline, newest position, all notes
//! ```
//!
//! Equal ranks from two agents are settled by the records' content alone, never by who came first: the
//! earlier `status_at` leads (the later while queued: a message published again waits anew), then the agent's name.
//!
//! Not joined is what is of different queues: a status of another function, pool or lane than the record's is not taken at all, and of
//! two accepted records one is kept whole ([`merge_queued`]). And it is
//! believed that an execution has, where messages name one, one version. Where attempts ran on different versions, the record has the leading attempt's.

use std::cmp::{Ordering, Reverse};

use flux_protocol::{ExecutionRecord, Invocation, Outcome, Phase, StatusMessage, Timestamp, execution::QueuePosition};

/// Notes kept of one execution: the first so many in the order of their text.
const NOTES: usize = 32;

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    pub changed: bool,
    pub became_terminal: bool,
    pub retry_wanted: bool,
    /// The record is of another function, pool or lane than the status, which was not taken.
    pub contradicted: bool,
}

/// Merges a status into what is known. `None` starts a record (a direct publish has no queued one). A status without a
/// `sequence` never takes the place of an outcome that is known, and none takes the place of one that has no sequence.
pub fn merge_status(
    known: Option<ExecutionRecord>,
    status: &StatusMessage,
    sequence: Option<u64>,
) -> (ExecutionRecord, Merged) {
    let told = told_by(status, sequence);
    if let Some(known) = known.as_ref().filter(|known| !is_of_one_queue(known, &told)) {
        let merged = Merged { changed: false, became_terminal: false, retry_wanted: false, contradicted: true };
        return (known.clone(), merged);
    }
    let was_terminal = known.as_ref().is_some_and(ExecutionRecord::is_terminal);
    let (record, changed) = match known {
        None => (told, true),
        Some(known) => {
            let before = known.clone();
            let record = if stays(&known, &told) { led_by(known, told) } else { join(known, told) };
            let changed = record != before;
            (record, changed)
        }
    };
    let ended_for_now = status.phase == Phase::Ended && status.outcome.as_ref().is_some_and(|o| o.will_retry);
    let merged = Merged {
        changed,
        became_terminal: !was_terminal && record.is_terminal(),
        retry_wanted: ended_for_now && !record.is_terminal() && record.attempt == status.attempt,
        contradicted: false,
    };
    (record, merged)
}

/// An execution has one queue for as long as it lives. Who says another speaks of what it does not hold.
fn is_of_one_queue(a: &ExecutionRecord, b: &ExecutionRecord) -> bool {
    (&a.function, &a.pool, a.lane) == (&b.function, &b.pool, b.lane)
}

/// Merges the record that a gateway made when it accepted, with what statuses may have told before. The gateway knows the
/// queue: what was told of another is nothing. Unless it has ended, or has a place: then a gateway knew that one, and was first.
/// So where two gateways name different queues, the order in which they come matters.
pub fn merge_queued(known: Option<ExecutionRecord>, queued: ExecutionRecord) -> ExecutionRecord {
    let queued = normal(queued);
    match known {
        None => queued,
        Some(known) if is_of_one_queue(&known, &queued) => join(known, queued),
        Some(known) if known.is_terminal() || known.position.is_some() => known,
        Some(_) => queued,
    }
}

/// Merges that the message of `attempt` was published again, lies at `position` and waits since `now`.
pub fn merge_requeued(
    known: ExecutionRecord,
    attempt: u32,
    position: QueuePosition,
    now: Timestamp,
) -> ExecutionRecord {
    let requeued = ExecutionRecord {
        attempt,
        phase: Phase::Queued,
        agent_id: None,
        started_at: None,
        status_at: now,
        outcome: None,
        terminal_seq: None,
        position: Some(position),
        invocation: None,
        notes: Vec::new(),
        ..known.clone()
    };
    join(known, requeued)
}

/// Whether the known record is terminal and keeps its outcome, since nothing says which of the two was first.
fn stays(known: &ExecutionRecord, told: &ExecutionRecord) -> bool {
    known.is_terminal() && (known.terminal_seq.is_none() || told.terminal_seq.is_none())
}

/// The record of what either tells. Both must be in the form that this module makes.
fn join(a: ExecutionRecord, b: ExecutionRecord) -> ExecutionRecord {
    if rank(&a, &b) == Ordering::Less { led_by(b, a) } else { led_by(a, b) }
}

fn led_by(mut lead: ExecutionRecord, other: ExecutionRecord) -> ExecutionRecord {
    lead.outcome = outcome_of(lead.outcome.take(), &lead, &other);
    lead.invocation =
        if lead.is_terminal() { None } else { newest_invocation(lead.invocation.take(), other.invocation) };
    // The version says nothing about rank, since the leading record may have it from another.
    if lead.version == 0 {
        lead.version = other.version;
    }
    lead.queued_at = lead.queued_at.min(other.queued_at);
    lead.deadline = least(lead.deadline, other.deadline);
    lead.traceparent = least(lead.traceparent.take(), other.traceparent);
    lead.redrive_of = least(lead.redrive_of, other.redrive_of);
    lead.position = newest_position(lead.position.take(), other.position);
    if !other.notes.is_empty() {
        lead.notes.extend(other.notes);
        tidy(&mut lead.notes);
    }
    lead
}

/// `Greater` when `a` leads.
fn rank(a: &ExecutionRecord, b: &ExecutionRecord) -> Ordering {
    fn sequence(record: &ExecutionRecord) -> (bool, Reverse<u64>) {
        let terminal = record.is_terminal();
        (terminal, Reverse(if terminal { record.terminal_seq.unwrap_or(u64::MAX) } else { 0 }))
    }
    let since = |record: &ExecutionRecord| match record.phase {
        Phase::Queued => record.status_at.as_micros(),
        Phase::Running | Phase::Ended => record.status_at.as_micros().saturating_neg(),
    };
    sequence(a)
        .cmp(&sequence(b))
        .then_with(|| (a.attempt, a.phase).cmp(&(b.attempt, b.phase)))
        // While queued the outcome is that of the attempt before, and says nothing about rank.
        .then_with(|| match a.phase {
            Phase::Ended => outcome_rank(a.outcome.as_ref(), b.outcome.as_ref()),
            Phase::Queued | Phase::Running => Ordering::Equal,
        })
        .then_with(|| since(a).cmp(&since(b)))
        .then_with(|| b.agent_id.cmp(&a.agent_id))
        .then_with(|| b.started_at.cmp(&a.started_at))
}

/// Of two outcomes of one attempt. By content, because a queued record keeps nothing else of the attempt before.
fn outcome_rank(a: Option<&Outcome>, b: Option<&Outcome>) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    let text = |outcome: Option<&Outcome>| outcome.and_then(|outcome| serde_json::to_vec(outcome).ok());
    match (text(a), text(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// The leading record's outcome; while an attempt is queued, that of the attempt before.
fn outcome_of(own: Option<Outcome>, lead: &ExecutionRecord, other: &ExecutionRecord) -> Option<Outcome> {
    if lead.phase != Phase::Queued {
        return own;
    }
    let before = (other.phase == Phase::Ended && other.attempt.checked_add(1) == Some(lead.attempt))
        || (other.phase == Phase::Queued && other.attempt == lead.attempt);
    if !before || outcome_rank(own.as_ref(), other.outcome.as_ref()) != Ordering::Less {
        return own;
    }
    other.outcome.clone()
}

/// What a lost message is made anew from: the latest attempt's, whose count of failures is the latest too.
fn newest_invocation(a: Option<Invocation>, b: Option<Invocation>) -> Option<Invocation> {
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return a.or(b),
    };
    if a == b {
        return Some(a);
    }
    let text = |invocation: &Invocation| serde_json::to_vec(invocation).unwrap_or_default();
    let order = (a.attempt, a.failures).cmp(&(b.attempt, b.failures)).then_with(|| text(&b).cmp(&text(&a)));
    Some(if order == Ordering::Less { b } else { a })
}

fn newest_position(a: Option<QueuePosition>, b: Option<QueuePosition>) -> Option<QueuePosition> {
    let age = |position: &QueuePosition| (position.epoch, position.sequence, position.stream.clone());
    match (a, b) {
        (Some(a), Some(b)) => Some(if age(&a) < age(&b) { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn tidy(notes: &mut Vec<String>) {
    notes.sort_unstable();
    notes.dedup();
    notes.truncate(NOTES);
}

/// A record in the form that [`join`] takes.
fn normal(mut record: ExecutionRecord) -> ExecutionRecord {
    tidy(&mut record.notes);
    if record.is_terminal() {
        record.invocation = None;
    }
    record
}

/// A status as a record of its own. One that says `ended` without an outcome tells only that it ran.
fn told_by(status: &StatusMessage, sequence: Option<u64>) -> ExecutionRecord {
    let phase = if status.phase == Phase::Ended && status.outcome.is_none() { Phase::Running } else { status.phase };
    let terminal = status.is_terminal();
    normal(ExecutionRecord {
        execution_id: status.execution_id,
        function: status.function.clone(),
        version: status.version,
        attempt: status.attempt,
        lane: status.lane,
        pool: status.pool.clone(),
        phase,
        agent_id: status.agent_id.clone(),
        queued_at: status.queued_at,
        started_at: status.started_at,
        status_at: status.at,
        deadline: status.deadline,
        traceparent: status.traceparent.clone(),
        outcome: status.outcome.clone().filter(|_| phase == Phase::Ended),
        terminal_seq: sequence.filter(|_| terminal),
        position: None,
        invocation: status.invocation.as_deref().filter(|_| !terminal).cloned(),
        redrive_of: status.invocation.as_ref().and_then(|invocation| invocation.redrive_of),
        notes: status.notes.clone(),
    })
}
