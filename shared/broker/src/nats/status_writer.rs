//! Statuses on their way into the log, in groups: one message, and one publish ack, for all that wait.
//!
//! ```text
//!   publish_status ─┐                       ┌─► ack to each, a signal for whoever waits for it
//!   publish_status ─┼─► waiting ─► message ─┤
//!   publish_status ─┘   (the next group fills meanwhile)
//! ```
//!
//! A status that comes alone goes at once, alone, and under its own id: sent again, it is the same message to the server. A group has
//! an id of its own for its tries; its statuses, sent again by their senders, are stored twice and recorded once.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::{Bytes, BytesMut};
use flux_protocol::{ExecutionId, Lane, Phase, PoolName, StatusMessage, limits, subject};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    core::{Core, header_map},
    queue::MESSAGE_ID,
};
use crate::BrokerError;

/// Statuses of one message, and their bytes together; one that is larger goes alone.
const GROUP: usize = limits::STATUS_BATCH;
const GROUP_BYTES: usize = limits::INLINE_OUTPUT;
/// How long the end of a call waits for company: its caller has been answered already.
const COMPANY_WITHIN: Duration = Duration::from_millis(2);
/// Above it a signal goes without the output, which the record has: hardly ever does anybody listen.
const SIGNAL_BYTES: usize = 4 << 10;
const ATTEMPTED: &str = "store a status";

/// A status that waits to be stored.
struct Waiting {
    sender: String,
    pool: PoolName,
    execution: ExecutionId,
    id: String,
    /// A line: JSON has no line breaks of its own.
    line: Bytes,
    signal: Bytes,
    /// It may wait a little for others.
    patient: bool,
    stored: oneshot::Sender<Result<(), BrokerError>>,
}

/// Where statuses are given to the writer.
pub(super) struct StatusWriter {
    waiting: mpsc::Sender<Waiting>,
}

impl StatusWriter {
    /// Starts the writer, which ends with the connection.
    pub(super) fn start(core: &Arc<Core>) -> Self {
        let (waiting, taken) = mpsc::channel(limits::PUBLISH_IN_FLIGHT);
        core.tasks.spawn("nats statuses", run(Arc::clone(core), taken));
        Self { waiting }
    }

    pub(super) async fn write(&self, sender: &str, status: &StatusMessage, line: Bytes) -> Result<(), BrokerError> {
        let (stored, answer) = oneshot::channel();
        let waiting = Waiting {
            sender: sender.to_owned(),
            pool: status.pool.clone(),
            execution: status.execution_id,
            id: status.message_id(),
            signal: signal(status, &line)?,
            line,
            patient: status.lane == Lane::Call && status.phase == Phase::Ended,
            stored,
        };
        self.waiting.send(waiting).await.map_err(|_| BrokerError::Closed)?;
        answer.await.map_err(|_| BrokerError::Closed)?
    }
}

/// What those hear who wait for the execution.
fn signal(status: &StatusMessage, line: &Bytes) -> Result<Bytes, BrokerError> {
    if line.len() <= SIGNAL_BYTES {
        return Ok(line.clone());
    }
    let short = StatusMessage {
        outcome: status.outcome.as_ref().map(flux_protocol::Outcome::without_output),
        invocation: None,
        ..status.clone()
    };
    serde_json::to_vec(&short).map(Bytes::from).map_err(|error| BrokerError::refused("encode a status", error))
}

async fn run(core: Arc<Core>, mut taken: mpsc::Receiver<Waiting>) {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => tokio::select! {
                first = taken.recv() => match first {
                    Some(first) => first,
                    None => return,
                },
                // What still waits is told by the end of the channel.
                () = core.closed.cancelled() => return,
            },
        };
        let (group, left) = gather(first, &mut taken).await;
        next = left;
        store(&core, group).await;
    }
}

/// All that waits and fits into one message; and the first one that does not.
async fn gather(first: Waiting, taken: &mut mpsc::Receiver<Waiting>) -> (Vec<Waiting>, Option<Waiting>) {
    let (mut bytes, mut patient) = (first.line.len(), first.patient);
    let until = Instant::now() + COMPANY_WITHIN;
    let mut group = vec![first];
    while group.len() < GROUP && bytes < GROUP_BYTES {
        let another = match taken.try_recv() {
            Ok(another) => another,
            Err(_) if patient => match tokio::time::timeout_at(until, taken.recv()).await {
                Ok(Some(another)) => another,
                Ok(None) | Err(_) => break,
            },
            Err(_) => break,
        };
        let is_elsewhere = another.sender != group[0].sender || another.pool != group[0].pool;
        if is_elsewhere || bytes + another.line.len() > GROUP_BYTES {
            return (group, Some(another));
        }
        bytes += another.line.len();
        patient &= another.patient;
        group.push(another);
    }
    (group, None)
}

async fn store(core: &Core, mut group: Vec<Waiting>) {
    let subject = subject::status_log(&group[0].pool, &group[0].sender);
    let (id, body) = match group.as_mut_slice() {
        [alone] => (std::mem::take(&mut alone.id), alone.line.clone()),
        many => (format!("{:032x}", rand::random::<u128>()), lines(many)),
    };
    let headers = || -> HeaderMap { header_map([(MESSAGE_ID, id.as_str())]) };
    match core.publish(ATTEMPTED, &subject, headers, body).await {
        Ok(_) => {
            for status in group {
                let subject = subject::status(&status.sender, status.execution);
                // A signal that is lost is made up for: who waits looks again.
                let _ = core.send(ATTEMPTED, subject, status.signal).await;
                let _ = status.stored.send(Ok(()));
            }
        }
        Err(error) => {
            for status in group {
                let _ = status.stored.send(Err(told_to_another(&error)));
            }
        }
    }
}

fn lines(group: &[Waiting]) -> Bytes {
    let mut body = BytesMut::with_capacity(group.iter().map(|status| status.line.len() + 1).sum());
    for status in group {
        body.extend_from_slice(&status.line);
        body.extend_from_slice(b"\n");
    }
    body.freeze()
}

/// One failure of a message is that of each status in it.
fn told_to_another(error: &BrokerError) -> BrokerError {
    let cause = |source: &(dyn std::error::Error + Send + Sync)| source.to_string();
    match error {
        BrokerError::Unavailable { attempted, source } => BrokerError::unavailable(attempted, cause(&**source)),
        BrokerError::Full { what } => BrokerError::Full { what: what.clone() },
        BrokerError::TooLarge { size, limit } => BrokerError::TooLarge { size: *size, limit: *limit },
        BrokerError::NotFound { what } => BrokerError::NotFound { what: what.clone() },
        BrokerError::Conflict { key } => BrokerError::Conflict { key: key.clone() },
        BrokerError::Denied { attempted } => BrokerError::Denied { attempted: attempted.clone() },
        BrokerError::Refused { attempted, source } => BrokerError::refused(attempted, cause(&**source)),
        BrokerError::Unsupported { what } => BrokerError::Unsupported { what },
        BrokerError::Closed => BrokerError::Closed,
    }
}
