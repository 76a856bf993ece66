//! What a history proves. Pure: nothing is asked but the entries.
//!
//! Flux promises *at least once, one recorded outcome* (ARCHITECTURE, "What always holds"). In terms of a history:
//!
//! | rule | what must hold |
//! |---|---|
//! | [`Rule::Lost`] | what was accepted (202, or the queue's ack of a direct publish) has a terminal record in the end, and every record there is is terminal. A direct publish that a wipe of the queue took before anyone recorded it may be gone; so may the record of a call that was answered in the moment of a fault: its caller has the outcome |
//! | [`Rule::SecondOutcome`] | once a record or an answer told an outcome, every later one tells the same. A call's answer may differ from the record in its attempt (never in its version) only where a fault fell between; and the record may be `agent_lost` where the queue was wiped within 250 ms of the answer, or where the only agent died within that and the queue before it could deliver the call again (3 s) |
//! | [`Rule::Attempts`] | each attempt starts once, and later ones have higher numbers. They may repeat where a `nats-server` was killed within 300 ms of a start, whose delivery it had not written down yet, and the agent that remembered it died as well or was another; and on RabbitMQ, which does not count how often a call was delivered, a call's second and further ones are all 2; and one may start late that a stopped `nats-server` of a cluster sends when it goes on (within 2 s), or that lay between two of them that were cut from each other |
//! | [`Rule::StartedAfterCancel`] | nothing starts after its cancel was confirmed, and the record of a confirmed cancel says `cancelled` |
//! | [`Rule::VersionsMixed`] | all attempts, answers and the record of one execution are of one version |
//! | [`Rule::SuccessWithoutRun`] | a `success` has a start and an end of that attempt (or of an earlier one, where its message was published again meanwhile), and exactly the output of that start |
//! | [`Rule::Outcome`] | a function that was told to exit with 0 succeeds, another fails with that code after all its attempts; anything else has its cause in the history: a cancel, a caller who went, more losses than may be |
//! | [`Rule::RanAtOnce`] | two attempts of one execution live at the same time for at most [`DEATH_NOTICED_US`], and only where a fault struck; longer only where several agents are and a fault let one go on living that the others had to take for dead, and then until [`DEATH_NOTICED_US`] after that fault, or after the last of those that struck before that time was over |
//! | [`Rule::TwiceAccepted`] | one operation is one execution, also when it is tried again with its idempotency key |

mod rules;
mod story;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::history::{Entry, Event, FaultKind};
use story::Stories;

/// The promise: a death is noticed in under 3 s, and until then what died may still have a process.
pub const DEATH_NOTICED_US: u64 = 3_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    Lost,
    SecondOutcome,
    Attempts,
    StartedAfterCancel,
    VersionsMixed,
    SuccessWithoutRun,
    Outcome,
    RanAtOnce,
    TwiceAccepted,
    /// The history itself is not one: it has no opening or no closing.
    NoHistory,
}

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub rule: Rule,
    /// The execution, or `op 12`.
    pub whose: String,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}: {}", self.rule, self.whose, self.what)
    }
}

/// What a history shows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    pub violations: Vec<Violation>,
    /// What was left over in the end; not the checker's to see.
    pub leaks: Vec<String>,
    pub counts: Counts,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Operations by kind.
    pub asked: BTreeMap<String, u64>,
    /// Executions that were accepted, answered, started or recorded.
    pub executions: u64,
    pub accepted: u64,
    /// Accepted over HTTP, or by the queue and not wiped with it, without a terminal outcome.
    pub lost: u64,
    /// Direct publishes that went with a wiped queue.
    pub wiped: u64,
    pub second_outcomes: u64,
    /// Functions that started.
    pub attempts: u64,
    /// Executions that started more than once: a fault cost an attempt, or the function failed and was retried.
    pub run_again: u64,
    /// Executions with an attempt number that was given twice, as [`Rule::Attempts`] allows.
    pub numbers_repeated: u64,
    /// Executions of which an attempt was sent late by a server that had stood still or was cut off, and ran after a later one.
    pub sent_late: u64,
    /// Terminal records by status.
    pub outcomes: BTreeMap<String, u64>,
    /// Strikes by kind and target, such as `kill -9 worker`.
    pub faults: BTreeMap<String, u64>,
    pub kills: u64,
    /// Processes that had ended without a kill just then, by program.
    pub restarted: BTreeMap<String, u64>,
    /// From a strike, or where it held something from its lift, until a call succeeded, by kind and target.
    pub recovery_us: BTreeMap<String, Vec<u64>>,
}

