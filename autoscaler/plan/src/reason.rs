//! Why something is done, or is not.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Which rule speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// `min_nodes` of a provider.
    Minimum,
    /// A minimum that the calendar asks for.
    Schedule,
    /// Load and backlog.
    Queue,
    /// The same over the short window.
    Panic,
    /// Something waits for too long already, though there seems to be enough for it.
    Late,
    /// CPU or memory at its upper threshold on every node.
    Pressure,
    /// Nothing asked for it long enough.
    Unneeded,
    /// CPU and memory below their lower thresholds on every node.
    Quiet,
    /// At `max_nodes`: an idle node makes room for the largest type.
    Replace,
    /// It runs nothing any more, or had all the time to end.
    Drained,
    /// It was never heard of.
    NotStarted,
    /// It was heard of, and is not any more.
    Silent,
    /// What would be done is not.
    Held,
}

impl Rule {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minimum => "minimum",
            Self::Schedule => "schedule",
            Self::Queue => "queue",
            Self::Panic => "panic",
            Self::Late => "late",
            Self::Pressure => "pressure",
            Self::Unneeded => "unneeded",
            Self::Quiet => "quiet",
            Self::Replace => "replace",
            Self::Drained => "drained",
            Self::NotStarted => "not_started",
            Self::Silent => "silent",
            Self::Held => "held",
        }
    }
}

/// A rule, what it says, and the numbers that it says it from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    pub rule: Rule,
    pub said: String,
    pub inputs: BTreeMap<String, f64>,
}

impl Reason {
    pub(crate) fn new(rule: Rule, said: impl Into<String>, inputs: &[(&str, f64)]) -> Self {
        let inputs = inputs.iter().map(|(name, value)| ((*name).to_owned(), rounded(*value))).collect();
        Self { rule, said: said.into(), inputs }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule.as_str(), self.said)?;
        if self.inputs.is_empty() {
            return Ok(());
        }
        let inputs: Vec<String> = self.inputs.iter().map(|(name, value)| format!("{name} {value}")).collect();
        write!(f, " ({})", inputs.join(", "))
    }
}

/// To be read: two places are enough.
fn rounded(value: f64) -> f64 {
    // Without a sign on zero.
    (value * 100.0).round() / 100.0 + 0.0
}
