//! What the planner hands out and gets back: room for pulls, and for what runs.

use std::time::Duration;

use flux_protocol::subject::QueueName;

use super::Amount;

/// What one function needs, by its current version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) each: Amount,
    /// Executions at once on this agent.
    pub(crate) max_concurrency: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QueueId(pub(super) usize);

/// Room that an outstanding pull holds.
#[derive(Debug)]
pub(crate) struct Credit {
    pub(crate) queue: QueueId,
    pub(crate) left: u64,
    pub(super) each: Amount,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// For work that is known, or expected within moments.
    Work,
    /// On a queue that is not known to have any, in a short pull.
    Turn,
    /// The same in a long pull.
    Standing,
}

/// A pull to be sent.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) credit: Credit,
    pub(crate) name: QueueName,
    pub(crate) expires: Duration,
}

impl Grant {
    pub(crate) fn batch(&self) -> u64 {
        self.credit.left
    }
}

/// Room that a running execution holds.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) queue: QueueId,
    pub(super) cost: Amount,
}

/// The execution runs a version that needs another amount than the current one.
#[derive(Debug)]
pub(crate) struct Recost {
    pub(super) from: Amount,
    pub(super) to: Amount,
}

impl Slot {
    /// `None` when nothing changes. The planner is to be told by [`Planner::recosted`](super::Planner::recosted).
    pub(crate) fn recost(&mut self, to: Amount) -> Option<Recost> {
        let from = std::mem::replace(&mut self.cost, to);
        (from != to).then_some(Recost { from, to })
    }
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullEnd {
    /// By itself: filled, or nothing more came within its time.
    Expired,
    /// The broker or the connection ended it: this says nothing about the queue.
    Failed,
    /// At once: as many pulls as may wait there, so nothing does that they will not have.
    Covered,
}
