//! What to do about an execution that is not terminal and of which nothing was heard for a while. Pure.
//!
//! ```text
//!   invoke lane
//!     queued ──┬─ past its deadline or age ───────────────────────────► expire (unless an agent has it)
//!              ├─ its message is stored ──────────────────────────────► keep
//!              └─ gone, nobody holds it ──┬─ its invocation is kept ──► publish again, attempt + 1
//!                                         └─ not ─────────────────────► end as agent_lost
//!     running ─┬─ its message is stored (it would be redelivered) ────► keep
//!              ├─ an agent holds it ──────────────────────────────────► keep
//!              └─ as queued and gone
//!   call lane: its gateway waits for it, publishes it again and ends it, all within moments. What is silent for
//!              longer, in no queue and held by nobody, was left behind by a gateway that died
//!                                                        ─────────────► end as agent_lost
//!              long past its deadline ────────────────────────────────► expire, or agent_lost
//! ```

use std::time::Duration;

use flux_protocol::{ExecutionRecord, Lane, Phase, Timestamp, limits};

/// What was found out about one execution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) now: Timestamp,
    /// The stream was made anew since the message was stored.
    pub(super) stream_lost: bool,
    /// The message is still where it was put. `None`: not known, since its place is not.
    pub(super) stored: Option<bool>,
    /// It was handed to an agent at least once.
    pub(super) delivered: Option<bool>,
    /// Its queue holds no message at all.
    pub(super) queue_empty: bool,
    /// An agent said that it holds it.
    pub(super) held: bool,
    /// Every agent that is online answered.
    pub(super) all_answered: bool,
    /// Its agent was heard of lately.
    pub(super) agent_online: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Keep,
    /// Publish it again.
    Republish,
    /// Take it back and record that it was never started in time.
    Expire,
    /// Record that it was lost with its agent.
    EndAsLost,
}

/// Whether anything needs to be found out about a record: most are simply queued behind others.
pub(super) fn is_suspect(record: &ExecutionRecord, now: Timestamp, stream_lost: bool) -> bool {
    stream_lost || now.since(record.status_at) >= limits::LOST_AFTER
}

pub(super) fn is_overdue(record: &ExecutionRecord, now: Timestamp) -> bool {
    record.deadline.is_some_and(|deadline| deadline < now) || now.since(record.queued_at) > limits::EVENT_AGE
}

pub(super) fn plan(record: &ExecutionRecord, facts: &Facts) -> Action {
    if record.is_terminal() || !is_suspect(record, facts.now, facts.stream_lost) {
        return Action::Keep;
    }
    match record.lane {
        Lane::Invoke => plan_invoke(record, facts),
        Lane::Call => plan_call(record, facts),
    }
}

fn plan_invoke(record: &ExecutionRecord, facts: &Facts) -> Action {
    if facts.held {
        return Action::Keep;
    }
    let gone = is_gone(record, facts);
    if record.phase != Phase::Running && is_overdue(record, facts.now) {
        // An agent that got it checks its deadline too, and says so. A queue that was killed may have forgotten that one did.
        let with_an_agent = (facts.delivered == Some(true) && !gone) || !facts.all_answered;
        return if with_an_agent { Action::Keep } else { Action::Expire };
    }
    if !gone || !facts.all_answered {
        return Action::Keep;
    }
    if record.phase == Phase::Running && facts.agent_online && !facts.stream_lost {
        // It answered that it does not hold it: its end is in the log, or on its way there.
        let patience = 3 * limits::LOST_AFTER;
        if facts.now.since(record.status_at) < patience {
            return Action::Keep;
        }
    }
    if record.invocation.is_some() { Action::Republish } else { Action::EndAsLost }
}

