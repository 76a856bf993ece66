//! Payloads and outputs too large for a message. They lie in the blob seam under keys made from the execution's id, and
//! go with what they belong to: a payload with the execution's end, an output with its record.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flux_broker::BrokerError;
use flux_protocol::{
    Digest, ErrorCode, ExecutionId, ExecutionRecord, Invocation, Outcome, OutputLog, Payload, execution::BlobRef,
    limits, subject,
};
use parking_lot::Mutex;

use super::Inner;
use crate::refusal::Refusal;

/// Executions whose payload this gateway remembers to delete; those beyond it go with their records.
const REMEMBERED: usize = 10_000;
/// Said in a record whose payload lies in the blob seam, so that it can be deleted with the record at the latest.
pub(super) const NOTE: &str = "the payload was too large for a message and travelled through the blob store";
/// Numbers and lengths of an encoded output's chunks, beside their bytes.
const OUTPUT_ENCODING: usize = 16 * limits::MIB;

/// Bounded memory of which executions have a payload in the blob seam.
#[derive(Default)]
pub(super) struct Payloads {
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    ids: HashSet<ExecutionId>,
    order: VecDeque<ExecutionId>,
}

impl Payloads {
    pub(super) fn remember(&self, id: ExecutionId) {
        let mut remembered = self.remembered.lock();
        if remembered.ids.insert(id) {
            remembered.order.push_back(id);
        }
        if remembered.order.len() > REMEMBERED
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.ids.remove(&oldest);
        }
    }

    /// Whether it was remembered; it is not any more.
    pub(super) fn take(&self, id: ExecutionId) -> bool {
        let mut remembered = self.remembered.lock();
        if remembered.ids.is_empty() || !remembered.ids.remove(&id) {
            return false;
        }
        remembered.order.retain(|kept| *kept != id);
        true
    }
}

/// The payload as it goes into a message: itself, or a reference to where it is to be put.
pub(super) fn payload_of(id: ExecutionId, payload: &Bytes) -> Payload {
    if payload.len() <= limits::INLINE_PAYLOAD {
        return Payload::Inline(payload.clone());
    }
    Payload::Blob(BlobRef { key: subject::payload_blob(id), digest: Digest::of(payload), size: payload.len() as u64 })
}

impl Inner {
    /// Puts the payload where it belongs and returns it as it goes into the message. One that may be there already is not put
    /// again: an agent may be reading it.
    pub(super) async fn place_payload(
        &self,
        id: ExecutionId,
        payload: Bytes,
        may_be_there: bool,
    ) -> Result<Payload, BrokerError> {
        let placed = payload_of(id, &payload);
        if let Payload::Blob(blob) = &placed {
            if may_be_there && self.broker.has_blob(subject::blob_bucket(&blob.key), &blob.key).await? {
                return Ok(placed);
            }
            self.broker.put_blob(subject::blob_bucket(&blob.key), &blob.key, payload).await?;
        }
        Ok(placed)
    }

    /// Deletes an invocation's payload from the blob seam, beside whatever else goes on.
    pub(super) fn discard_payload(self: &Arc<Self>, invocation: &Invocation) {
        if let Payload::Blob(blob) = &invocation.payload {
            self.discard_blob(blob.key.clone());
        }
    }

    pub(super) fn discard_blob(self: &Arc<Self>, key: String) {
        let inner = Arc::clone(self);
        self.tasks.spawn("discard-blob", async move { inner.delete_blob(&key).await });
    }

    pub(super) async fn delete_blob(&self, key: &str) {
        if let Err(error) = self.broker.delete_blob(subject::blob_bucket(key), key).await {
            tracing::warn!(
                key,
                error = &error as &dyn std::error::Error,
                "cannot delete from the blob store; it stays until someone does"
            );
        }
    }

    /// An outcome with its whole output, fetched where it lies in the blob seam.
    pub(super) async fn whole(&self, mut outcome: Outcome) -> Result<Outcome, Refusal> {
        if let Some(blob) = outcome.output_ref.take() {
            outcome.output = self.fetch_output(&blob).await?;
        }
        Ok(outcome)
    }

    pub(super) async fn fetch_output(&self, blob: &BlobRef) -> Result<OutputLog, Refusal> {
        let most = limits::OUTPUT + OUTPUT_ENCODING;
        let content = self.broker.get_blob(subject::blob_bucket(&blob.key), &blob.key, most).await?;
        let intact = content.filter(|content| Digest::of(content) == blob.digest);
        intact.and_then(OutputLog::decode).ok_or_else(|| {
            Refusal::new(
                ErrorCode::Internal,
                format!("the output ({} bytes) is no longer in the blob store, or is damaged", blob.size),
            )
        })
    }

    /// Deletes what a record that is forgotten leaves behind.
    pub(super) async fn delete_blobs_of(&self, record: &ExecutionRecord) {
        if let Some(blob) = record.outcome.as_ref().and_then(|outcome| outcome.output_ref.as_ref()) {
            self.delete_blob(&blob.key).await;
        }
        if record.notes.iter().any(|note| note == NOTE) {
            self.delete_blob(&subject::payload_blob(record.execution_id)).await;
        }
    }
}