impl Report {
    pub fn holds(&self) -> bool {
        self.violations.is_empty() && self.leaks.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { executions, accepted, attempts, run_again, kills, .. } = &self.counts;
        write!(
            f,
            "{executions} executions ({accepted} accepted), {attempts} attempts, {run_again} run again, {kills} kills: "
        )?;
        if self.holds() {
            return write!(f, "all rules hold, nothing is left");
        }
        self.leaks.iter().try_for_each(|leak| writeln!(f, "  left: {leak}"))?;
        writeln!(f, "{} violations", self.violations.len())?;
        self.violations.iter().take(100).try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

/// Judges a history, in whatever order its entries are.
pub fn check(history: &[Entry]) -> Report {
    let mut entries: Vec<&Entry> = history.iter().collect();
    // A function's clock is rounded down, and what one thread wrote at one moment stays in its order.
    entries.sort_by_key(|entry| entry.at_us);
    let stories = Stories::of(&entries);
    let mut report = Report { violations: rules::broken(&stories), ..Report::default() };
    report.violations.sort_by(|a, b| (a.rule, &a.whose, &a.what).cmp(&(b.rule, &b.whose, &b.what)));
    report.counts = count(&entries, &stories, &report.violations);
    report
}

fn count(entries: &[&Entry], stories: &Stories, violations: &[Violation]) -> Counts {
    let of_rule = |rule| violations.iter().filter(|violation| violation.rule == rule).count() as u64;
    let mut counts = Counts {
        executions: stories.executions.len() as u64,
        lost: of_rule(Rule::Lost),
        second_outcomes: of_rule(Rule::SecondOutcome),
        ..Counts::default()
    };
    for (id, story) in &stories.executions {
        counts.accepted += u64::from(story.accepted_us.is_some());
        counts.attempts += story.starts.len() as u64;
        let repeated: Vec<bool> = rules::repeated(stories, story).map(|(_, late)| late).collect();
        counts.numbers_repeated += u64::from(repeated.contains(&false));
        counts.sent_late += u64::from(repeated.contains(&true));
        counts.run_again += u64::from(story.starts.len() > 1);
        if let Some(end) = stories.final_record(id).filter(|end| end.is_terminal()) {
            *counts.outcomes.entry(end.status.clone()).or_default() += 1;
        }
    }
    counts.wiped = stories.wiped_publishes().count() as u64;
    let mut struck: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    for entry in entries {
        match &entry.event {
            Event::Asked { ask, .. } => *counts.asked.entry(format!("{:?}", ask.kind).to_lowercase()).or_default() += 1,
            Event::Struck { fault, kind, target } => {
                let name = format!("{} {target}", kind.as_str());
                *counts.faults.entry(name.clone()).or_default() += 1;
                counts.kills += u64::from(matches!(kind, FaultKind::Kill | FaultKind::Wipe));
                struck.insert(*fault, (name, entry.at_us));
            }
            Event::Restarted { program } => *counts.restarted.entry(program.clone()).or_default() += 1,
            Event::Lifted { fault } => {
                if let Some((_, since)) = struck.get_mut(fault) {
                    *since = entry.at_us;
                }
            }
            Event::Recovered { fault } => {
                if let Some((name, since)) = struck.get(fault) {
                    counts.recovery_us.entry(name.clone()).or_default().push(entry.at_us - since);
                }
            }
            _ => {}
        }
    }
    counts.recovery_us.values_mut().for_each(|times| times.sort_unstable());
    counts
}
