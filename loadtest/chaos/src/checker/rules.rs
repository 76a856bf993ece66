//! The rules, one function each: see the table in [`super`].

use super::{
    DEATH_NOTICED_US, Rule, Violation,
    story::{Start, Stories, Story},
};
use crate::{
    function,
    history::{AskKind, FaultKind, Seen},
};

/// How far what the harness saw may lie behind what happened, and how far a function's clock is rounded down.
const SEEN_WITHIN_US: u64 = 250_000;

/// A `nats-server` writes a consumer's deliveries down some 25 ms behind; the rest is for a busy machine.
const COUNTED_WITHIN_US: u64 = 300_000;

/// What lay in the buffers of a server that goes on is out by then.
const SENT_LATE_WITHIN_US: u64 = 2_000_000;

pub(super) fn broken(stories: &Stories) -> Vec<Violation> {
    let mut found = Vec::new();
    if !stories.opened || stories.closing_us.is_none() {
        found.push(Violation {
            rule: Rule::NoHistory,
            whose: "the history".to_owned(),
            what: "it has no opening or no closing, so nothing can be said of it".to_owned(),
        });
        return found;
    }
    for (op, operation) in &stories.operations {
        let mut broken = |rule, what: String| found.push(Violation { rule, whose: format!("op {op}"), what });
        published(stories, *op, &mut broken);
        if operation.ask.kind != AskKind::Cancel {
            one_execution(stories, *op, &mut broken);
        }
    }
    for (id, story) in &stories.executions {
        let mut broken = |rule, what: String| found.push(Violation { rule, whose: id.clone(), what });
        ends(stories, id, story, &mut broken);
        one_outcome(stories, story, &mut broken);
        attempts(stories, story, &mut broken);
        cancelled(stories, id, story, &mut broken);
        one_version(story, &mut broken);
        if let Some(end) = stories.final_record(id).filter(|end| end.is_terminal()) {
            success(story, end, &mut broken);
            outcome(stories, story, end, &mut broken);
        }
        at_once(stories, story, &mut broken);
    }
    found
}

type Broken<'a> = dyn FnMut(Rule, String) + 'a;

/// A direct publish whose id is not known beforehand: whatever came of it must be recorded.
fn published(stories: &Stories, op: u64, broken: &mut Broken<'_>) {
    let operation = &stories.operations[&op];
    if operation.stored_us.is_none() || operation.ask.execution.is_some() {
        return;
    }
    if !stories.is_recorded(op) && !stories.wiped_publishes().any(|wiped| wiped == op) {
        broken(Rule::Lost, "the queue took a direct publish that has no record".to_owned());
    }
}

fn one_execution(stories: &Stories, op: u64, broken: &mut Broken<'_>) {
    let executions: Vec<&str> = stories.of_op(op).collect();
    if executions.len() > 1 {
        broken(Rule::TwiceAccepted, format!("it became {executions:?}"));
    }
}

fn ends(stories: &Stories, id: &str, story: &Story, broken: &mut Broken<'_>) {
    match stories.final_record(id) {
        Some(seen) if seen.is_terminal() => {}
        Some(seen) => broken(Rule::Lost, format!("its record is still {:?} in the end", seen.status)),
        None if story.accepted_us.is_some() => {
            let wiped = story.op.is_some_and(|op| stories.wiped_publishes().any(|wiped| wiped == op));
            if !wiped {
                broken(Rule::Lost, "it was accepted and has no record".to_owned());
            }
        }
        None => {
            // An answered call, or what started without anyone having been told.
            let last = story.answered.iter().map(|(at_us, _)| *at_us).chain(story.starts.iter().map(|s| s.at_us)).max();
            let Some(last) = last else { return };
            if !stories.fault_within(last, last + DEATH_NOTICED_US, |_| true) {
                broken(Rule::Lost, "it ran, and has no record though nothing happened meanwhile".to_owned());
            }
        }
    }
}

