//! The deliveries that this agent holds: one task owns every ack handle, marks all of them in progress, and acks
//! those whose outcome is recorded.
//!
//! One timer serves all executions, and runs only while something is held: a mark every half second for each would
//! otherwise cost more than the executions themselves. A handle whose execution was given up (a drain that passed
//! its deadline) is dropped: the broker then hands the message to another agent.

use std::{collections::HashMap, sync::Arc};

use flux_broker::AckHandle;
use flux_protocol::{ExecutionId, limits};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};

use crate::held::{Execution, Settled};

enum Entry {
    /// A delivery, or a later one of the same execution, which takes its place.
    Hold(Arc<Execution>, AckHandle),
    Ack(ExecutionId),
    Release(ExecutionId),
    /// The delivery that is held, where one is: it comes again at once.
    GiveBack(ExecutionId),
    /// Answered once everything before it was done.
    Flush(oneshot::Sender<()>),
}

/// Sends to the task. Clones share it.
#[derive(Clone)]
pub(crate) struct Ledger {
    entries: mpsc::Sender<Entry>,
}

impl Ledger {
    /// The ledger and the task that is it. `connection` is 0 while the broker is out of reach.
    pub(crate) fn new(connection: watch::Receiver<u64>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (entries, received) = mpsc::channel(limits::CHANNEL);
        (Self { entries }, keep(received, connection))
    }

    /// From now on the delivery is marked in progress. That of an execution whose end is settled meanwhile ends as that did.
    pub(crate) async fn hold(&self, execution: Arc<Execution>, ack: AckHandle) {
        self.send(Entry::Hold(execution, ack)).await;
    }

    /// The outcome is recorded: the delivery ends.
    pub(crate) async fn ack(&self, execution: &Execution) {
        execution.settle(Settled::Recorded);
        self.send(Entry::Ack(execution.id)).await;
    }

    /// Another agent may have it.
    pub(crate) async fn release(&self, execution: &Execution) {
        execution.settle(Settled::GivenUp);
        self.send(Entry::Release(execution.id)).await;
    }

    /// Another agent, or this one, has the next attempt at once. Its number is the broker's count of deliveries, so it
    /// grows whoever gets it.
    pub(crate) async fn give_back(&self, id: ExecutionId) {
        self.send(Entry::GiveBack(id)).await;
    }

    /// Done when every ack that was asked for has been sent: an agent that goes away must not leave recorded work to
    /// be run again.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        self.send(Entry::Flush(done)).await;
        let _ = flushed.await;
    }

    async fn send(&self, entry: Entry) {
        // The task ends after all senders, or with the process; what it held is redelivered.
        let _ = self.entries.send(entry).await;
    }
}

async fn keep(mut entries: mpsc::Receiver<Entry>, connection: watch::Receiver<u64>) {
    let mut held: HashMap<ExecutionId, (Arc<Execution>, AckHandle)> = HashMap::new();
    let mut marks = tokio::time::interval(limits::IN_PROGRESS_EVERY);
    marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = marks.tick(), if !held.is_empty() => {
                // Given up without a word, by a panic: another agent may have it.
                held.retain(|_, (execution, _)| execution.settled() != Some(Settled::GivenUp));
                // Without a connection marks would only wait in a buffer, and everything else behind them.
                let connected = *connection.borrow() != 0;
                if connected {
                    mark_all(&held).await;
                }
            }
            entry = entries.recv() => match entry {
                Some(Entry::Hold(execution, handle)) => match execution.settled() {
                    None => {
                        if held.is_empty() {
                            marks.reset();
                        }
                        held.insert(execution.id, (execution, handle));
                    }
                    // A redelivery that met the end of its execution: nobody will say more of it.
                    Some(Settled::Recorded) => ack(Some(handle), execution.id).await,
                    Some(Settled::GivenUp) => drop(handle),
                },
                Some(Entry::Ack(id)) => ack(held.remove(&id).map(|(_, handle)| handle), id).await,
                Some(Entry::Release(id)) => drop(held.remove(&id)),
                Some(Entry::GiveBack(id)) => give_back(held.remove(&id).map(|(_, handle)| handle), id).await,
                Some(Entry::Flush(done)) => {
                    let _ = done.send(());
                }
                None => return,
            },
        }
    }
}

async fn mark_all(held: &HashMap<ExecutionId, (Arc<Execution>, AckHandle)>) {
    for (id, (_, ack)) in held {
        if let Err(error) = ack.progress().await {
            tracing::debug!(execution_id = %id, error = &error as &dyn std::error::Error, "not marked in progress");
        }
    }
}

async fn ack(handle: Option<AckHandle>, id: ExecutionId) {
    let Some(handle) = handle else { return };
    if let Err(error) = handle.ack().await {
        // It comes again, and the recorded outcome settles it.
        tracing::debug!(execution_id = %id, error = &error as &dyn std::error::Error, "not acked");
    }
}

async fn give_back(handle: Option<AckHandle>, id: ExecutionId) {
    let Some(handle) = handle else { return };
    if let Err(error) = handle.nack(None).await {
        tracing::debug!(execution_id = %id, error = &error as &dyn std::error::Error, "not given back; it goes on after the ack wait");
    }
}
