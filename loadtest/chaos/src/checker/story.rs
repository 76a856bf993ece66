//! The entries put together by execution and by operation.

use std::collections::{BTreeMap, BTreeSet};

use flux_protocol::{ExecutionId, Timestamp};

use crate::{
    engines::Engines,
    history::{Answer, Ask, AskKind, Entry, Event, FaultKind, Place, Seen},
};

/// All that is known of one execution.
#[derive(Debug, Default)]
pub(super) struct Story {
    /// The operation that it comes from.
    pub(super) op: Option<u64>,
    /// When it was first said that it is accepted.
    pub(super) accepted_us: Option<u64>,
    /// In the order of their time.
    pub(super) starts: Vec<Start>,
    /// What its caller was answered.
    pub(super) answered: Vec<(u64, Seen)>,
    pub(super) reads: Vec<(u64, Seen)>,
    /// When a cancel was asked for, and when one was confirmed.
    pub(super) cancel_asked_us: Option<u64>,
    pub(super) cancel_confirmed_us: Option<u64>,
    /// Statuses that late cancels were told.
    pub(super) told_ended: Vec<(u64, String)>,
}

#[derive(Debug)]
pub(super) struct Start {
    pub(super) at_us: u64,
    pub(super) op: u64,
    pub(super) attempt: u32,
    pub(super) version: u32,
    pub(super) finished_us: Option<u64>,
    pub(super) gone_us: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Operation {
    pub(super) at_us: u64,
    pub(super) ask: Ask,
    /// Executions that its answers named, in their order.
    pub(super) named: Vec<String>,
    pub(super) stored_us: Option<u64>,
    place: Option<Place>,
    /// Whether an answer was missing, or refused it.
    pub(super) in_doubt: bool,
}

/// A fault, from its strike until its lift (until its strike, where it holds nothing).
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    pub(super) target: String,
    pub(super) from_us: u64,
    pub(super) to_us: u64,
    /// When what it held was let go.
    pub(super) lifted_us: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Stories {
    pub(super) opened: bool,
    /// The queue tells how often a call was delivered; RabbitMQ only whether it was before.
    pub(super) counts_calls: bool,
    pub(super) agents: u32,
    pub(super) max_losses: u32,
    pub(super) closing_us: Option<u64>,
    pub(super) executions: BTreeMap<String, Story>,
    pub(super) operations: BTreeMap<u64, Operation>,
    /// The executions of an operation: that its answers named, or that said so when they started.
    by_op: BTreeMap<u64, BTreeSet<String>>,
    pub(super) faults: BTreeMap<u64, Fault>,
}

impl Stories {
    /// `entries` are in the order of their time.
    pub(super) fn of(entries: &[&Entry]) -> Self {
        let mut stories = Self::default();
        for entry in entries {
            stories.add(entry.at_us, &entry.event);
        }
        stories.know_by_place();
        stories
    }

    /// A direct publish without an id whose function never said whose it is, since each of its agents died before that, is
    /// known by the id that was made from its place in the queue.
    fn know_by_place(&mut self) {
        let nobodys = |story: &Story| story.op.is_none() && !story.reads.is_empty();
        let unknown: Vec<ExecutionId> = self
            .executions
            .iter()
            .filter_map(|(id, story)| nobodys(story).then(|| id.parse().ok()).flatten())
            .collect();
        let mut known = Vec::new();
        for (op, operation) in &self.operations {
            let Some(place) = operation.place.as_ref().filter(|_| !self.by_op.contains_key(op)) else { continue };
            known.extend(unknown.iter().filter(|id| is_of(**id, place)).map(|id| (id.to_string(), *op)));
        }
        for (execution, op) in known {
            self.belongs(&execution, op);
        }
    }

