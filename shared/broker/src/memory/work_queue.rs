//! Messages that wait, are out at a reader until its ack wait passed, or are gone. Pure but for the clock it is told.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use flux_protocol::limits;
use tokio::time::Instant;

pub(super) struct WorkQueue<T> {
    messages: BTreeMap<u64, Held<T>>,
    /// Ids of the duplicate window.
    ids: HashMap<String, (u64, Instant)>,
    last_delivered: u64,
    deliveries: u64,
}

struct Held<T> {
    content: T,
    deliveries: u32,
    /// Not before this; set while it is out.
    ready_at: Option<Instant>,
    out: bool,
}

/// One that was handed out.
pub(super) struct Taken<T> {
    pub(super) sequence: u64,
    pub(super) content: T,
    pub(super) redeliveries: u32,
    /// Others that could be handed out now.
    pub(super) pending: u64,
}

impl<T> Default for WorkQueue<T> {
    fn default() -> Self {
        Self { messages: BTreeMap::new(), ids: HashMap::new(), last_delivered: 0, deliveries: 0 }
    }
}

impl<T: Clone> WorkQueue<T> {
    /// The sequence under which `id` was stored already.
    pub(super) fn duplicate(&self, id: &str, now: Instant) -> Option<u64> {
        let (sequence, at) = self.ids.get(id)?;
        (now.duration_since(*at) < limits::DUPLICATE_WINDOW).then_some(*sequence)
    }

    pub(super) fn store(&mut self, sequence: u64, id: Option<String>, content: T, now: Instant) {
        if let Some(id) = id {
            self.ids.insert(id, (sequence, now));
        }
        self.messages.insert(sequence, Held { content, deliveries: 0, ready_at: None, out: false });
    }

    /// The oldest that is ready, now out until `ack_wait` passed.
    pub(super) fn take(&mut self, now: Instant, ack_wait: Duration) -> Option<Taken<T>> {
        let ready = |held: &Held<T>| held.ready_at.is_none_or(|at| at <= now);
        let pending = self.messages.values().filter(|held| ready(held)).count();
        let (sequence, held) = self.messages.iter_mut().find(|(_, held)| ready(held))?;
        held.ready_at = Some(now + ack_wait);
        held.out = true;
        held.deliveries += 1;
        self.deliveries += 1;
        self.last_delivered = self.last_delivered.max(*sequence);
        Some(Taken {
            sequence: *sequence,
            content: held.content.clone(),
            redeliveries: held.deliveries - 1,
            pending: pending.saturating_sub(1) as u64,
        })
    }

    /// When the next of those that are out, or given back for a while, is ready.
    pub(super) fn next_ready(&self) -> Option<Instant> {
        self.messages.values().filter_map(|held| held.ready_at).min()
    }

    /// Ends it; whether it was there.
    pub(super) fn remove(&mut self, sequence: u64) -> bool {
        self.messages.remove(&sequence).is_some()
    }

    pub(super) fn progress(&mut self, sequence: u64, until: Instant) {
        if let Some(held) = self.messages.get_mut(&sequence).filter(|held| held.out) {
            held.ready_at = Some(until);
        }
    }

    pub(super) fn give_back(&mut self, sequence: u64, ready_at: Option<Instant>) {
        if let Some(held) = self.messages.get_mut(&sequence) {
            held.ready_at = ready_at;
            held.out = false;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn holds(&self, sequence: u64) -> bool {
        self.messages.contains_key(&sequence)
    }

    /// As if nothing was ever handed out. What is out stays with whoever has it.
    pub(super) fn forget_deliveries(&mut self) {
        (self.last_delivered, self.deliveries) = (0, 0);
        self.messages.values_mut().for_each(|held| held.deliveries = 0);
    }

    /// Never handed out to anyone.
    pub(super) fn waiting(&self) -> usize {
        self.messages.values().filter(|held| held.deliveries == 0).count()
    }

    pub(super) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    pub(super) fn last_delivered(&self) -> u64 {
        self.last_delivered
    }
}
