//! Reading a bucket from its beginning and on, over reconnections and over its being made anew.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use flux_protocol::{Timestamp, subject};
use serde_json::json;

use super::{
    changes::Changes,
    core::{Core, StreamInfo},
    deliveries::{Standing, Wait, end_error, request},
    heat::nanos,
    inbox::{Info, PullEvent},
};
use crate::BrokerError;

/// Entries asked for at once.
const BATCH: usize = 256;
/// The server forgets a reader that did not pull for this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(90);
/// A bucket that is not there, or a server that refuses, is tried again after this long.
const PAUSE: Duration = Duration::from_millis(100);

/// A key-value bucket, as a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    pub(super) stream: &'static str,
    /// Of its subjects, up to the key.
    pub(super) prefix: &'static str,
    /// Its stream says what it stored once more, to whoever listens.
    pub(super) said_again: bool,
    /// It keeps the last entry of each key alone.
    pub(super) one_each: bool,
}

/// A change of a key.
#[derive(Debug, Clone)]
pub(super) struct BucketEntry {
    pub(super) key: String,
    /// `None`: it was deleted.
    pub(super) value: Option<Bytes>,
    pub(super) revision: u64,
    pub(super) at: Timestamp,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    Beginning,
    /// The last change of each key alone.
    LastOfEach,
    After(u64),
}

/// A consumer of this process's own, forgotten by the server when it is not read any more.
pub(super) struct Reader {
    core: Arc<Core>,
    bucket: Bucket,
    /// `<stream>.<consumer>`.
    consumer: String,
    standing: Standing,
    read: VecDeque<BucketEntry>,
}

impl Reader {
    pub(super) async fn open(
        core: &Arc<Core>,
        bucket: Bucket,
        from: From,
        keys_only: bool,
    ) -> Result<Self, BrokerError> {
        let attempted = "read a table";
        let name = format!("r{:016x}", rand::random::<u64>());
        let filter = format!("{}>", bucket.prefix);
        let mut config = json!({
            "name": name,
            "filter_subject": filter,
            "replay_policy": "instant",
            "ack_policy": "none",
            "inactive_threshold": nanos(FORGOTTEN_AFTER),
            "mem_storage": true,
            "num_replicas": 1,
            "headers_only": keys_only,
        });
        match from {
            From::Beginning => config["deliver_policy"] = "all".into(),
            From::LastOfEach => config["deliver_policy"] = "last_per_subject".into(),
            From::After(revision) => {
                config["deliver_policy"] = "by_start_sequence".into();
                config["opt_start_seq"] = (revision + 1).into();
            }
        }
        let body = json!({ "stream_name": bucket.stream, "config": config }).to_string();
        core.api::<serde_json::Value>(attempted, &format!("CONSUMER.CREATE.{}.{name}.{filter}", bucket.stream), body)
            .await
            .map_err(|failure| failure.into_broker(attempted, bucket.stream))?;
        let consumer = format!("{}.{name}", bucket.stream);
        let standing = Standing::new(Arc::clone(core), consumer.clone(), BATCH, 1);
        Ok(Self { core: Arc::clone(core), bucket, consumer, standing, read: VecDeque::new() })
    }

    /// The next of what is there; `None` when all was read.
    pub(super) async fn next_there(&mut self) -> Result<Option<BucketEntry>, BrokerError> {
        if self.read.is_empty() {
            let mut pull = request(&self.core, &self.consumer, BATCH, Wait::Not).await?;
            while let Some(event) = pull.next().await {
                match event {
                    PullEvent::Message(message, info) => self.read.extend(self.bucket.entry(&message, info)),
                    // Of invocations alone.
                    PullEvent::Late { .. } => {}
                    PullEvent::Ended(end) => match end_error(end, self.bucket.stream) {
                        Some(error) => return Err(error),
                        None => break,
                    },
                }
            }
        }
        Ok(self.read.pop_front())
    }

    /// The next to come.
    pub(super) async fn next(&mut self) -> Result<BucketEntry, BrokerError> {
        loop {
            let (message, info) = self.standing.next().await?;
            if let Some(entry) = self.bucket.entry(&message, info) {
                return Ok(entry);
            }
        }
    }

    /// The server need not wait until it forgets the reader by itself.
    pub(super) async fn close(self) {
        let subject = format!("CONSUMER.DELETE.{}", self.consumer);
        if let Err(failure) = self.core.api::<serde_json::Value>("end reading a table", &subject, Bytes::new()).await {
            tracing::debug!(?failure, "a reader was left to be forgotten");
        }
    }
}

impl Bucket {
    /// Where changes are said again.
    pub(super) fn changes(self) -> Option<String> {
        let name = self.stream.strip_prefix("KV_").filter(|_| self.said_again)?;
        Some(subject::table_changes(name))
    }

    fn entry(self, message: &async_nats::Message, info: Info) -> Option<BucketEntry> {
        let key = message.subject.strip_prefix(self.prefix)?;
        let operation = message.headers.as_ref().and_then(|headers| headers.get(OPERATION));
        let deleted = operation.is_some_and(|operation| is_deletion(operation.as_str()));
        Some(BucketEntry {
            key: key.to_owned(),
            value: (!deleted).then(|| message.payload.clone()),
            revision: info.stream_sequence,
            at: info.stored_at(),
        })
    }
}

