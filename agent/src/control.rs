//! What an agent is asked while it works: on its own control subject, on the one of all agents, and cancels.

use std::sync::Arc;

use flux_broker::{Signal, Subscription};
use flux_protocol::{
    ExecutionId, OutputLog,
    agent::{CancelReply, CancelRequest, ControlReply, ControlRequest},
    limits,
    subject::{self, QueueName},
};
use futures::StreamExt as _;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};

use crate::{
    held::{CANCEL_ANSWER_WITHIN, Cancel},
    node::Node,
    puller::Event,
    retry,
};

/// Ids in one `holds` question.
const IDS_AT_ONCE: usize = 10_000;
/// Answers under way; what is asked beyond it waits.
const ANSWERS_AT_ONCE: usize = 32;
/// Of an output in one answer, as JSON: the rest of the message is for what is around it.
const TAIL: usize = limits::MESSAGE / 2;

/// Answers control requests until the connection is closed for good.
pub(crate) async fn answer(node: Arc<Node>, events: mpsc::Sender<Event>) {
    let own_subject = subject::control(&node.id);
    let own = retry::until_ok("hear its control subject", || node.broker.listen(&own_subject)).await;
    let all = retry::until_ok("hear the control subject", || node.broker.listen(subject::control_all())).await;
    let mut requests = futures::stream::select(own, all);
    let at_once = Arc::new(Semaphore::new(ANSWERS_AT_ONCE));
    while let Some(request) = requests.next().await {
        // A pull's reply subject can make a broker deliver what was published elsewhere: only what was sent here counts.
        if request.subject != own_subject && request.subject != subject::control_all() {
            continue;
        }
        let asked = serde_json::from_slice(&request.body);
        // In the order in which they were asked for; answers need no order.
        match &asked {
            Ok(ControlRequest::Ring { queue }) => {
                // Of another pool's queue, or of what this release does not know as one, there is nothing to pull here.
                let queue = QueueName::from_key(queue).filter(|queue| queue.pool == node.pool);
                if let Some(queue) = queue {
                    drop(events.send(Event::Ring(queue)).await);
                }
                continue;
            }
            Ok(ControlRequest::Drain) => drop(events.send(Event::Drain).await),
            Ok(ControlRequest::Undrain) => drop(events.send(Event::Undrain).await),
            _ => {}
        }
        // The semaphore is never closed.
        let permit = Arc::clone(&at_once).acquire_owned().await;
        let is_own = request.subject == own_subject;
        let node_too = Arc::clone(&node);
        node.tasks.spawn("control answer", async move {
            let _permit = permit;
            let reply = match asked {
                Ok(asked) => control(&node_too, asked),
                Err(error) => ControlReply::Invalid { message: format!("not a control request: {error}") },
            };
            // All agents are asked who holds it; those who do not are silent, so that the first answer is the one.
            if is_own || !matches!(reply, ControlReply::NotHeld) {
                reply_to(&node_too, &request, &reply).await;
            }
        });
    }
}

/// The newest of an output that fit `most` bytes of JSON. Gaps in their numbers tell what is missing.
fn newest(mut log: OutputLog, most: usize) -> OutputLog {
    let mut bytes = 0;
    let kept = log.chunks.iter().rev().take_while(|chunk| {
        // And a comma.
        bytes += serde_json::to_vec(chunk).map_or(most, |encoded| encoded.len()) + 1;
        bytes <= most
    });
    let older = log.chunks.len() - kept.count();
    log.dropped_bytes += log.chunks.drain(..older).map(|chunk| chunk.data.len() as u64).sum::<u64>();
    log
}

fn control(node: &Node, asked: ControlRequest) -> ControlReply {
    let agent_id = node.id.clone();
    match asked {
        ControlRequest::Ping | ControlRequest::Drain | ControlRequest::Undrain | ControlRequest::Ring { .. } => {
            ControlReply::Ok { agent_id }
        }
        ControlRequest::Tail { execution_id } => match node.held.get(execution_id) {
            Some(execution) => {
                ControlReply::Tail { attempt: execution.attempt(), output: newest(execution.output_so_far(), TAIL) }
            }
            None => ControlReply::NotHeld,
        },
        ControlRequest::Holds { execution_ids } if execution_ids.len() > IDS_AT_ONCE => {
            ControlReply::Invalid { message: format!("ask about at most {IDS_AT_ONCE} executions at once") }
        }
        ControlRequest::Holds { execution_ids } => {
            ControlReply::Holds { agent_id, execution_ids: node.held.those_held(&execution_ids) }
        }
        ControlRequest::Withdrawn { execution_id, reason } => {
            let held = node.held.holds_or_refuses(execution_id, &reason);
            ControlReply::Holds { agent_id, execution_ids: Vec::from_iter(held.then_some(execution_id)) }
        }
    }
}

/// Hears cancels until the connection is closed for good.
pub(crate) async fn cancels(node: Arc<Node>) {
    let mut cancels: Subscription = retry::until_ok("hear cancels", || node.broker.listen(subject::cancels())).await;
    while let Some(request) = cancels.next().await {
        let Some(id) = subject::execution_of_cancel(&request.subject) else { continue };
        let reason = serde_json::from_slice::<CancelRequest>(&request.body)
            .map_or_else(|_| "cancelled".to_owned(), |request| request.reason);
        match node.held.cancel(id, &reason) {
            Cancel::Remembered => tracing::debug!(execution_id = %id, "a cancel of what is not here is remembered"),
            Cancel::Stopping(gone) => {
                let node_too = Arc::clone(&node);
                node.tasks.spawn("cancel", answer_cancel(node_too, request, id, gone));
            }
        }
    }
}

/// Says so once the processes are gone.
async fn answer_cancel(node: Arc<Node>, request: Signal, id: ExecutionId, gone: tokio::sync::oneshot::Receiver<bool>) {
    match tokio::time::timeout(CANCEL_ANSWER_WITHIN, gone).await {
        Ok(Ok(cancelled)) => reply_to(&node, &request, &CancelReply { agent_id: node.id.clone(), cancelled }).await,
        Ok(Err(_)) | Err(_) => tracing::warn!(execution_id = %id, "cancelled, and its processes are not gone yet"),
    }
}

pub(crate) async fn reply_to(node: &Node, request: &Signal, reply: &impl Serialize) {
    let Some(subject) = &request.reply_to else { return };
    let Ok(body) = serde_json::to_vec(reply) else { return };
    if let Err(error) = node.broker.signal(subject.clone(), body.into()).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "an answer was not sent");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_protocol::{Chunk, Stream};

    use super::*;

    #[test]
    fn the_newest_of_a_large_output_fits_one_answer() {
        // NUL is six bytes in JSON.
        let data = Bytes::from(vec![0; limits::OUTPUT_CHUNK]);
        let chunk = |seq| Chunk { seq, stream: Stream::Stdout, data: data.clone() };
        let whole = OutputLog { chunks: (1..=100).map(chunk).collect(), dropped_bytes: 7 };
        let bytes = whole.len() as u64 + 7;
        let kept = newest(whole, TAIL);
        assert!(serde_json::to_vec(&kept).expect("JSON").len() < limits::MESSAGE);
        assert_eq!(kept.chunks.last().map(|chunk| chunk.seq), Some(100));
        assert!(kept.chunks.len() > 5);
        assert_eq!(kept.len() as u64 + kept.dropped_bytes, bytes);
        let small = OutputLog { chunks: vec![chunk(1)], dropped_bytes: 0 };
        assert_eq!(newest(small.clone(), TAIL), small);
    }
}
