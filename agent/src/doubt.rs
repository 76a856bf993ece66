//! Is what was delivered again still held by another agent? The queue takes silence for death, and is silent itself at times.
//!
//! ```text
//!  delivered before, or stored before the queue came back ─► ask the pool ─┬─ held ───────► let go: its holder's ack counts
//!                                                                            ├─ recorded ───► ack
//!                                                                            └─ silence ────► start
//! ```
//!
//! One task asks: what comes while it gathers travels in one question. Why it is as it is: ADR 14.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use flux_protocol::{
    ExecutionId, Timestamp,
    agent::{HoldersReply, HoldersRequest, Redelivery},
    limits, subject, time,
};
use futures::StreamExt as _;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{control::reply_to, node::Node, retry};

/// What comes within this travels in the same question.
const GATHER: Duration = Duration::from_millis(2);
/// Questions under way; what comes beyond them waits.
const AT_ONCE: usize = 16;
/// While others may still be connecting.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// What the others said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Another agent holds the same message.
    Another,
    /// Another agent recorded its outcome.
    Recorded,
    Nobody,
}

struct Doubt {
    delivery: Redelivery,
    told: oneshot::Sender<Holder>,
}

/// Asks. Clones share the task.
#[derive(Clone)]
pub(crate) struct Doubts {
    doubts: mpsc::Sender<Doubt>,
    /// When the connection was made again, in milliseconds, while it is young; otherwise 0.
    back_since_ms: Arc<AtomicI64>,
}

impl Doubts {
    pub(crate) fn new() -> (Self, Asker) {
        let (doubts, received) = mpsc::channel(limits::CHANNEL);
        let back_since_ms = Arc::new(AtomicI64::new(0));
        (Self { doubts, back_since_ms: Arc::clone(&back_since_ms) }, Asker { doubts: received, back_since_ms })
    }

    /// Whether a delivery may be another's. A server that was killed may have forgotten the last that it delivered.
    pub(crate) fn has_any_about(&self, redeliveries: u32, stored_at: Timestamp) -> bool {
        redeliveries > 0 || stored_at.as_millis() <= self.back_since_ms.load(Ordering::Relaxed)
    }

    /// Asks who holds it; this agent has it in its table.
    pub(crate) async fn holder(&self, delivery: Redelivery) -> Holder {
        let (told, holder) = oneshot::channel();
        if self.doubts.send(Doubt { delivery, told }).await.is_err() {
            return Holder::Nobody;
        }
        holder.await.unwrap_or(Holder::Nobody)
    }
}

/// The task behind [`Doubts`].
pub(crate) struct Asker {
    doubts: mpsc::Receiver<Doubt>,
    back_since_ms: Arc<AtomicI64>,
}

impl Asker {
    /// Asks until nobody can doubt any more.
    pub(crate) async fn run(mut self, node: Arc<Node>) {
        let mut connection = node.broker.connection();
        let (mut since, mut back_since_ms) = (Instant::now(), 0);
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let young_for = limits::RECONNECTING.saturating_sub(since.elapsed());
            self.back_since_ms.store(if young_for.is_zero() { 0 } else { back_since_ms }, Ordering::Relaxed);
            tokio::select! {
                changed = connection.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // The first is not one that came back.
                    if *connection.borrow_and_update() > 1 {
                        (since, back_since_ms) = (Instant::now(), time::now().as_millis());
                    }
                }
                () = tokio::time::sleep(young_for), if !young_for.is_zero() => {}
                doubt = self.doubts.recv() => {
                    let Some(doubt) = doubt else { return };
                    let together = self.gather(doubt).await;
                    let (settled, at_once) = (settle(Arc::clone(&node), together, since), Arc::clone(&at_once));
                    // Those that wait are no more than the agent's slots: each doubts what it was delivered. Not waited for
                    // here, where a connection that comes back must be seen. The semaphore is never closed.
                    node.tasks.spawn("question for holders", async move {
                        let _permit = at_once.acquire().await;
                        settled.await;
                    });
                }
            }
        }
    }

    async fn gather(&mut self, first: Doubt) -> Vec<Doubt> {
        let mut together = vec![first];
        let over = tokio::time::Instant::now() + GATHER;
        while together.len() < limits::HOLDERS_ASKED_AT_ONCE
            && let Ok(Some(doubt)) = tokio::time::timeout_at(over, self.doubts.recv()).await
        {
            together.push(doubt);
        }
        together
    }
}