pub(super) const OPERATION: &str = "KV-Operation";

pub(super) fn is_deletion(operation: &str) -> bool {
    matches!(operation, "DEL" | "PURGE")
}

/// What one who follows a bucket hears.
#[derive(Debug)]
pub(super) enum Followed {
    /// All that was heard before is void: the bucket is read from its beginning, since it is the first time or
    /// since it is another than before.
    Restarted,
    Entry(BucketEntry),
    /// All that was there at the start was told.
    Synced,
}

/// Follows a bucket until the connection is closed.
pub(super) struct Follow {
    core: Arc<Core>,
    bucket: Bucket,
    history: bool,
    always_anew: bool,
    state: State,
    /// When the bucket was made, and the last revision that was told.
    epoch: Option<Timestamp>,
    last: u64,
    said: Option<String>,
}

enum State {
    Closed,
    /// Reads what is there; told as the beginning or as changes.
    CatchingUp(Source, Told),
    Following(Source),
}

/// What a bucket is read through.
enum Source {
    Consumer(Reader),
    Changes(Box<Changes>),
}

impl Source {
    async fn next_there(&mut self) -> Result<Option<BucketEntry>, BrokerError> {
        match self {
            Self::Consumer(reader) => reader.next_there().await,
            Self::Changes(changes) => changes.next_there().await,
        }
    }

    async fn next(&mut self) -> Result<BucketEntry, BrokerError> {
        match self {
            Self::Consumer(reader) => reader.next().await,
            Self::Changes(changes) => changes.next().await,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Anew,
    Resumed,
}

impl Follow {
    pub(super) fn new(core: Arc<Core>, bucket: Bucket, history: bool) -> Self {
        Self { core, bucket, history, always_anew: false, state: State::Closed, epoch: None, last: 0, said: None }
    }

    /// Says everything again after each reconnection.
    pub(super) fn anew_on_reconnect(mut self) -> Self {
        self.always_anew = true;
        self
    }

    /// `None` when the connection was closed for good.
    pub(super) async fn next(&mut self) -> Option<Followed> {
        loop {
            if self.core.closed.is_cancelled() || self.core.link_now().closed {
                return None;
            }
            let heard = match &mut self.state {
                State::Closed => self.open().await,
                State::CatchingUp(reader, told) => match (reader.next_there().await, *told) {
                    (Ok(Some(entry)), _) => Ok(Some(Followed::Entry(entry))),
                    (Ok(None), told) => {
                        if let State::CatchingUp(reader, _) = std::mem::replace(&mut self.state, State::Closed) {
                            self.state = State::Following(reader);
                        }
                        Ok((told == Told::Anew).then_some(Followed::Synced))
                    }
                    (Err(error), _) => Err(error),
                },
                State::Following(reader) => reader.next().await.map(|entry| Some(Followed::Entry(entry))),
            };
            match heard {
                Ok(Some(heard)) => {
                    self.said = None;
                    if let Followed::Entry(entry) = &heard {
                        self.last = entry.revision;
                    }
                    return Some(heard);
                }
                Ok(None) => {}
                Err(error) => {
                    self.state = State::Closed;
                    self.pause(&error).await;
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Option<Followed>, BrokerError> {
        let attempted = "read a table";
        let info: StreamInfo = self
            .core
            .api(attempted, &format!("STREAM.INFO.{}", self.bucket.stream), Bytes::new())
            .await
            .map_err(|failure| failure.into_broker(attempted, self.bucket.stream))?;
        let same = self.epoch == Some(info.created) && !self.always_anew;
        let (from, told) = match (same, self.history) {
            (true, _) if self.last > 0 => (From::After(self.last), Told::Resumed),
            (_, true) => (From::Beginning, Told::Anew),
            (_, false) => (From::LastOfEach, Told::Anew),
        };
        let source = match self.bucket.changes().filter(|_| self.history || self.bucket.one_each) {
            Some(changes) => Source::Changes(Box::new(Changes::open(&self.core, self.bucket, changes, from).await?)),
            None => Source::Consumer(Reader::open(&self.core, self.bucket, from, false).await?),
        };
        self.state = State::CatchingUp(source, told);
        self.epoch = Some(info.created);
        if told == Told::Resumed {
            return Ok(None);
        }
        self.last = 0;
        Ok(Some(Followed::Restarted))
    }

    /// Waits a little, or for the connection; says once why.
    async fn pause(&mut self, error: &BrokerError) {
        let text = error.to_string();
        if self.said.as_ref() != Some(&text) {
            tracing::debug!(table = self.bucket.stream, error = &*text, "following a table was interrupted");
            self.said = Some(text);
        }
        let mut link = self.core.link();
        let up = async {
            let _ = link.wait_for(|link| link.up || link.closed).await;
            tokio::time::sleep(PAUSE).await;
        };
        tokio::select! {
            () = up => {}
            () = self.core.closed.cancelled() => {}
        }
    }
}
