//! The status log.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{StatusMessage, subject};
use tokio::time::Instant;

use super::{Inner, MemoryBroker, takes_fault, work_queue::WorkQueue};
use crate::{AckHandle, Acker, BrokerError, StatusBatch, StatusDelivery, StatusLog};

#[derive(Default)]
pub(super) struct Log {
    statuses: WorkQueue<(String, StatusMessage)>,
    sequence: u64,
}

#[async_trait]
impl StatusLog for MemoryBroker {
    async fn publish_status(&self, sender: &str, status: &StatusMessage) -> Result<(), BrokerError> {
        let encoded = serde_json::to_vec(status).map_err(|error| BrokerError::refused("encode a status", error))?;
        self.publish_status_bytes(sender, status, encoded.into()).await
    }

    async fn publish_status_bytes(
        &self,
        sender: &str,
        status: &StatusMessage,
        encoded: Bytes,
    ) -> Result<(), BrokerError> {
        let attempted = "store a status";
        self.inner.connected(attempted)?;
        self.inner.check_size(&encoded)?;
        takes_fault(&self.inner.faults.status_publishes_to_fail, attempted)?;
        let stored = {
            let mut log = self.inner.statuses.lock();
            let (id, at) = (status.message_id(), Instant::now());
            let new = log.statuses.duplicate(&id, at).is_none();
            if new {
                log.sequence += 1;
                let sequence = log.sequence;
                log.statuses.store(sequence, Some(id), (sender.to_owned(), status.clone()), at);
            }
            new
        };
        // As on a server, watchers hear what was published, stored before or not.
        self.inner.say(subject::status(sender, status.execution_id), encoded, None);
        if stored {
            self.inner.changed.notify_waiters();
        }
        Ok(())
    }

    async fn statuses(&self, most: usize) -> Result<Box<dyn StatusBatch>, BrokerError> {
        self.inner.connected("read the status log")?;
        Ok(Box::new(Recorder { inner: Arc::clone(&self.inner), most: most.max(1) }))
    }

    async fn backlog(&self) -> Result<u64, BrokerError> {
        self.inner.connected("read the status log")?;
        Ok(self.inner.statuses.lock().statuses.len() as u64)
    }
}

struct Recorder {
    inner: Arc<Inner>,
    most: usize,
}

#[async_trait]
impl StatusBatch for Recorder {
    async fn next(&mut self) -> Option<Vec<StatusDelivery>> {
        loop {
            let inner = Arc::clone(&self.inner);
            let mut changed = std::pin::pin!(inner.changed.notified());
            changed.as_mut().enable();
            let (batch, next_ready) = {
                let mut log = inner.statuses.lock();
                let mut batch = Vec::new();
                while batch.len() < self.most {
                    let Some(taken) = log.statuses.take(Instant::now(), inner.limits.ack_wait) else { break };
                    let (sender, status) = taken.content;
                    let acker = StatusAcker { inner: Arc::clone(&inner), sequence: taken.sequence };
                    let order = inner.capabilities.ordered_statuses.then_some(taken.sequence);
                    batch.push(StatusDelivery { order, sender, status, ack: AckHandle::new(acker) });
                }
                (batch, log.statuses.next_ready())
            };
            if !batch.is_empty() {
                return Some(batch);
            }
            match next_ready {
                Some(ready) => tokio::select! {
                    () = &mut changed => {}
                    () = tokio::time::sleep_until(ready) => {}
                },
                None => changed.await,
            }
        }
    }
}

struct StatusAcker {
    inner: Arc<Inner>,
    sequence: u64,
}

#[async_trait]
impl Acker for StatusAcker {
    async fn progress(&self) -> Result<(), BrokerError> {
        self.inner.statuses.lock().statuses.progress(self.sequence, Instant::now() + self.inner.limits.ack_wait);
        Ok(())
    }

    async fn ack(&self) -> Result<(), BrokerError> {
        self.inner.statuses.lock().statuses.remove(self.sequence);
        Ok(())
    }

    async fn nack(&self, delay: Option<std::time::Duration>) -> Result<(), BrokerError> {
        let ready_at = delay.map(|delay| Instant::now() + delay);
        self.inner.statuses.lock().statuses.give_back(self.sequence, ready_at);
        self.inner.changed.notify_waiters();
        Ok(())
    }
}
