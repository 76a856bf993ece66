//! What every part of the engine stands on: requests that survive a lost connection, publishes that are
//! acknowledged, and what is known of the streams.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, Message, Request, Subject, client::RequestErrorKind};
use bytes::Bytes;
use flux_protocol::{PoolName, Timestamp, invocation::Lane, limits, subject, subject::QueueName};
use flux_runtime::Tasks;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    error::ApiError,
    inbox::Inbox,
    link::{Link, Refused},
    options::NatsOptions,
    storing::Storing,
};
use crate::BrokerError;

/// A request is tried again, over reconnections too, until this much time passed.
pub(super) const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// One try of it. Longer than any server in order takes, shorter than the choosing of a leader.
const TRY_WITHIN: Duration = Duration::from_secs(2);
/// Nobody answers on a subject: a stream that is being made anew, or one that nobody will make.
const NOBODY_WITHIN: Duration = Duration::from_secs(2);
const NOBODY_PAUSE: Duration = Duration::from_millis(20);
/// Requests to JetStream itself; all others store something. An agent's account has an API of its own there, which knows no
/// streams and answers as well, so that of the gateways' account has another name in it.
const API: &str = "$JS.API.";
pub(super) const AGENTS_API: &str = "flux.api.";

pub(super) struct Core {
    pub(super) client: Client,
    pub(super) inbox: Arc<Inbox>,
    pub(super) replicas: usize,
    pub(super) tasks: Tasks,
    pub(super) closed: CancellationToken,
    link: watch::Receiver<Link>,
    refused: Refused,
    api: &'static str,
    pub(super) own_account: bool,
    publish_room: Semaphore,
    pub(super) storing: Storing,
    epochs: RwLock<HashMap<(Lane, PoolName), Epoch>>,
    /// When a queue without a consumer was last told to gateways.
    pub(super) said_missing: Mutex<HashMap<QueueName, Instant>>,
    /// What waits for its time, and when that was looked at.
    pub(super) delayed_bytes: Mutex<HashMap<PoolName, (u64, Instant)>>,
    /// Pools whose due messages this process helps to move.
    pub(super) moving: Mutex<HashSet<PoolName>>,
}

/// When a stream was made, as seen over the connection of that number.
#[derive(Clone, Copy)]
struct Epoch {
    connects: u64,
    created: Timestamp,
}

/// The broker holds a message.
#[derive(Debug, Deserialize)]
pub(super) struct PubAck {
    pub(super) stream: String,
    #[serde(rename = "seq")]
    pub(super) sequence: u64,
    #[serde(default)]
    pub(super) duplicate: bool,
}

/// The part of a stream's description that is read here.
#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) created: Timestamp,
    pub(super) state: StreamState,
    /// Of all pages, where subjects were asked for.
    #[serde(default)]
    pub(super) total: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamState {
    #[serde(default)]
    pub(super) bytes: u64,
    #[serde(default)]
    pub(super) last_seq: u64,
    #[serde(default)]
    pub(super) subjects: Option<HashMap<String, u64>>,
}

/// Why a try of a request brought no answer.
enum Lost {
    /// The connection went away meanwhile.
    Interrupted,
    Nobody,
    TimedOut,
    Other(async_nats::client::RequestError),
}

#[derive(Debug)]
pub(super) enum ApiFailure {
    Api(ApiError),
    Broker(BrokerError),
}

impl ApiFailure {
    pub(super) fn into_broker(self, attempted: &'static str, what: &str) -> BrokerError {
        match self {
            Self::Api(error) => error.into_broker(attempted, what, None),
            Self::Broker(error) => error,
        }
    }
}

impl Core {
    pub(super) fn new(
        client: Client,
        inbox: Arc<Inbox>,
        options: &NatsOptions,
        tasks: Tasks,
        link: watch::Receiver<Link>,
        refused: Refused,
    ) -> Self {
        let closed = tasks.shutdown().kill_token().child_token();
        Self {
            client,
            inbox,
            replicas: options.replicas.max(1),
            own_account: options.own_account,
            api: if options.own_account { AGENTS_API } else { API },
            tasks,
            closed,
            link,
            refused,
            publish_room: Semaphore::new(limits::PUBLISH_IN_FLIGHT),
            storing: Storing::default(),
            epochs: RwLock::default(),
            said_missing: Mutex::default(),
            delayed_bytes: Mutex::default(),
            moving: Mutex::default(),
        }
    }

    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    pub(super) fn link_now(&self) -> Link {
        *self.link.borrow()
    }

