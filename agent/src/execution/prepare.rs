//! Everything before a process: is there still a point, which version, its code, its payload.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_broker::{BrokerError, Table};
use flux_protocol::{Digest, ErrorKind, FunctionVersion, Lane, Outcome, Payload, Timestamp, limits, subject, time};

use flux_protocol::execution::BlobRef;

use super::{Attempt, cancelled, failed};
use crate::{
    code::{CodeError, CodeFolder},
    functions::Unresolved,
    held::Stop,
    plan::Amount,
    retry,
    room::Room,
};

/// Fetching code that is there but cannot be had for now is tried this often before the attempt fails.
const CODE_TRIES: u32 = 5;
/// What the queue refuses or does not find is asked for this often (some seconds): gateways may be making its
/// storage anew. What is out of reach is asked for as long as the execution may still start.
const REFUSED_TRIES: u32 = 10;

/// A gateway names the versions of its store, and may be a moment ahead of the queue's table (or longer, where the queue stood
/// still while it deployed): some two seconds.
const NEWER_TRIES: u32 = 8;

/// Gateways put back into the queue what its storage lost: the functions that are called first, and all within this time.
const RESTORED_WITHIN: Duration = Duration::from_secs(30);
/// Some fifteen seconds.
const RESTORED_TRIES: u32 = 24;

/// Half of what a gateway takes for long, since clocks differ.
const PLACE_MAY_BE_UNKNOWN_AFTER: Duration = Duration::from_secs(limits::ONE_MESSAGE_WITHIN.as_secs() / 2);

/// All that a process is started from.
pub(super) struct Ready {
    pub(super) version: Arc<FunctionVersion>,
    /// None for an image that is a function by itself.
    pub(super) code: Option<CodeFolder>,
    pub(super) payload: Bytes,
}

pub(super) enum Prepared {
    Ready(Ready),
    /// It ends here.
    Over(Outcome),
    Stopped(Stop),
}

impl Attempt {
    pub(super) async fn prepare(&mut self, room: &mut Room) -> Prepared {
        let execution = Arc::clone(&self.execution);
        tokio::select! {
            biased;
            stop = execution.until_stopped() => Prepared::Stopped(stop.clone()),
            prepared = self.gather(room) => match prepared {
                Ok(ready) => Prepared::Ready(ready),
                Err(outcome) => Prepared::Over(*outcome),
            },
        }
    }

    async fn gather(&mut self, room: &mut Room) -> Result<Ready, Box<Outcome>> {
        self.check_losses()?;
        self.check_age()?;
        self.check_cancelled().await?;
        let version = self.resolve().await?;
        self.version = Some(Arc::clone(&version));
        room.recost(Amount::of_one(version.spec.resources));
        if !version.is_runnable() {
            return over(ErrorKind::InvalidFunction, format!("`{}` has no code yet: deploy it", version.name()));
        }
        let code = match version.digest {
            Some(digest) => Some(self.code(&digest).await?),
            None => None,
        };
        let payload = self.payload().await?;
        // Fetching may have taken a while.
        self.check_age()?;
        Ok(Ready { version, code, payload })
    }

    fn check_losses(&self) -> Result<(), Box<Outcome>> {
        let allowed = self.node.max_losses;
        if self.losses <= allowed {
            return Ok(());
        }
        over(
            ErrorKind::AgentLost,
            format!(
                "{} attempts were lost with the agent or launcher that ran them, and {allowed} may be (`agent.max_losses`); \
                 look for what ends them: memory of the node, or the function itself",
                self.losses
            ),
        )
    }

    pub(super) fn check_age(&self) -> Result<(), Box<Outcome>> {
        let now = time::now();
        if let Some(deadline) = self.invocation.deadline.filter(|deadline| *deadline <= now) {
            return over(ErrorKind::Expired, format!("it was not started before its deadline, {deadline}"));
        }
        let age = now.since(self.accepted_at());
        if self.execution.queue.lane == Lane::Invoke && age > limits::EVENT_AGE {
            let (hours, limit) = (age.as_secs() / 3600, limits::EVENT_AGE.as_secs() / 3600);
            return over(ErrorKind::Expired, format!("it waited for {hours} hours; after {limit} it is not started"));
        }
        Ok(())
    }

    /// When it was accepted first: by its id, where that is one of Flux's (a UUIDv7), so that a retry or a message
    /// that was published again does not begin its age anew.
    fn accepted_at(&self) -> Timestamp {
        let is_v7 = self.execution.id.as_bytes()[6] >> 4 == 7;
        if is_v7 { self.execution.id.created_at().min(self.stored_at) } else { self.stored_at }
    }

    /// Where a cancel takes messages back, what was published or delivered more than once can have been cancelled while its
    /// message was where nobody looked, such as on its way here again; and so can what is old, since a gateway that took it over by
    /// its idempotency key (ADR 22) did not know where it lay. Elsewhere whatever waited can.
    async fn check_cancelled(&self) -> Result<(), Box<Outcome>> {
        let place_is_known = self.node.broker.capabilities().take_back
            && time::now().since(self.accepted_at()) < PLACE_MAY_BE_UNKNOWN_AFTER;
        let may_lie_there = self.execution.queue.lane == Lane::Invoke && !place_is_known;
        if self.execution.attempt() <= 1 && !may_lie_there {
            return Ok(());
        }
        let id = self.execution.id.to_string();
        let mut tries = 0;
        loop {
            match self.node.broker.get(Table::Cancelled, &id).await {
                Ok(None) => return Ok(()),
                Ok(Some(entry)) => return Err(Box::new(cancelled(&String::from_utf8_lossy(&entry.value)))),
                Err(error) => {
                    tries += 1;
                    self.pause_or_end("whether it was cancelled cannot be looked up", &error, tries).await?;
                }
            }
        }
    }

