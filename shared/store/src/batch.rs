//! A batch of statuses on what is known of their executions: pure, so that an engine loads, merges, and saves.

use std::collections::{HashMap, hash_map::Entry};

use flux_protocol::{ExecutionId, ExecutionRecord};

use crate::{Recorded, StatusUpdate, merge_status};

pub(crate) struct MergedBatch {
    /// One for each update, in their order.
    pub(crate) results: Vec<Recorded>,
    /// The records that are other than they were, in the order in which the updates came, which is about that of their ids.
    pub(crate) changed: Vec<ExecutionRecord>,
}

/// The executions of a batch, each once, in the order of their ids: two who lock them so do not wait for each other.
pub(crate) fn ids(updates: &[StatusUpdate]) -> Vec<ExecutionId> {
    let mut ids: Vec<ExecutionId> = updates.iter().map(|update| update.status.execution_id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

pub(crate) fn merge(mut known: HashMap<ExecutionId, ExecutionRecord>, updates: &[StatusUpdate]) -> MergedBatch {
    let mut merging: HashMap<ExecutionId, (ExecutionRecord, bool)> = HashMap::with_capacity(updates.len());
    let mut order = Vec::with_capacity(updates.len());
    let mut results = Vec::with_capacity(updates.len());
    for StatusUpdate { status, sequence } in updates {
        let id = status.execution_id;
        let merged = match merging.entry(id) {
            Entry::Occupied(mut entry) => {
                let (before, changed) = entry.get_mut();
                let (record, merged) = merge_status(Some(before.clone()), status, *sequence);
                *before = record;
                *changed |= merged.changed;
                merged
            }
            Entry::Vacant(entry) => {
                let (record, merged) = merge_status(known.remove(&id), status, *sequence);
                entry.insert((record, merged.changed));
                order.push(id);
                merged
            }
        };
        results.push(Recorded {
            execution_id: id,
            became_terminal: merged.became_terminal,
            retry_wanted: merged.retry_wanted,
            contradicted: merged.contradicted,
        });
    }
    let changed = order.into_iter().filter_map(|id| merging.remove(&id)).filter(|(_, changed)| *changed);
    MergedBatch { results, changed: changed.map(|(record, _)| record).collect() }
}