    /// Waits for a connection; an error when there is none by `deadline`.
    pub(super) async fn connected(&self, attempted: &'static str, deadline: Instant) -> Result<Link, BrokerError> {
        let now = self.link_now();
        if now.up {
            return Ok(now);
        }
        let mut link = self.link();
        match tokio::time::timeout_at(deadline, link.wait_for(|link| link.up || link.closed)).await {
            Ok(Ok(link)) if link.up => Ok(*link),
            Ok(_) => Err(BrokerError::Closed),
            Err(_) => Err(BrokerError::unavailable(attempted, "there is no connection")),
        }
    }

    /// Asks, with headers made for each try, and asks again when the connection was lost meanwhile, nobody was there yet or no answer came in
    /// time: for requests that may arrive twice.
    pub(super) async fn request(
        &self,
        attempted: &'static str,
        subject: &str,
        headers: impl Fn() -> Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Message, BrokerError> {
        let begun = Instant::now();
        let deadline = begun + REQUEST_WITHIN;
        loop {
            let link = self.connected(attempted, deadline).await?;
            let left = deadline.saturating_duration_since(Instant::now()).min(TRY_WITHIN);
            let source: Box<dyn std::error::Error + Send + Sync> =
                match self.request_once(link, subject, headers(), body.clone(), left).await {
                    Ok(answer) => return Ok(answer),
                    Err(Lost::Nobody) if begun.elapsed() < NOBODY_WITHIN => {
                        tokio::time::sleep(NOBODY_PAUSE).await;
                        continue;
                    }
                    Err(Lost::Nobody) => {
                        return Err(BrokerError::unavailable(attempted, format!("nobody answers on {subject}")));
                    }
                    Err(Lost::Interrupted) => "the connection was lost meanwhile".into(),
                    Err(Lost::TimedOut) if self.refused.lock().contains(subject) => {
                        return Err(BrokerError::Denied { attempted: attempted.to_owned() });
                    }
                    Err(Lost::TimedOut) => {
                        if !subject.starts_with(API) && !subject.starts_with(AGENTS_API) {
                            self.storing.unanswered(subject, left, link.connects, Instant::now());
                        }
                        "no answer came in time".into()
                    }
                    Err(Lost::Other(error)) if error.kind() == RequestErrorKind::MaxPayloadExceeded => {
                        return Err(BrokerError::TooLarge { size: body.len(), limit: self.message_limit() });
                    }
                    Err(Lost::Other(error)) if error.kind() == RequestErrorKind::InvalidSubject => {
                        return Err(BrokerError::refused(attempted, error));
                    }
                    Err(Lost::Other(_)) if self.link_now().closed || self.closed.is_cancelled() => {
                        return Err(BrokerError::Closed);
                    }
                    Err(Lost::Other(error)) => error.into(),
                };
            if Instant::now() >= deadline {
                return Err(BrokerError::unavailable(attempted, source));
            }
        }
    }

    async fn request_once(
        &self,
        sent_on: Link,
        subject: &str,
        headers: Option<HeaderMap>,
        body: Bytes,
        within: Duration,
    ) -> Result<Message, Lost> {
        let mut request = Request::new().payload(body).timeout(Some(within));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let mut link = self.link();
        tokio::select! {
            biased;
            answer = self.client.send_request(subject.to_owned(), request) => answer.map_err(|error| match error.kind() {
                RequestErrorKind::NoResponders => Lost::Nobody,
                RequestErrorKind::TimedOut => Lost::TimedOut,
                _ => Lost::Other(error),
            }),
            _ = link.wait_for(|link| link.closed || (link.up && link.connects > sent_on.connects)) => Err(Lost::Interrupted),
        }
    }

    /// A request to JetStream's API, tried again while the server is choosing a leader.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        attempted: &'static str,
        subject: &str,
        body: impl Into<Bytes>,
    ) -> Result<T, ApiFailure> {
        let body = body.into();
        let subject = format!("{}{subject}", self.api);
        let deadline = Instant::now() + REQUEST_WITHIN;
        loop {
            let answer = self.request(attempted, &subject, || None, body.clone()).await.map_err(ApiFailure::Broker)?;
            match read_answer(attempted, &answer.payload) {
                Err(ApiFailure::Api(error)) if error.is_passing() && Instant::now() < deadline => {
                    tokio::time::sleep(NOBODY_PAUSE).await;
                }
                read => return read,
            }
        }
    }