fn one_outcome(stories: &Stories, story: &Story, broken: &mut Broken<'_>) {
    let mut first: Option<&(u64, Seen)> = None;
    for read in &story.reads {
        match first {
            None if read.1.is_terminal() => first = Some(read),
            Some((_, before)) if *before != read.1 => {
                broken(Rule::SecondOutcome, format!("{before:?} became {:?}", read.1));
                return;
            }
            _ => {}
        }
    }
    for (at_us, status) in &story.told_ended {
        if first.is_some_and(|(_, seen)| seen.status != *status) {
            broken(Rule::SecondOutcome, format!("a cancel was told {status:?} at {at_us}, the record says {first:?}"));
        }
    }
    for (at_us, answer) in &story.answered {
        let Some((_, record)) = first else { continue };
        if answer == record {
            continue;
        }
        let asked_us = story.op.and_then(|op| stories.operations.get(&op)).map_or(*at_us, |operation| operation.at_us);
        let another_attempt =
            answer.attempt != record.attempt && stories.fault_within(asked_us, at_us + DEATH_NOTICED_US, |_| true);
        let explained = another_attempt || (is_lost(record) && record_died(stories, *at_us));
        if !explained {
            broken(Rule::SecondOutcome, format!("its caller was answered {answer:?}, the record says {record:?}"));
        }
    }
}

fn is_lost(record: &Seen) -> bool {
    (record.status.as_str(), record.error.as_deref()) == ("failed", Some("agent_lost"))
}

/// The one agent died in the moment of the answer, before it could say the outcome, and the queue that held the call in its
/// memory died before an agent that lived long enough got it again: nobody is left who knows. Or everything that the queue stored was
/// taken from it in that moment, and the outcome with it, before a gateway read it.
fn record_died(stories: &Stories, answered_us: u64) -> bool {
    let from_us = answered_us.saturating_sub(SEEN_WITHIN_US);
    if stories.fault_within(from_us, answered_us + SEEN_WITHIN_US, |kind| kind == FaultKind::Wipe) {
        return true;
    }
    if stories.agents != 1 || !stories.killed_within(from_us, answered_us + SEEN_WITHIN_US, &["root", "worker"]) {
        return false;
    }
    // Each death of the agent may come before it was delivered again, and begins the wait anew.
    let mut until_us = answered_us + DEATH_NOTICED_US;
    for struck in stories.faults.values().filter(|fault| fault.target == "worker" && fault.from_us > from_us) {
        if struck.from_us <= until_us {
            until_us = until_us.max(struck.to_us.min(struck.from_us + DEATH_NOTICED_US) + DEATH_NOTICED_US);
        }
    }
    stories.killed_within(from_us, until_us, &["root", "nats-server"])
}

/// The starts whose number is not above that of the one before; whether a server sent that one late.
pub(super) fn repeated<'a>(stories: &'a Stories, story: &'a Story) -> impl Iterator<Item = (usize, bool)> + 'a {
    let pairs = story.starts.windows(2).enumerate().filter(|(_, pair)| pair[1].attempt <= pair[0].attempt);
    pairs.map(|(n, pair)| (n + 1, was_sent_late(stories, &story.starts[..=n], &pair[1])))
}

fn attempts(stories: &Stories, story: &Story, broken: &mut Broken<'_>) {
    for (n, late) in repeated(stories, story) {
        let (before, after) = (&story.starts[n - 1], &story.starts[n]);
        if !late && !is_not_counted(stories, story, after) && !count_was_forgotten(stories, &story.starts[..n], after) {
            broken(Rule::Attempts, format!("attempt {} started after attempt {}", after.attempt, before.attempt));
        }
    }
    if story.starts.iter().any(|start| start.attempt == 0) {
        broken(Rule::Attempts, "attempt 0 started; they are numbered from 1".to_owned());
    }
}

