//! What is looked for in output: the values, and the forms that they take in JSON.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

/// Shorter values are in everything that is printed: hiding them would hide nothing, and say what they are.
const LEAST_BYTES: usize = 4;

/// The values to hide, made ready to be found. Clones share them.
#[derive(Clone)]
pub struct Patterns(Arc<Inner>);

pub(super) struct Inner {
    pub(super) finder: AhoCorasick,
    pub(super) patterns: Vec<Vec<u8>>,
    pub(super) longest: usize,
}

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Patterns({})", self.0.patterns.len())
    }
}

impl Patterns {
    /// `None`: there is nothing to hide.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut patterns = Vec::new();
        for value in values {
            patterns.push(value.to_vec());
            // As it stands within JSON, where that differs.
            if let Ok(text) = std::str::from_utf8(value)
                && let Ok(json) = serde_json::to_string(text)
            {
                patterns.push(json.as_bytes()[1..json.len() - 1].to_vec());
            }
            // Of a value of several lines (a key in PEM) each line may be printed by itself.
            if value.contains(&b'\n') {
                patterns.extend(value.split(|byte| *byte == b'\n').map(|line| line.trim_ascii().to_vec()));
            }
            patterns.push(value.trim_ascii().to_vec());
        }
        patterns.retain(|pattern| pattern.len() >= LEAST_BYTES);
        patterns.sort();
        patterns.dedup();
        let longest = patterns.iter().map(Vec::len).max()?;
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns).ok()?;
        Some(Self(Arc::new(Inner { finder, patterns, longest })))
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }
}
