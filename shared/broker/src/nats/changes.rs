//! Reading a bucket without a consumer: what is there by direct get, what comes from its stream's republished messages.
//!
//! A consumer is made by a request that names where JetStream shall publish; agents must not make any (ADR 12). What is said
//! again carries the number under which it was stored, so that what was missed on the way is noticed with the next change, and
//! read where it lies.

use std::{collections::VecDeque, sync::Arc};

use async_nats::{Message, Subscriber};
use flux_protocol::{Timestamp, limits::MIB};
use futures::StreamExt as _;

use super::{
    core::Core,
    direct::Found,
    link::Link,
    reader::{Bucket, BucketEntry, From, OPERATION, is_deletion},
};
use crate::BrokerError;

/// Entries read at once, and their bytes.
const PAGE: usize = 256;
const PAGE_BYTES: usize = 4 * MIB;
const ATTEMPTED: &str = "follow a table";

pub(super) struct Changes {
    core: Arc<Core>,
    bucket: Bucket,
    said: Subscriber,
    sent_on: Link,
    /// The last entry that was read or heard of.
    last: u64,
    last_at: Timestamp,
    read: VecDeque<BucketEntry>,
}

impl Changes {
    pub(super) async fn open(
        core: &Arc<Core>,
        bucket: Bucket,
        subject: String,
        from: From,
    ) -> Result<Self, BrokerError> {
        let sent_on = core.link_now();
        // First, so that nothing falls between what is there and what comes.
        let said = core.client.subscribe(subject).await.map_err(|error| BrokerError::refused(ATTEMPTED, error))?;
        core.round_trip(ATTEMPTED).await?;
        let last = match from {
            From::Beginning | From::LastOfEach => 0,
            From::After(revision) => revision,
        };
        let (core, last_at) = (Arc::clone(core), Timestamp::default());
        Ok(Self { core, bucket, said, sent_on, last, last_at, read: VecDeque::new() })
    }

    /// The next of what is there; `None` when all was read.
    pub(super) async fn next_there(&mut self) -> Result<Option<BucketEntry>, BrokerError> {
        if self.read.is_empty() {
            let (stream, all) = (self.bucket.stream, format!("{}>", self.bucket.prefix));
            let page = self.core.stored_from(stream, &all, self.last + 1, PAGE, PAGE_BYTES).await?;
            for found in page {
                self.last = found.sequence;
                self.last_at = found.at;
                self.read.extend(self.bucket.stored(found));
            }
        }
        Ok(self.read.pop_front())
    }

    /// The next to come. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<BucketEntry, BrokerError> {
        let mut link = self.core.link();
        let sent_on = self.sent_on.connects;
        loop {
            if let Some(entry) = self.read.pop_front() {
                return Ok(entry);
            }
            let heard = tokio::select! {
                biased;
                // What was said meanwhile, nobody heard.
                _ = link.wait_for(|link| link.closed || !link.up || link.connects != sent_on) => None,
                message = self.said.next() => message,
            };
            let message = heard.ok_or_else(|| BrokerError::unavailable(ATTEMPTED, "the connection was lost"))?;
            let Some(heard) = self.bucket.said(&message) else { continue };
            match heard.revision {
                next if next == self.last + 1 => {
                    (self.last, self.last_at) = (next, heard.at);
                    return Ok(heard);
                }
                // Before it something is missing here, or was removed there.
                later if later > self.last => {
                    if let Some(entry) = self.next_there().await? {
                        return Ok(entry);
                    }
                    // This replica lags. It was said, so it is stored.
                    (self.last, self.last_at) = (later, heard.at);
                    return Ok(heard);
                }
                // Known already; unless the numbers began anew.
                _ if heard.at > self.last_at => {
                    return Err(BrokerError::unavailable(ATTEMPTED, "the table was made anew"));
                }
                _ => {}
            }
        }
    }
}

impl Bucket {
    fn stored(self, found: Found) -> Option<BucketEntry> {
        let key = found.subject.strip_prefix(self.prefix)?.to_owned();
        let deleted = found.headers.get(OPERATION).is_some_and(|operation| is_deletion(operation.as_str()));
        Some(BucketEntry { key, value: (!deleted).then_some(found.body), revision: found.sequence, at: found.at })
    }

    /// A message that the bucket's stream said again. JetStream alone publishes there.
    fn said(self, message: &Message) -> Option<BucketEntry> {
        let headers = message.headers.as_ref()?;
        let header = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
        if header("Nats-Stream") != Some(self.stream) {
            return None;
        }
        let found = Found {
            sequence: header("Nats-Sequence")?.parse().ok()?,
            at: header("Nats-Time-Stamp")?.parse().ok()?,
            subject: header("Nats-Subject")?.to_owned(),
            headers: headers.clone(),
            body: message.payload.clone(),
        };
        self.stored(found)
    }
}