/// Whether its message is nowhere in the queue.
///
/// A retry waits under one sequence and is delivered under another, so that of its place alone nothing follows: it is gone
/// when the whole queue is empty.
fn is_gone(record: &ExecutionRecord, facts: &Facts) -> bool {
    if facts.stream_lost {
        return true;
    }
    match facts.stored {
        Some(true) => false,
        Some(false) if record.attempt <= 1 => true,
        Some(false) | None => facts.queue_empty,
    }
}

fn plan_call(record: &ExecutionRecord, facts: &Facts) -> Action {
    const NO_DEADLINE: Duration = Duration::from_secs(2 * limits::SYNC_WAIT.as_secs());
    let deadline = record.deadline.unwrap_or_else(|| record.queued_at.plus(NO_DEADLINE));
    let silent = facts.now.since(record.status_at) >= limits::LOST_AFTER;
    let nowhere = facts.stored != Some(true) && facts.queue_empty && !facts.held && facts.all_answered;
    if silent && nowhere {
        let too_late = record.phase == Phase::Queued && deadline < facts.now;
        return if too_late { Action::Expire } else { Action::EndAsLost };
    }
    if facts.held || facts.now.since(deadline) < limits::LOST_AFTER || deadline > facts.now {
        return Action::Keep;
    }
    match record.phase {
        Phase::Queued => Action::Expire,
        Phase::Running | Phase::Ended if !facts.agent_online || facts.all_answered => Action::EndAsLost,
        Phase::Running | Phase::Ended => Action::Keep,
    }
}

#[cfg(test)]
mod tests {
    use flux_protocol::{ExecutionId, FunctionName, Invocation, PoolName, execution::QueuePosition, time::now};

    use super::*;

    fn record(lane: Lane, phase: Phase, silent: Duration) -> ExecutionRecord {
        let at = now();
        let then = Timestamp::from_micros(at.as_micros() - i64::try_from(silent.as_micros()).unwrap());
        ExecutionRecord {
            execution_id: ExecutionId::new(),
            function: FunctionName::parse("f").unwrap(),
            version: 1,
            attempt: 1,
            lane,
            pool: PoolName::default(),
            phase,
            agent_id: None,
            queued_at: then,
            started_at: None,
            status_at: then,
            deadline: None,
            traceparent: None,
            outcome: None,
            terminal_seq: None,
            position: Some(QueuePosition { stream: "S".to_owned(), sequence: 7, epoch: then }),
            invocation: Some(Invocation::default()),
            redrive_of: None,
            notes: Vec::new(),
        }
    }

    fn facts() -> Facts {
        Facts {
            now: now(),
            stream_lost: false,
            stored: Some(true),
            delivered: Some(false),
            queue_empty: false,
            held: false,
            all_answered: true,
            agent_online: false,
        }
    }

    const SILENT: Duration = Duration::from_secs(20);
    const OLD: Duration = Duration::from_secs(7 * 3600);

    #[test]
    fn what_is_in_the_queue_stays() {
        assert_eq!(plan(&record(Lane::Invoke, Phase::Queued, SILENT), &facts()), Action::Keep);
        assert_eq!(plan(&record(Lane::Invoke, Phase::Running, SILENT), &facts()), Action::Keep);
    }

    #[test]
    fn what_the_queue_lost_is_published_again() {
        let gone = Facts { stored: Some(false), ..facts() };
        assert_eq!(plan(&record(Lane::Invoke, Phase::Queued, SILENT), &gone), Action::Republish);
        assert_eq!(plan(&record(Lane::Invoke, Phase::Running, SILENT), &gone), Action::Republish);
        // Not before it was silent for a while, unless the whole stream is gone.
        assert_eq!(plan(&record(Lane::Invoke, Phase::Queued, Duration::from_secs(1)), &gone), Action::Keep);
        let lost = Facts { stream_lost: true, stored: Some(false), ..facts() };
        assert_eq!(plan(&record(Lane::Invoke, Phase::Queued, Duration::ZERO), &lost), Action::Republish);
    }