    fn add(&mut self, at_us: u64, event: &Event) {
        match event {
            Event::Opened { topology, agents, max_losses, .. } => {
                (self.opened, self.agents, self.max_losses) = (true, *agents, *max_losses);
                self.counts_calls = topology != Engines::PostgresRabbit.name();
            }
            Event::Closing => self.closing_us = Some(at_us),
            Event::Asked { op, ask } => self.asked(at_us, *op, ask),
            Event::Answered { op, answer } => self.answered(at_us, *op, answer),
            Event::Began { execution, op, attempt, version } => {
                self.belongs(execution, *op);
                self.story(execution).starts.push(Start {
                    at_us,
                    op: *op,
                    attempt: *attempt,
                    version: *version,
                    finished_us: None,
                    gone_us: None,
                });
            }
            Event::Finished { execution, attempt } => {
                if let Some(start) = self.open_start(execution, *attempt, |start| start.finished_us.is_none()) {
                    start.finished_us = Some(at_us);
                }
            }
            Event::Gone { execution, attempt } => {
                if let Some(start) = self.open_start(execution, *attempt, |start| start.gone_us.is_none()) {
                    start.gone_us = Some(at_us);
                }
            }
            Event::Struck { fault, kind, target } => {
                let to_us = if holds(*kind) { u64::MAX } else { at_us };
                self.faults.insert(
                    *fault,
                    Fault { kind: *kind, target: target.clone(), from_us: at_us, to_us, lifted_us: None },
                );
            }
            Event::Lifted { fault } => {
                if let Some(fault) = self.faults.get_mut(fault) {
                    (fault.to_us, fault.lifted_us) = (at_us, Some(at_us));
                }
            }
            // What came back only then was away until then.
            Event::Recovered { fault } => {
                if let Some(fault) = self.faults.get_mut(fault).filter(|fault| fault.to_us != u64::MAX) {
                    fault.to_us = fault.to_us.max(at_us);
                }
            }
            Event::Restarted { .. } => {}
            Event::Read { execution, seen } => self.story(execution).reads.push((at_us, seen.clone())),
        }
    }

    fn asked(&mut self, at_us: u64, op: u64, ask: &Ask) {
        if let Some(execution) = &ask.execution {
            if ask.kind == AskKind::Cancel {
                self.story(execution).cancel_asked_us.get_or_insert(at_us);
            } else {
                self.belongs(execution, op);
            }
        }
        let operation =
            Operation { at_us, ask: ask.clone(), named: Vec::new(), stored_us: None, place: None, in_doubt: false };
        self.operations.entry(op).or_insert(operation);
    }

    fn answered(&mut self, at_us: u64, op: u64, answer: &Answer) {
        let Some(operation) = self.operations.get_mut(&op) else { return };
        let target = operation.ask.execution.clone();
        match answer {
            Answer::Accepted { execution } | Answer::Outcome { execution, .. } => {
                operation.named.push(execution.clone())
            }
            Answer::Stored { place } => {
                operation.stored_us = Some(at_us);
                operation.place.clone_from(place);
            }
            Answer::Refused { .. } | Answer::None { .. } => operation.in_doubt = true,
            Answer::Confirmed | Answer::AlreadyEnded { .. } | Answer::Current { .. } => {}
        }
        match answer {
            Answer::Accepted { execution } => {
                self.belongs(execution, op);
                self.story(execution).accepted_us.get_or_insert(at_us);
            }
            Answer::Outcome { execution, seen } => {
                self.belongs(execution, op);
                self.story(execution).answered.push((at_us, seen.clone()));
            }
            Answer::Stored { .. } => {
                if let Some(execution) = target {
                    self.story(&execution).accepted_us.get_or_insert(at_us);
                }
            }
            Answer::Confirmed => {
                if let Some(execution) = target {
                    self.story(&execution).cancel_confirmed_us.get_or_insert(at_us);
                }
            }
            Answer::AlreadyEnded { status } => {
                if let Some(execution) = target {
                    self.story(&execution).told_ended.push((at_us, status.clone()));
                }
            }
            Answer::Current { .. } | Answer::Refused { .. } | Answer::None { .. } => {}
        }
    }

    fn story(&mut self, execution: &str) -> &mut Story {
        self.executions.entry(execution.to_owned()).or_default()
    }

