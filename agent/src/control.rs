//! What an agent is asked while it works: on its own control subject, on the one of all agents, and cancels.

use std::sync::Arc;

use flux_broker::{Signal, Subscription};
use flux_protocol::{
    ExecutionId,
    agent::{CancelReply, CancelRequest, ControlReply, ControlRequest},
    subject,
};
use futures::StreamExt as _;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    held::{CANCEL_ANSWER_WITHIN, Cancel},
    node::Node,
    puller::Event,
    retry,
};

/// Ids in one `holds` question.
const IDS_AT_ONCE: usize = 10_000;

/// Answers control requests until the connection is closed for good.
pub(crate) async fn answer(node: Arc<Node>, events: mpsc::Sender<Event>) {
    let own_subject = subject::control(&node.id);
    let own = retry::until_ok("hear its control subject", || node.broker.listen(&own_subject)).await;
    let all = retry::until_ok("hear the control subject", || node.broker.listen(subject::control_all())).await;
    let mut requests = futures::stream::select(own, all);
    while let Some(request) = requests.next().await {
        // A pull's reply subject can make a broker deliver what was published elsewhere: only what was sent here counts.
        if request.subject != own_subject && request.subject != subject::control_all() {
            continue;
        }
        let reply = match serde_json::from_slice(&request.body) {
            Ok(asked) => control(&node, &events, asked).await,
            Err(error) => ControlReply::Invalid { message: format!("not a control request: {error}") },
        };
        // All agents are asked who holds it; those who do not are silent, so that the first answer is the one.
        let is_own = request.subject == own_subject;
        if is_own || !matches!(reply, ControlReply::NotHeld) {
            reply_to(&node, &request, &reply).await;
        }
    }
}

async fn control(node: &Node, events: &mpsc::Sender<Event>, asked: ControlRequest) -> ControlReply {
    let agent_id = node.id.clone();
    match asked {
        ControlRequest::Ping => ControlReply::Ok { agent_id },
        ControlRequest::Drain => {
            let _ = events.send(Event::Drain).await;
            ControlReply::Ok { agent_id }
        }
        ControlRequest::Undrain => {
            let _ = events.send(Event::Undrain).await;
            ControlReply::Ok { agent_id }
        }
        ControlRequest::Tail { execution_id } => match node.held.get(execution_id) {
            Some(execution) => ControlReply::Tail { attempt: execution.attempt(), output: execution.output_so_far() },
            None => ControlReply::NotHeld,
        },
        ControlRequest::Holds { execution_ids } if execution_ids.len() > IDS_AT_ONCE => {
            ControlReply::Invalid { message: format!("ask about at most {IDS_AT_ONCE} executions at once") }
        }
        ControlRequest::Holds { execution_ids } => {
            ControlReply::Holds { agent_id, execution_ids: node.held.those_held(&execution_ids) }
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

async fn reply_to(node: &Node, request: &Signal, reply: &impl Serialize) {
    let Some(subject) = &request.reply_to else { return };
    let Ok(body) = serde_json::to_vec(reply) else { return };
    if let Err(error) = node.broker.signal(subject.clone(), body.into()).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "an answer was not sent");
    }
}