/// A call's second delivery and all further ones have one number where the queue does not count them.
fn is_not_counted(stories: &Stories, story: &Story, after: &Start) -> bool {
    let operation = story.op.and_then(|op| stories.operations.get(&op));
    !stories.counts_calls && after.attempt == 2 && operation.is_some_and(|one| one.ask.kind == AskKind::Call)
}

/// A server of the queue died as it delivered one of the earlier attempts, and took the count of it along; and the agent
/// that knew is not the one that started this.
fn count_was_forgotten(stories: &Stories, earlier: &[Start], after: &Start) -> bool {
    earlier.iter().any(|start| {
        let (from_us, to_us) = (start.at_us.saturating_sub(COUNTED_WITHIN_US), start.at_us + COUNTED_WITHIN_US);
        stories.killed_within(from_us, to_us, &["nats-server", "root"])
            && (stories.agents > 1 || stories.killed_within(from_us, after.at_us, &["worker", "root"]))
    })
}

/// A server of a cluster stood still with this delivery in its buffers, or it lay on its way between two that did not hear each other,
/// while the message was delivered again; and it came when that was over, to an agent that sees nothing of it.
fn was_sent_late(stories: &Stories, earlier: &[Start], after: &Start) -> bool {
    let later_attempts = || earlier.iter().filter(|start| start.attempt > after.attempt);
    let mut held = stories.faults.values().filter_map(|fault| {
        let holds_messages = match fault.kind {
            FaultKind::Pause => fault.target == "nats-server",
            kind => matches!(kind, FaultKind::Partition | FaultKind::OneWayLoss),
        };
        fault.lifted_us.filter(|_| holds_messages).map(|lifted_us| fault.from_us..lifted_us)
    });
    stories.agents > 1
        && held.any(|held| {
            // A function's clock is rounded down.
            let sent = held.end.saturating_sub(SEEN_WITHIN_US)..held.end.saturating_add(SENT_LATE_WITHIN_US);
            sent.contains(&after.at_us) && later_attempts().any(|start| held.contains(&start.at_us))
        })
}

fn cancelled(stories: &Stories, id: &str, story: &Story, broken: &mut Broken<'_>) {
    let Some(confirmed_us) = story.cancel_confirmed_us else { return };
    for start in story.starts.iter().filter(|start| start.at_us > confirmed_us) {
        let late = start.at_us - confirmed_us;
        broken(
            Rule::StartedAfterCancel,
            format!("attempt {} started {late} us after its cancel was confirmed", start.attempt),
        );
    }
    if let Some(end) = stories.final_record(id).filter(|end| end.is_terminal() && end.status != "cancelled") {
        broken(Rule::StartedAfterCancel, format!("its cancel was confirmed, and it ended as {:?}", end.status));
    }
}

fn one_version(story: &Story, broken: &mut Broken<'_>) {
    let started = story.starts.iter().map(|start| start.version);
    let seen = story.answered.iter().chain(&story.reads).filter_map(|(_, seen)| seen.version);
    let mut versions: Vec<u32> = started.chain(seen).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        broken(Rule::VersionsMixed, format!("versions {versions:?}"));
    }
}

fn success(story: &Story, end: &Seen, broken: &mut Broken<'_>) {
    if end.status != "success" {
        return;
    }
    // Up to its number: an attempt whose message was lost and published again while it ran ends under the number of that.
    let mut ran = story.starts.iter().filter(|start| start.attempt <= end.attempt).peekable();
    if ran.peek().is_none() {
        broken(Rule::SuccessWithoutRun, format!("attempt {} succeeded, and never started", end.attempt));
        return;
    }
    let mut finished = ran.filter(|start| start.finished_us.is_some()).peekable();
    if finished.peek().is_none() {
        broken(Rule::SuccessWithoutRun, format!("attempt {} succeeded, and did not come to its end", end.attempt));
        return;
    }
    if !finished.any(|start| end.output == function::output(start.op, start.attempt, start.version)) {
        broken(Rule::SuccessWithoutRun, format!("its output {:?} is of no attempt that came to its end", end.output));
    }
}

