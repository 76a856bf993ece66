//! Messages that become visible later.
//!
//! The server keeps the time (`Nats-Schedule`, ADR-51), but a stream with schedules cannot refuse what is new when
//! it is full (error 10052 of 2.15), as an invocation queue must. So each pool has a stream of its own for what
//! waits; when a message is due the server moves it within that stream, and whichever gateway is free moves it on
//! into its queue: published under the id it was given, then acked. Doing it twice is doing it once.

use std::{sync::Arc, time::Duration};

use async_nats::{
    HeaderMap, HeaderName, HeaderValue,
    jetstream::stream::{Config, DiscardPolicy, RetentionPolicy},
};
use bytes::Bytes;
use flux_protocol::{PoolName, Timestamp, invocation::header, limits, subject, subject::QueueName};
use serde_json::json;
use tokio::time::Instant;

use super::{
    core::{Core, PubAck, StreamInfo},
    deliveries::{NatsAcker, Standing},
    heat::nanos,
    provision::base,
    queue::MESSAGE_ID,
};
use crate::{Acker as _, BrokerError};

/// The id under which a message that waits is published when it is due.
const DUE_ID: &str = "Flux-Due-Id";
/// The consumer that gateways share to move what is due.
const MOVER: &str = "mover";
/// One that died while it moved a message leaves it to another after this long.
const MOVE_WITHIN: Duration = Duration::from_secs(6);
const MOVED_AT_ONCE: usize = 256;
/// A queue that is full is tried again after this long.
const FULL_PAUSE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// How old the known size of a stream may be.
const SIZE_KNOWN_FOR: Duration = Duration::from_secs(1);

/// What waits in a pool, and what is due there.
pub(super) fn stream(pool: &PoolName) -> String {
    if pool.is_default() { "FLUX_DELAYED".to_owned() } else { format!("FLUX_DELAYED-{pool}") }
}

fn due_prefix(pool: &PoolName) -> String {
    if pool.is_default() { "flux.due.".to_owned() } else { format!("flux.due-{pool}.") }
}

pub(super) fn config(pool: &PoolName) -> Config {
    Config {
        retention: RetentionPolicy::WorkQueue,
        // The only one that a stream with schedules can have. There is no limit that it could be applied to:
        // `publish_at` looks at the size.
        discard: DiscardPolicy::Old,
        allow_message_schedules: true,
        ..base(stream(pool), vec![subject::delayed_subjects(pool), format!("{}>", due_prefix(pool))])
    }
}

/// Stores a message until it is due.
pub(super) async fn store(
    core: &Core,
    queue: &QueueName,
    mut headers: HeaderMap,
    body: Bytes,
    due: Timestamp,
) -> Result<PubAck, BrokerError> {
    check_size(core, &queue.pool).await?;
    let execution = headers.get(header::EXECUTION_ID).and_then(|id| id.as_str().parse().ok());
    let execution = execution.unwrap_or_default();
    if let Some(id) = headers.get(MESSAGE_ID).cloned() {
        headers.insert(HeaderName::from_static(DUE_ID), id);
    }
    let target = format!("{}{}.{}", due_prefix(&queue.pool), queue.lane.as_str(), queue.function);
    headers.insert(HeaderName::from_static("Nats-Schedule"), format!("@at {due}"));
    headers.insert(HeaderName::from_static("Nats-Schedule-Target"), target);
    core.publish("store a delayed invocation", &subject::delayed(&queue.pool, execution), || headers.clone(), body)
        .await
}