/// Asks until everything is settled. What nobody claims is asked about again while others may still be connecting.
async fn settle(node: Arc<Node>, mut doubts: Vec<Doubt>, connected: Instant) {
    loop {
        let asked = Instant::now();
        let said = ask(&node, doubts.iter().map(|doubt| doubt.delivery.clone()).collect()).await;
        let mut left = Vec::new();
        for doubt in doubts {
            let id = doubt.delivery.execution_id;
            // Who asked may have gone: then nobody needs to know.
            if said.recorded.contains(&id) {
                let _ = doubt.told.send(Holder::Recorded);
            } else if said.held.contains(&id) {
                let _ = doubt.told.send(Holder::Another);
            } else {
                left.push(doubt);
            }
        }
        doubts = left;
        if doubts.is_empty() {
            return;
        }
        if connected.elapsed() >= limits::RECONNECTING {
            break;
        }
        tokio::time::sleep_until((asked + AGAIN_AFTER).into()).await;
    }
    for doubt in doubts {
        let _ = doubt.told.send(Holder::Nobody);
    }
}

#[derive(Default)]
struct Said {
    held: HashSet<ExecutionId>,
    recorded: HashSet<ExecutionId>,
}

/// Nothing where the queue cannot be asked: an attempt too many is better than an execution that never begins.
async fn ask(node: &Node, deliveries: Vec<Redelivery>) -> Said {
    let mut said = Said::default();
    let most = deliveries.len();
    let asked = Instant::now();
    let trip = tokio::time::timeout(limits::HOLDERS_ANSWER_WITHIN_MOST, node.broker.ping()).await;
    let within = match trip {
        Ok(Ok(())) => asked.elapsed().saturating_mul(3).max(limits::HOLDERS_ANSWER_WITHIN),
        _ => limits::HOLDERS_ANSWER_WITHIN_MOST,
    };
    let Ok(body) = serde_json::to_vec(&HoldersRequest { deliveries }) else { return said };
    let within = within.min(limits::HOLDERS_ANSWER_WITHIN_MOST);
    match node.broker.ask_all(subject::holders(&node.pool, &node.id), body.into(), within, most).await {
        Ok(answers) => {
            for answer in answers {
                if let Ok(HoldersReply { held, recorded }) = serde_json::from_slice(&answer.body) {
                    said.held.extend(held);
                    said.recorded.extend(recorded);
                }
            }
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "who holds what was delivered again cannot be asked"
            );
        }
    }
    said
}

/// Answers other agents until the connection is closed for good.
pub(crate) async fn answer(node: Arc<Node>) {
    let pattern = subject::holders_of(&node.pool);
    let mut questions = retry::until_ok("hear who asks for holders", || node.broker.listen(&pattern)).await;
    while let Some(question) = questions.next().await {
        let Some(asker) = subject::agent_of_holders(&question.subject).filter(|asker| *asker != node.id) else {
            continue;
        };
        let Ok(HoldersRequest { deliveries }) = serde_json::from_slice(&question.body) else { continue };
        let known = deliveries.iter().take(limits::HOLDERS_ASKED_AT_ONCE);
        let reply = node.held.answer(known, node.id < asker);
        if !(reply.held.is_empty() && reply.recorded.is_empty()) {
            tracing::info!(
                %asker, held = reply.held.len(), recorded = reply.recorded.len(),
                "another agent was given what is held here"
            );
            reply_to(&node, &question, &reply).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubted_is_what_was_delivered_before_and_what_was_stored_before_the_queue_came_back() {
        let (doubts, asker) = Doubts::new();
        let stored = Timestamp::from_millis(1_000);
        assert!(doubts.has_any_about(1, stored));
        assert!(!doubts.has_any_about(0, stored));
        asker.back_since_ms.store(1_000, Ordering::Relaxed);
        assert!(doubts.has_any_about(0, stored));
        assert!(!doubts.has_any_about(0, Timestamp::from_millis(1_001)));
    }
}