    async fn resolve(&self) -> Result<Arc<FunctionVersion>, Box<Outcome>> {
        let function = &self.execution.queue.function;
        let mut tries = 0;
        loop {
            match self.node.functions.resolve(function, self.invocation.version, self.stored_at).await {
                Ok(version) => return Ok(version),
                Err(Unresolved::Broker(error)) => {
                    tries += 1;
                    self.pause_or_end("the function cannot be looked up", &error, tries).await?;
                }
                Err(Unresolved::UnknownVersion { version, .. })
                    if tries < NEWER_TRIES && self.node.functions.may_be_coming(function, version) =>
                {
                    tries += 1;
                    tracing::info!(version, tries, "a version that is newer than any here; it may be on its way");
                    tokio::time::sleep(retry::pause(tries)).await;
                }
                Err(unresolved) if tries < RESTORED_TRIES && self.tables_are_new().await => {
                    tries += 1;
                    tracing::info!(%unresolved, tries, "the queue's tables were just made; gateways may be filling them");
                    tokio::time::sleep(retry::pause(tries)).await;
                }
                Err(unresolved) => return over(ErrorKind::InvalidFunction, unresolved.to_string()),
            }
        }
    }

    /// Whether the queue lost its storage a moment ago, so that nothing follows from what is not in it.
    async fn tables_are_new(&self) -> bool {
        match self.node.broker.made_at(Table::Functions).await {
            Ok(made_at) => time::now().since(made_at) < RESTORED_WITHIN,
            Err(_) => true,
        }
    }

    async fn code(&self, digest: &Digest) -> Result<CodeFolder, Box<Outcome>> {
        let mut tries = 0;
        loop {
            match self.node.code.ensure(digest).await {
                Ok(code) => return Ok(code),
                Err(CodeError::Unavailable { message }) if tries < CODE_TRIES => {
                    tries += 1;
                    tracing::warn!(message, tries, "the code cannot be had for now");
                    tokio::time::sleep(retry::pause(tries)).await;
                }
                Err(CodeError::Unavailable { message }) => {
                    return over(ErrorKind::Sandbox, format!("the function's code could not be made ready: {message}"));
                }
                // A gateway may name an older version before its code is put back.
                Err(CodeError::Missing { message }) if tries < RESTORED_TRIES && self.tables_are_new().await => {
                    tries += 1;
                    tracing::info!(message, tries, "the queue's tables were just made; the code may be put back");
                    tokio::time::sleep(retry::pause(tries)).await;
                }
                Err(CodeError::Missing { message } | CodeError::Unusable { message }) => {
                    return over(ErrorKind::InvalidFunction, message);
                }
            }
        }
    }

    async fn payload(&self) -> Result<Bytes, Box<Outcome>> {
        let blob = match &self.invocation.payload {
            Payload::Inline(bytes) => return Ok(bytes.clone()),
            Payload::Blob(blob) => blob,
        };
        let mut tries = 0;
        loop {
            let fetched = self.node.broker.get_blob(subject::blob_bucket(&blob.key), &blob.key, limits::PAYLOAD).await;
            match fetched {
                Ok(Some(bytes)) if Digest::of(&bytes) == blob.digest => return Ok(bytes),
                Ok(Some(_)) => {
                    return over(ErrorKind::Expired, missing(blob, "is not what was sent (its digest differs)"));
                }
                Ok(None) => {
                    return over(
                        ErrorKind::Expired,
                        missing(blob, "is gone: it goes with the outcome of its execution"),
                    );
                }
                Err(BrokerError::TooLarge { size, limit }) => {
                    let message = format!("has {size} bytes, and a payload at most {limit}");
                    return over(ErrorKind::Expired, missing(blob, &message));
                }
                Err(error) => {
                    tries += 1;
                    self.pause_or_end("the payload cannot be fetched", &error, tries).await?;
                }
            }
        }
    }

    /// Before the next try: ends the attempt once there is no point in it, or no hope.
    async fn pause_or_end(&self, what: &'static str, error: &BrokerError, tries: u32) -> Result<(), Box<Outcome>> {
        self.check_age()?;
        // A closed connection means that the agent goes away: another one goes on.
        let may_come = error.is_retryable() || matches!(error, BrokerError::Closed);
        if !may_come && tries >= REFUSED_TRIES {
            return over(ErrorKind::Sandbox, format!("{what}: {}", crate::error_chain(error)));
        }
        tracing::warn!(error = error as &dyn std::error::Error, tries, "{what}");
        tokio::time::sleep(retry::pause(tries)).await;
        Ok(())
    }
}

fn missing(blob: &BlobRef, what: &str) -> String {
    format!("its payload, `{}` in the queue's blob store, {what}", blob.key)
}

fn over<T>(kind: ErrorKind, message: impl Into<String>) -> Result<T, Box<Outcome>> {
    Err(Box::new(failed(kind, message)))
}
