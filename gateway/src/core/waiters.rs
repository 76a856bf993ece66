//! Waiting for an execution's end, on any gateway.
//!
//! First subscribe to its statuses, then read the store, then wait: whatever happens between is heard. A signal says when
//! to look; what is answered is the record, whichever gateway wrote it: an outcome that was said and not recorded, because its agent
//! and the queue died, gives way to the next attempt's. Signals may be lost, so the store is read again now and then.

use std::{sync::Arc, time::Duration};

use flux_broker::{Signal, Subscription};
use flux_protocol::{ErrorCode, ExecutionId, ExecutionRecord, StatusMessage, limits, subject};
use flux_store::merge_status;
use futures::StreamExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Gateway, Inner, verdict::may_say};
use crate::refusal::Refusal;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After an end was said: some gateway records it within moments.
pub(super) const LOOK_FIRST: Duration = Duration::from_millis(2);

fn place_of(places: &Arc<Semaphore>, what: &str, most: usize) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        Refusal::new(ErrorCode::TooManyRequests, format!("this gateway holds {most} {what}, its limit; try again"))
    })
}

impl Gateway {
    /// As [`Gateway::execution`], held until it is terminal or `wait` passed.
    ///
    /// # Errors
    /// It is unknown, or this gateway holds as many waiters as it may.
    pub async fn wait(&self, id: ExecutionId, wait: Duration) -> Result<ExecutionRecord, Refusal> {
        self.inner.wait_for(id, wait.min(limits::POLL_WAIT)).await?.ok_or_else(|| Inner::execution_not_found(id))
    }
}

impl Inner {
    /// A permit to hold one more waiter.
    fn waiting_place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        place_of(&self.waiting, "waiters", limits::GATEWAY_IN_FLIGHT)
    }

    /// The same for a watcher. Apart, so that idle readers do not keep out who waits for an outcome.
    pub(super) fn watching_place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        place_of(&self.watching, "readers of event streams", limits::GATEWAY_WATCHERS)
    }

    /// The record when it is terminal, or as it is after `most`. `None`: there is none.
    pub(super) async fn wait_for(&self, id: ExecutionId, most: Duration) -> Result<Option<ExecutionRecord>, Refusal> {
        let until = Instant::now() + most;
        let Some(record) = self.store.execution(id).await? else { return Ok(None) };
        if record.is_terminal() || most.is_zero() {
            return Ok(Some(record));
        }
        let _place = self.waiting_place()?;
        let mut statuses = self.broker.listen(&subject::statuses_of(id)).await?;
        let mut pause = LOOK_EVERY;
        loop {
            let Some(record) = self.store.execution(id).await? else { return Ok(None) };
            if record.is_terminal() || Instant::now() >= until {
                return Ok(Some(record));
            }
            let look = (Instant::now() + pause).min(until);
            tokio::select! {
                _ = next_terminal(&mut statuses) => pause = LOOK_FIRST,
                () = tokio::time::sleep_until(look) => pause = (pause * 2).min(LOOK_EVERY),
            }
        }
    }
}

/// The record as the store will have it, of a status that is no end: where it lies in the log is not known here, which
/// only matters between two outcomes.
pub(super) fn merged(record: ExecutionRecord, status: &StatusMessage) -> ExecutionRecord {
    merge_status(Some(record), status, None).0
}

/// The execution's next status, whatever it says. Pending for ever when the subscription ended.
pub(super) async fn next_status(statuses: &mut Subscription) -> StatusMessage {
    loop {
        match statuses.next().await {
            Some(signal) => {
                if let Some(status) = status_in(&signal) {
                    return status;
                }
            }
            None => std::future::pending::<()>().await,
        }
    }
}

/// The execution's end.
pub(super) async fn next_terminal(statuses: &mut Subscription) -> StatusMessage {
    loop {
        let status = next_status(statuses).await;
        if status.is_terminal() {
            return status;
        }
    }
}

/// A status as it was heard, from a sender who may say it.
fn status_in(signal: &Signal) -> Option<StatusMessage> {
    let status: StatusMessage = serde_json::from_slice(&signal.body).ok()?;
    let sender = subject::sender(&signal.subject)?;
    if may_say(sender, &status) && signal.subject == subject::status(sender, status.execution_id) {
        return Some(status);
    }
    metrics::counter!("flux_signals_dropped_total", "kind" => "status_sender").increment(1);
    None
}