    /// Publishes to a stream; done once it holds the message. Tried again under the same id: `headers` makes them
    /// for each try, which costs less than a copy kept for a second try that hardly ever comes.
    pub(super) async fn publish(
        &self,
        attempted: &'static str,
        subject: &str,
        headers: impl Fn() -> HeaderMap,
        body: Bytes,
    ) -> Result<PubAck, BrokerError> {
        if body.len() > self.message_limit() {
            return Err(BrokerError::TooLarge { size: body.len(), limit: self.message_limit() });
        }
        // Closed never: the semaphore lives as long as this does.
        let _room = self.publish_room.acquire().await.map_err(|_| BrokerError::Closed)?;
        let deadline = Instant::now() + REQUEST_WITHIN;
        loop {
            let answer = self.request(attempted, subject, || Some(headers()), body.clone()).await?;
            match read_answer(attempted, &answer.payload) {
                Ok(ack) => {
                    self.storing.answered(subject);
                    return Ok(ack);
                }
                Err(ApiFailure::Api(error)) if error.is_passing() && Instant::now() < deadline => {
                    tokio::time::sleep(NOBODY_PAUSE).await;
                }
                Err(ApiFailure::Api(error)) => return Err(error.into_broker(attempted, subject, Some(body.len()))),
                Err(ApiFailure::Broker(error)) => return Err(error),
            }
        }
    }

    /// Of payloads and outputs an agent reads what it can name; a leader would tell it any message by its number.
    pub(super) fn may_ask_leader(&self, stream: &str) -> bool {
        let by_name_alone = [subject::BLOB_BUCKET, subject::OUTPUT_BUCKET];
        self.api == API || stream.strip_prefix("OBJ_").is_none_or(|bucket| !by_name_alone.contains(&bucket))
    }

    /// Sends what is buffered and closes. What waits for the connection ends with `Closed`.
    pub(super) async fn close(&self) {
        let mut link = self.link();
        if self.client.drain().await.is_ok() {
            // Without a connection there is nothing that could be sent.
            let gone = link.wait_for(|link| link.closed || !link.up);
            if tokio::time::timeout(TRY_WITHIN, gone).await.is_err() {
                tracing::warn!("not all that was buffered could be sent before closing");
            }
        }
        self.closed.cancel();
    }

    fn message_limit(&self) -> usize {
        self.client.max_payload().min(limits::MESSAGE)
    }

    /// Sends without waiting for an answer. Waits for room while the connection is down, for a while.
    pub(super) async fn send(
        &self,
        attempted: &'static str,
        subject: impl Into<Subject>,
        body: Bytes,
    ) -> Result<(), BrokerError> {
        let size = body.len();
        let sent = tokio::time::timeout(REQUEST_WITHIN, self.client.publish(subject.into(), body)).await;
        self.sent(attempted, size, sent)
    }

    /// The same, naming where an answer is awaited.
    pub(super) async fn send_with_reply(
        &self,
        attempted: &'static str,
        subject: impl Into<String>,
        reply_to: impl Into<String>,
        body: Bytes,
    ) -> Result<(), BrokerError> {
        let size = body.len();
        let sending = self.client.publish_with_reply(subject.into(), reply_to.into(), body);
        let sent = tokio::time::timeout(REQUEST_WITHIN, sending).await;
        self.sent(attempted, size, sent)
    }

    /// The same with headers.
    pub(super) async fn send_with_headers(
        &self,
        attempted: &'static str,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), BrokerError> {
        let size = body.len();
        let sending = self.client.publish_with_headers(subject, headers, body);
        let sent = tokio::time::timeout(REQUEST_WITHIN, sending).await;
        self.sent(attempted, size, sent)
    }

