//! Publishing an outcome. The order is the contract: reply; terminal status; its publish ack; ack of the delivery.
//!
//! Reply and status are the same bytes, encoded once. The room is given back after the reply, so that the next
//! execution starts while this one's status is on its way; how many may be on their way is bounded, and beyond it slots are
//! not given back: an agent that cannot record outcomes stops taking work.

use std::time::Duration;

use bytes::Bytes;
use flux_broker::BrokerError;
use flux_protocol::{
    Digest, Invocation, Lane, Outcome, OutcomeStatus, OutputLog, Phase, StatusMessage, execution::BlobRef, limits,
    subject,
};

use super::{Attempt, outcome};
use crate::{retry, room::Room};

/// Storing a large output is tried this often; then what fits the message is kept.
const BLOB_TRIES: u32 = 4;
/// A reply that cannot be sent now is left to the status, which every waiter hears as well.
const REPLY_WITHIN: Duration = Duration::from_millis(200);

impl Attempt {
    pub(super) async fn finish(mut self, outcome: Outcome, room: Room) {
        let status = self.terminal_status(outcome).await;
        self.log(&status);
        let encoded = encode(&status);
        if status.is_terminal()
            && let Some(reply_to) = &self.invocation.reply_to
        {
            let reply = self.node.broker.signal(reply_to.clone(), encoded.clone());
            if !matches!(tokio::time::timeout(REPLY_WITHIN, reply).await, Ok(Ok(()))) {
                tracing::warn!(reply_to, "the reply was not sent; the outcome is in the record");
            }
        }
        let on_its_way = self.node.finishing.begin().await;
        drop(room);
        let recorded = self.record(status, encoded).await;
        drop(on_its_way);
        if recorded {
            self.node.ledger.ack(&self.execution).await;
        } else {
            self.node.ledger.release(&self.execution).await;
        }
        self.node.held.end(self.execution.id);
    }

    async fn terminal_status(&mut self, mut outcome: Outcome) -> StatusMessage {
        let lane = self.execution.queue.lane;
        let spec = self.version.as_ref().map(|version| &version.spec);
        outcome.will_retry = outcome::will_retry(lane, &outcome, self.invocation.failures, spec);
        if outcome.output.len() > limits::INLINE_OUTPUT {
            if outcome.will_retry {
                // The record soon tells of the next attempt, and nobody would delete what this one stored apart.
                outcome.output = outcome::cut_inline(std::mem::take(&mut outcome.output));
            } else {
                self.store_output(&mut outcome).await;
            }
        }
        let carries_invocation = lane == Lane::Invoke && outcome.status == OutcomeStatus::Failed;
        let mut status = self.status(Phase::Ended, Some(outcome));
        // Pinned, where its producer named no version: the next attempt is of the same one, whatever is deployed until then.
        let version = self.invocation.version.or_else(|| self.version.as_ref().map(|version| version.version));
        status.invocation = carries_invocation.then(|| Box::new(Invocation { version, ..self.invocation.clone() }));
        status
    }

    /// Puts a large output into the blob seam, or cuts it to what fits and says so.
    async fn store_output(&mut self, outcome: &mut Outcome) {
        let log = std::mem::take(&mut outcome.output);
        match self.put_output(&log).await {
            Ok(blob) => {
                outcome.output_ref = Some(blob);
                outcome.output.dropped_bytes = log.dropped_bytes;
            }
            Err(error) => {
                let written = log.len();
                outcome.output = outcome::cut_inline(log);
                self.notes.push(format!(
                    "the output of {written} bytes could not be stored apart and its middle was dropped: {}",
                    crate::error_chain(&error)
                ));
            }
        }
    }

    async fn put_output(&self, log: &OutputLog) -> Result<BlobRef, BrokerError> {
        // One is in memory twice meanwhile. The semaphore is never closed.
        let _storing = self.node.storing.acquire().await;
        let content = log.encode();
        let key = subject::output_blob(self.execution.id, self.execution.attempt());
        let blob = BlobRef { key, digest: Digest::of(&content), size: content.len() as u64 };
        let mut tries = 0;
        loop {
            match self.node.broker.put_blob(subject::BLOB_BUCKET, &blob.key, content.clone()).await {
                Ok(()) => return Ok(blob),
                Err(error) if error.is_retryable() && tries < BLOB_TRIES => {
                    tries += 1;
                    tokio::time::sleep(retry::pause(tries)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes the status until the broker holds it. `false`: the agent goes away first, and the outcome with it.
    async fn record(&self, mut status: StatusMessage, mut encoded: Bytes) -> bool {
        let mut tries = 0_u32;
        loop {
            let sender = self.node.id.as_str();
            let error = match self.node.broker.publish_status_bytes(sender, &status, encoded.clone()).await {
                Ok(()) => return true,
                Err(error) => error,
            };
            tries = tries.saturating_add(1);
            if matches!(error, BrokerError::TooLarge { .. }) && tries == 1 {
                without_bulk(&mut status);
                encoded = encode(&status);
                continue;
            }
            if tries == 1 {
                tracing::warn!(error = &error as &dyn std::error::Error, "the outcome is not recorded yet; trying on");
            }
            tokio::select! {
                () = tokio::time::sleep(retry::pause(tries)) => {}
                () = self.node.abandoned.cancelled() => return false,
            }
        }
    }

    fn log(&self, status: &StatusMessage) {
        let Some(outcome) = &status.outcome else { return };
        let duration_ms = outcome.duration_ms.as_f64();
        match &outcome.error {
            None => tracing::debug!(version = status.version, duration_ms, "succeeded"),
            Some(error) => tracing::info!(
                version = status.version,
                duration_ms,
                status = outcome.status.as_str(),
                kind = ?error.kind,
                error = error.message,
                will_retry = outcome.will_retry,
                "did not succeed"
            ),
        }
    }
}

/// A status that the broker finds too large, without what makes it large.
fn without_bulk(status: &mut StatusMessage) {
    if let Some(outcome) = &mut status.outcome {
        let dropped = outcome.output.len();
        outcome.output = OutputLog { chunks: Vec::new(), dropped_bytes: outcome.output.dropped_bytes + dropped as u64 };
    }
    status.notes.push("its output was dropped: the status was larger than the queue takes".to_owned());
}

fn encode(status: &StatusMessage) -> Bytes {
    // A status has no map with keys that are not text and no number that is not finite: what JSON cannot say.
    serde_json::to_vec(status).map(Bytes::from).unwrap_or_default()
}