async fn check_size(core: &Core, pool: &PoolName) -> Result<(), BrokerError> {
    let known = core.delayed_bytes.lock().get(pool).copied();
    let bytes = match known {
        Some((bytes, at)) if at.elapsed() < SIZE_KNOWN_FOR => bytes,
        _ => {
            let (attempted, stream) = ("look at a stream", stream(pool));
            let info: StreamInfo = core
                .api(attempted, &format!("STREAM.INFO.{stream}"), Bytes::new())
                .await
                .map_err(|failure| failure.into_broker(attempted, &stream))?;
            core.delayed_bytes.lock().insert(pool.clone(), (info.state.bytes, Instant::now()));
            info.state.bytes
        }
    };
    if i64::try_from(bytes).unwrap_or(i64::MAX) >= limits::INVOKE_STREAM_BYTES {
        return Err(BrokerError::Full { what: format!("{} ({bytes} bytes wait for their time)", stream(pool)) });
    }
    Ok(())
}

/// Moves what is due into its queue until the connection is closed.
pub(super) async fn move_due(core: Arc<Core>, pool: PoolName) {
    let closed = core.closed.clone();
    let moving = async {
        loop {
            if let Err(error) = move_until_error(&core, &pool).await {
                if matches!(error, BrokerError::Closed) {
                    return;
                }
                tracing::debug!(%pool, %error, "moving delayed invocations was interrupted");
            }
            let mut link = core.link();
            if link.wait_for(|link| link.up || link.closed).await.map_or(true, |link| link.closed) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = moving => {}
        () = closed.cancelled() => {}
    }
}

async fn move_until_error(core: &Arc<Core>, pool: &PoolName) -> Result<(), BrokerError> {
    let (attempted, stream) = ("move delayed invocations", stream(pool));
    let filter = format!("{}>", due_prefix(pool));
    let body = json!({
        "stream_name": stream,
        "config": {
            "name": MOVER,
            "durable_name": MOVER,
            "filter_subject": filter,
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_policy": "explicit",
            "ack_wait": nanos(MOVE_WITHIN),
            "max_deliver": -1,
            "max_ack_pending": 16 * MOVED_AT_ONCE,
            "num_replicas": 0,
        },
    })
    .to_string();
    core.api::<serde_json::Value>(attempted, &format!("CONSUMER.CREATE.{stream}.{MOVER}.{filter}"), body)
        .await
        .map_err(|failure| failure.into_broker(attempted, &stream))?;
    let mut due = Standing::new(Arc::clone(core), format!("{stream}.{MOVER}"), MOVED_AT_ONCE, 1);
    loop {
        let mut batch = vec![due.next().await?.0];
        while let Some((message, _)) = due.try_next() {
            batch.push(message);
        }
        futures::future::join_all(batch.into_iter().map(|message| move_one(core, pool, message))).await;
    }
}

async fn move_one(core: &Arc<Core>, pool: &PoolName, message: async_nats::Message) {
    let acker = NatsAcker { core: Arc::clone(core), reply: message.reply.unwrap_or_else(|| "".into()) };
    let place = message.subject.strip_prefix(due_prefix(pool).as_str()).and_then(|rest| rest.split_once('.'));
    let queue = place.and_then(|(lane, function)| QueueName::from_key(&format!("{lane}.{pool}.{function}")));
    let Some(queue) = queue else {
        tracing::error!(subject = %message.subject, "a delayed message of no queue is thrown away");
        let _ = acker.terminate().await;
        return;
    };
    let headers = due_headers(message.headers);
    let told = match core.publish("store an invocation", &queue.subject(), || headers.clone(), message.payload).await {
        Ok(_) => acker.ack().await,
        Err(error) => {
            tracing::warn!(queue = %queue.key(), %error, "an invocation that is due waits a little longer");
            acker.nack(Some(FULL_PAUSE)).await
        }
    };
    if let Err(error) = told {
        tracing::debug!(%error, "a delayed invocation will be moved again");
    }
}

/// The headers that were given, under the id that was given.
fn due_headers(stored: Option<HeaderMap>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in stored.unwrap_or_default().iter() {
        let text: &str = name.as_ref();
        let value = values.first().cloned().unwrap_or_else(HeaderValue::new);
        if text == DUE_ID {
            headers.insert(HeaderName::from_static(MESSAGE_ID), value);
        } else if !text.starts_with("Nats-") {
            headers.insert(name.clone(), value);
        }
    }
    headers
}