    fn sent(
        &self,
        attempted: &'static str,
        size: usize,
        sent: Result<Result<(), async_nats::PublishError>, tokio::time::error::Elapsed>,
    ) -> Result<(), BrokerError> {
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => match error.kind() {
                async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                    Err(BrokerError::TooLarge { size, limit: self.message_limit() })
                }
                async_nats::client::PublishErrorKind::InvalidSubject => Err(BrokerError::refused(attempted, error)),
                async_nats::client::PublishErrorKind::Send => Err(BrokerError::Closed),
            },
            Err(_) => Err(BrokerError::unavailable(attempted, "too much is waiting for the connection already")),
        }
    }

    /// A round trip through the server on a subject of our own: what was sent before it has been read when it ends.
    pub(super) async fn round_trip(&self, attempted: &'static str) -> Result<(), BrokerError> {
        let deadline = Instant::now() + REQUEST_WITHIN;
        loop {
            let sent_on = self.connected(attempted, deadline).await?;
            let mut mailbox = self.inbox.mailbox(1);
            self.send(attempted, mailbox.subject.clone(), Bytes::new()).await?;
            let mut link = self.link();
            tokio::select! {
                heard = mailbox.next() => return heard.map(|_| ()).ok_or(BrokerError::Closed),
                _ = link.wait_for(|link| link.closed || (link.up && link.connects > sent_on.connects)) => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Err(BrokerError::unavailable(attempted, "no answer came in time"));
                }
            }
            if self.link_now().closed {
                return Err(BrokerError::Closed);
            }
        }
    }

    /// When the lane's stream was made, remembered for as long as the connection holds.
    pub(super) async fn epoch(&self, lane: Lane, pool: &PoolName) -> Result<Timestamp, BrokerError> {
        let connects = self.link_now().connects;
        // A tuple of owned parts is looked up by clones; both are reference counts.
        if let Some(known) = self.epochs.read().get(&(lane, pool.clone()))
            && known.connects == connects
        {
            return Ok(known.created);
        }
        self.fresh_epoch(lane, pool).await
    }

    /// The same, asked for anew.
    pub(super) async fn fresh_epoch(&self, lane: Lane, pool: &PoolName) -> Result<Timestamp, BrokerError> {
        self.stream(lane, pool).await.map(|info| info.created)
    }

    pub(super) async fn stream(&self, lane: Lane, pool: &PoolName) -> Result<StreamInfo, BrokerError> {
        let connects = self.link_now().connects;
        let stream = subject::stream(lane, pool);
        let attempted = "look at a stream";
        let info: StreamInfo = self
            .api(attempted, &format!("STREAM.INFO.{stream}"), Bytes::new())
            .await
            .map_err(|failure| failure.into_broker(attempted, &stream))?;
        self.note_epoch(lane, pool, connects, info.created);
        Ok(info)
    }

    pub(super) fn note_epoch(&self, lane: Lane, pool: &PoolName, connects: u64, created: Timestamp) {
        self.epochs.write().insert((lane, pool.clone()), Epoch { connects, created });
    }

    /// A stream was not where it was.
    pub(super) fn forget_epochs(&self) {
        self.epochs.write().clear();
    }
}

pub(super) fn read_answer<T: DeserializeOwned>(attempted: &'static str, body: &[u8]) -> Result<T, ApiFailure> {
    #[derive(Deserialize)]
    struct Failed {
        error: ApiError,
    }
    // An error stands at the beginning, and beside what a success would have. Looking for the word is much cheaper
    // than reading each answer twice.
    let beginning = &body[..body.len().min(256)];
    if beginning.windows(ERROR.len()).any(|window| window == ERROR)
        && let Ok(failed) = serde_json::from_slice::<Failed>(body)
    {
        return Err(ApiFailure::Api(failed.error));
    }
    serde_json::from_slice(body).map_err(|error| ApiFailure::Broker(BrokerError::refused(attempted, error)))
}

const ERROR: &[u8] = b"\"error\"";

/// Headers for the wire. Their values were checked by [`check_header`].
pub(super) fn header_map<'h>(headers: impl IntoIterator<Item = (&'static str, &'h str)>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let Ok(value) = value.parse::<HeaderValue>() {
            map.insert(HeaderName::from_static(name), value);
        }
    }
    map
}

/// # Errors
/// A value with a line break, which would be a header of its own.
pub(super) fn check_header(value: &str) -> Result<(), BrokerError> {
    if value.contains(['\r', '\n']) {
        return Err(BrokerError::refused("send a header", "its value has a line break"));
    }
    Ok(())
}