    fn belongs(&mut self, execution: &str, op: u64) {
        self.story(execution).op.get_or_insert(op);
        self.by_op.entry(op).or_default().insert(execution.to_owned());
    }

    fn open_start(&mut self, execution: &str, attempt: u32, is_open: impl Fn(&Start) -> bool) -> Option<&mut Start> {
        let starts = &mut self.executions.get_mut(execution)?.starts;
        starts.iter_mut().rev().find(|start| start.attempt == attempt && is_open(start))
    }

    /// The last record that was read after everything was over.
    pub(super) fn final_record(&self, execution: &str) -> Option<&Seen> {
        let (at_us, seen) = self.executions.get(execution)?.reads.last()?;
        (*at_us >= self.closing_us?).then_some(seen)
    }

    /// Whether a fault that `matters` struck or still held within this time.
    pub(super) fn fault_within(&self, from_us: u64, to_us: u64, matters: impl Fn(FaultKind) -> bool) -> bool {
        self.faults.values().any(|fault| matters(fault.kind) && fault.from_us <= to_us && fault.to_us >= from_us)
    }

    /// When the last of those ended, and of all that struck within `grace_us` of the end of the one before; or 0.
    pub(super) fn held_until(
        &self,
        from_us: u64,
        to_us: u64,
        grace_us: u64,
        matters: impl Fn(FaultKind) -> bool,
    ) -> u64 {
        let last_struck_by = |to_us| {
            let held = self.faults.values().filter(|fault| matters(fault.kind) && fault.from_us <= to_us);
            held.map(|fault| fault.to_us).filter(|ended_us| *ended_us >= from_us).max()
        };
        let Some(mut held_us) = last_struck_by(to_us) else { return 0 };
        while let Some(longer_us) = last_struck_by(held_us.saturating_add(grace_us)).filter(|until| *until > held_us) {
            held_us = longer_us;
        }
        held_us
    }

    /// Whether one of these processes was killed within this time.
    pub(super) fn killed_within(&self, from_us: u64, to_us: u64, targets: &[&str]) -> bool {
        let killed = |fault: &Fault| matches!(fault.kind, FaultKind::Kill | FaultKind::Wipe);
        self.faults.values().any(|fault| {
            killed(fault) && (from_us..=to_us).contains(&fault.from_us) && targets.contains(&fault.target.as_str())
        })
    }

    /// Direct publishes that nobody heard of again and that were in a queue that was wiped since.
    pub(super) fn wiped_publishes(&self) -> impl Iterator<Item = u64> {
        self.operations.iter().filter_map(|(op, operation)| {
            operation.stored_us?;
            let wiped = self.fault_within(operation.at_us, u64::MAX, |kind| kind == FaultKind::Wipe);
            (wiped && !self.is_recorded(*op)).then_some(*op)
        })
    }

    /// Whether an execution of this operation has a record.
    pub(super) fn is_recorded(&self, op: u64) -> bool {
        self.of_op(op).any(|execution| self.final_record(execution).is_some())
    }

    pub(super) fn of_op(&self, op: u64) -> impl Iterator<Item = &str> {
        self.by_op.get(&op).into_iter().flatten().map(String::as_str)
    }
}

/// Whether the id is one that a message there has, whenever it was stored within the id's millisecond.
fn is_of(id: ExecutionId, place: &Place) -> bool {
    let millisecond = id.created_at().as_micros();
    (millisecond..millisecond + 1_000)
        .any(|at| ExecutionId::derived(&place.stream, place.sequence, Timestamp::from_micros(at)) == id)
}

fn holds(kind: FaultKind) -> bool {
    match kind {
        FaultKind::Kill | FaultKind::BrokenLink => false,
        FaultKind::Pause
        | FaultKind::SlowLink
        | FaultKind::StalledLink
        | FaultKind::Partition
        | FaultKind::OneWayLoss
        | FaultKind::DiskFull
        | FaultKind::Wipe
        | FaultKind::ClockStep => true,
    }
}