fn outcome(stories: &Stories, story: &Story, end: &Seen, broken: &mut Broken<'_>) {
    let Some(operation) = story.op.and_then(|op| stories.operations.get(&op)) else { return };
    let ask = &operation.ask;
    let expected = match (end.status.as_str(), end.error.as_deref()) {
        ("success", _) => ask.exit == 0,
        ("failed", Some("exit")) => {
            let ran = story.starts.iter().filter(|start| start.finished_us.is_some()).count();
            ask.exit != 0 && end.exit_code == Some(ask.exit.into()) && ran >= usize::try_from(ask.attempts).unwrap_or(0)
        }
        // A call's gateway holds it; where that died with the queue's memory, nobody waits for it any more.
        ("failed", Some("agent_lost"))
            if ask.kind == AskKind::Call
                && (operation.named.is_empty()
                    || story.answered.iter().any(|(at_us, _)| record_died(stories, *at_us))) =>
        {
            true
        }
        // A direct publish has its payload in the queue alone.
        ("failed", Some("agent_lost"))
            if ask.kind == AskKind::Direct
                && stories.fault_within(operation.at_us, u64::MAX, |kind| kind == FaultKind::Wipe) =>
        {
            true
        }
        ("failed", Some("agent_lost")) => {
            let struck = stories.faults.values().filter(|fault| fault.to_us >= operation.at_us).count();
            struck > usize::try_from(stories.max_losses).unwrap_or(usize::MAX) && end.attempt > stories.max_losses
        }
        ("failed", Some("throttled")) => ask.kind == AskKind::Call && operation.named.is_empty() && operation.in_doubt,
        // A caller who got no outcome may have gone, and a request that was refused is taken back.
        ("cancelled", _) => {
            let gone = operation.ask.kind == AskKind::Call && operation.named.is_empty();
            story.cancel_asked_us.is_some() || gone || (operation.in_doubt && story.accepted_us.is_none())
        }
        _ => false,
    };
    if !expected {
        let Seen { status, error, exit_code, attempt, .. } = end;
        broken(
            Rule::Outcome,
            format!(
                "told to exit with {}, it ended as {status:?} ({error:?}, exit code {exit_code:?}) in attempt {attempt} of {}, and nothing in the history is a reason",
                ask.exit,
                story.starts.len(),
            ),
        );
    }
}

fn at_once(stories: &Stories, story: &Story, broken: &mut Broken<'_>) {
    for (n, later) in story.starts.iter().enumerate() {
        for earlier in &story.starts[..n] {
            let together = together_us(earlier, later);
            let since_us = earlier.at_us.saturating_sub(DEATH_NOTICED_US);
            let fault = |matters: fn(FaultKind) -> bool| stories.fault_within(since_us, later.at_us, matters);
            let allowed = if stories.agents > 1 && fault(FaultKind::is_stall) {
                // No function runs for longer than that by itself. Before its agent notices, the next stall may hold it.
                let held_us = stories.held_until(since_us, later.at_us, DEATH_NOTICED_US, FaultKind::is_stall);
                held_us.saturating_sub(later.at_us).saturating_add(DEATH_NOTICED_US)
            } else if fault(|_| true) {
                DEATH_NOTICED_US
            } else {
                SEEN_WITHIN_US
            };
            if together > allowed {
                broken(
                    Rule::RanAtOnce,
                    format!("attempts {} and {} lived together for {together} us", earlier.attempt, later.attempt),
                );
            }
        }
    }
}

fn together_us(earlier: &Start, later: &Start) -> u64 {
    let end = |start: &Start| start.gone_us.unwrap_or(u64::MAX);
    end(earlier).min(end(later)).saturating_sub(later.at_us)
}
