//! Transitions of executions on their way to the store. A work queue shared by all gateways.

use async_trait::async_trait;
use flux_protocol::StatusMessage;

use crate::BrokerError;

#[async_trait]
pub trait StatusLog {
    /// Publishes a transition; done once the broker holds it. Retrying the same message is safe: what comes twice is recorded once.
    /// `sender` is this process's agent or gateway id. Watchers of the execution hear it as a signal too, on
    /// [`subject::status`](flux_protocol::subject::status), once the log holds it; the output may be left out of that.
    /// An engine may keep the end of a call waiting for some milliseconds.
    async fn publish_status(&self, sender: &str, status: &StatusMessage) -> Result<(), BrokerError>;

    /// As [`StatusLog::publish_status`], for a status that was encoded already (a reply carries the same bytes).
    async fn publish_status_bytes(
        &self,
        sender: &str,
        status: &StatusMessage,
        encoded: bytes::Bytes,
    ) -> Result<(), BrokerError>;

    /// Takes transitions for recording, in batches; each must be acked once the store has it.
    /// Several gateways share the work. `most` bounds a batch.
    async fn statuses(&self, most: usize) -> Result<Box<dyn StatusBatch>, BrokerError>;

    /// What is not recorded yet: neither acked nor thrown away, what is out at any gateway included; 0 when all is. An engine may count
    /// several transitions as one.
    async fn backlog(&self) -> Result<u64, BrokerError>;
}

/// A source of batches.
#[async_trait]
pub trait StatusBatch: Send {
    /// At least one, at most the agreed number; waits for the first, never for the rest. `None` when the
    /// connection is closed for good.
    async fn next(&mut self) -> Option<Vec<StatusDelivery>>;
}

/// A transition to be recorded.
#[derive(Debug)]
pub struct StatusDelivery {
    /// Its place in the order of the log, also when the log was lost and made anew meanwhile: of two outcomes of one execution
    /// the smaller wins. The same each time that it is delivered. `None` where the engine knows no such order
    /// ([`Capabilities::ordered_statuses`](crate::Capabilities::ordered_statuses)).
    pub order: Option<u64>,
    /// The sender named in the subject, which the broker holds each agent to.
    pub sender: String,
    pub status: StatusMessage,
    pub ack: crate::AckHandle,
}