    #[test]
    fn what_an_agent_holds_is_never_started_twice() {
        let held = Facts { stream_lost: true, stored: Some(false), held: true, ..facts() };
        assert_eq!(plan(&record(Lane::Invoke, Phase::Running, SILENT), &held), Action::Keep);
        let unheard = Facts { held: false, all_answered: false, ..held };
        assert_eq!(plan(&record(Lane::Invoke, Phase::Running, SILENT), &unheard), Action::Keep);
    }

    #[test]
    fn a_call_that_its_gateway_left_behind_ends() {
        let call = record(Lane::Call, Phase::Running, SILENT);
        let nowhere = Facts { stored: Some(false), queue_empty: true, ..facts() };
        assert_eq!(plan(&call, &nowhere), Action::EndAsLost);
        // Not while it may be somewhere, nor before its own gateway had time to publish it again.
        for somewhere in [
            Facts { held: true, ..nowhere },
            Facts { all_answered: false, ..nowhere },
            Facts { queue_empty: false, ..nowhere },
            Facts { stored: Some(true), ..nowhere },
        ] {
            assert_eq!(plan(&call, &somewhere), Action::Keep);
        }
        assert_eq!(plan(&record(Lane::Call, Phase::Running, Duration::from_secs(2)), &nowhere), Action::Keep);
    }

    #[test]
    fn a_retry_is_gone_when_its_queue_is_empty() {
        let mut retry = record(Lane::Invoke, Phase::Queued, SILENT);
        retry.attempt = 2;
        let moved = Facts { stored: Some(false), ..facts() };
        assert_eq!(plan(&retry, &moved), Action::Keep);
        assert_eq!(plan(&retry, &Facts { queue_empty: true, ..moved }), Action::Republish);
    }

    #[test]
    fn a_retry_that_waits_for_its_time_is_left_to_it() {
        let mut retry = record(Lane::Invoke, Phase::Queued, Duration::ZERO);
        (retry.attempt, retry.position) = (2, None);
        retry.status_at = retry.status_at.plus(Duration::from_secs(60));
        let nowhere = Facts { stored: None, queue_empty: true, ..facts() };
        for (late, action) in [(0, Action::Keep), (69, Action::Keep), (71, Action::Republish)] {
            let now = facts().now.plus(Duration::from_secs(late));
            assert_eq!(plan(&retry, &Facts { now, ..nowhere }), action, "after {late} s");
        }
    }

    #[test]
    fn without_its_invocation_it_ends_as_lost() {
        let mut direct = record(Lane::Invoke, Phase::Running, SILENT);
        direct.invocation = None;
        assert_eq!(plan(&direct, &Facts { stored: Some(false), ..facts() }), Action::EndAsLost);
    }

    #[test]
    fn what_is_too_old_expires_unless_an_agent_has_it() {
        let old = record(Lane::Invoke, Phase::Queued, OLD);
        assert_eq!(plan(&old, &facts()), Action::Expire);
        assert_eq!(plan(&old, &Facts { delivered: Some(true), ..facts() }), Action::Keep);
        assert_eq!(plan(&old, &Facts { all_answered: false, ..facts() }), Action::Keep, "one may hold it");
        let mut late = record(Lane::Invoke, Phase::Queued, SILENT);
        late.deadline = Some(late.queued_at.plus(Duration::from_secs(1)));
        assert_eq!(plan(&late, &facts()), Action::Expire);
    }

    #[test]
    fn a_call_is_its_gateways_until_long_past_its_deadline() {
        let mut call = record(Lane::Call, Phase::Queued, SILENT);
        assert_eq!(plan(&call, &Facts { stored: Some(false), ..facts() }), Action::Keep);
        call.deadline = Some(call.queued_at.plus(Duration::from_secs(1)));
        assert_eq!(plan(&call, &facts()), Action::Expire);
        call.phase = Phase::Running;
        assert_eq!(plan(&call, &facts()), Action::EndAsLost);
        assert_eq!(plan(&call, &Facts { held: true, ..facts() }), Action::Keep);
    }
}
