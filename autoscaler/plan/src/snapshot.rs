//! What is there now.

use std::{collections::BTreeSet, time::Duration};

use flux_protocol::{FunctionName, Timestamp};

/// Queue and machines at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    pub at: Timestamp,
    pub nodes: Vec<Node>,
    /// Invocations that no agent has yet, of all functions.
    pub waiting: u64,
    /// The functions that they are of, where that is known.
    pub waits: Vec<Wait>,
    /// More may wait than `waits` says: the queue did not tell of all.
    pub untold: bool,
    /// Executions that ended on managed nodes since some moment before: it only grows.
    pub finished: u64,
    /// Machines that cannot be bought just now: provider and type. An empty type is all of the provider's.
    pub refused: BTreeSet<(String, String)>,
    /// Somebody removed all nodes: nothing is launched until they are asked for again.
    pub paused: bool,
}

/// What waits of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub function: FunctionName,
    pub waiting: u64,
    /// How many of it run on managed nodes: more of them do not help what only others can run.
    pub running: u64,
    /// For how long the oldest waits.
    pub oldest: Duration,
}

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub name: String,
    pub provider: String,
    pub node_type: String,
    /// False: somebody registered it by hand. It is in no sum and in no action.
    pub managed: bool,
    pub phase: Phase,
    /// Since when it is in this phase.
    pub since: Timestamp,
    /// What its agent said last, also where it is silent now; `None` before it said anything.
    pub load: Option<Load>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Bought, and not heard of.
    Booting,
    Ready,
    /// It takes no more work.
    Draining {
        /// The type that is launched in its place.
        replaced_by: Option<String>,
    },
    /// Somebody else told it to take no more work, or nobody can end it: no capacity, and no rule touches it.
    Cordoned,
    /// Its agent is not heard of. Capacity as before, until it is given up.
    Silent,
    /// It is being terminated: it costs and counts until it is gone, and no rule looks at it.
    Leaving,
}

/// What an agent says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    pub cpu_percent: f64,
    pub memory_percent: f64,
    /// Executions now.
    pub running: u32,
    /// Executions at once, by its budget of tasks.
    pub slots: u32,
    /// How much of its fullest budget (tasks, CPU, memory) is taken, from 0 to 1.
    pub used: f64,
    /// It said itself that it takes no more work.
    pub draining: bool,
}

impl Node {
    pub(crate) fn running(&self) -> u32 {
        self.load.map_or(0, |load| load.running)
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }
}

impl Snapshot {
    /// The machines that rules see.
    pub(crate) fn managed(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.managed)
    }

    pub(crate) fn running(&self) -> u32 {
        self.managed().map(Node::running).sum()
    }

    /// For how long the oldest of all waits.
    pub(crate) fn oldest(&self) -> Duration {
        self.waits.iter().map(|wait| wait.oldest).max().unwrap_or_default()
    }

    pub(crate) fn is_refused(&self, provider: &str, node_type: &str) -> bool {
        self.refused.iter().any(|(by, what)| by == provider && (what.is_empty() || what == node_type))
    }
}
