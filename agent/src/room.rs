//! The room that a running execution holds, given back when it is dropped, whatever ends the execution.

use tokio::sync::mpsc;

use crate::plan::{Amount, Recost, Slot};

/// What the puller hears of slots.
#[derive(Debug)]
pub(crate) enum SlotEvent {
    Finished(Slot),
    Recost(Recost),
}

/// Every slot sends at most two events between its delivery and the next use of its room, so that a channel of this
/// many never fills.
pub(crate) const fn events_at_once(tasks: usize) -> usize {
    2 * tasks + 2
}

#[derive(Debug)]
pub(crate) struct Room {
    slot: Option<Slot>,
    events: mpsc::Sender<SlotEvent>,
}

impl Room {
    pub(crate) fn new(slot: Slot, events: mpsc::Sender<SlotEvent>) -> Self {
        Self { slot: Some(slot), events }
    }

    /// The version that runs needs another amount than the one that was planned with.
    pub(crate) fn recost(&mut self, cost: Amount) {
        if let Some(change) = self.slot.as_mut().and_then(|slot| slot.recost(cost)) {
            self.say(SlotEvent::Recost(change));
        }
    }

    fn say(&self, event: SlotEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            tracing::error!(?event, "a slot's event was lost: the budget is smaller by it from now on");
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.say(SlotEvent::Finished(slot));
        }
    }
}
