//! Blobs: a stream each, whose name is in the log. Who reads takes nothing away, and a blob that replaces another is another
//! stream, so that a reader has the one or the other.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use flux_protocol::{limits, time::now};
use futures::StreamExt as _;
use lapin::{
    Confirmation,
    options::{BasicAckOptions, BasicPublishOptions, QueueDeleteOptions},
};
use serde::{Deserialize, Serialize};

use super::{
    Parts, RabbitBroker,
    error::is_not_found,
    link::WITHIN,
    log::consume,
    message::plain,
    session::{arguments, bound_queue, number, text},
    tables::{BLOBS, GARBAGE, blob_key, delete, get, put},
    view::Rows,
};
use crate::{Blobs, BrokerError};

/// A large blob takes several messages, so that none stands in the way of others for long.
const PART: usize = limits::MIB;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// Looks for a blob that was replaced while it was read.
const TRIES: usize = 5;
/// A stream that is not named any more is deleted only when nobody can be about to read it: in 3.10 that would end the
/// reader's whole connection.
const READ_UNTIL: std::time::Duration = std::time::Duration::from_secs(15);
const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(5);
/// One that was not finished by then never will be.
const UNFINISHED_FOR: std::time::Duration = std::time::Duration::from_secs(600);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    stream: String,
    size: usize,
    /// While it is written: what it replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished: Option<Option<Box<Place>>>,
}

impl Place {
    /// What readers see.
    fn finished(self) -> Option<Self> {
        match self.unfinished {
            None => Some(self),
            Some(before) => before.map(|before| *before),
        }
    }
}

impl Parts {
    async fn place(&self, key: &str) -> Result<Option<Place>, BrokerError> {
        let row = get(&self.logs.passing, BLOBS, key).await?;
        Ok(row.and_then(|row| serde_json::from_slice(row.value.as_deref()?).ok()))
    }

    async fn say_place(&self, key: &str, place: &Place) -> Result<(), BrokerError> {
        let value = serde_json::to_vec(place).map_err(|error| BrokerError::refused("store a blob", error))?;
        put(&self.logs.passing, BLOBS, key, value.into()).await.map(|_| ())
    }

    async fn write_blob(&self, stream: &str, content: Bytes) -> Result<(), BrokerError> {
        let attempted = "store a blob";
        let session = self.link.session(attempted).await?;
        let kept = arguments([
            ("x-queue-type", text("stream")),
            // Nothing of it goes by age or size: it is deleted as a whole.
            ("x-stream-max-segment-size-bytes", number(2 * limits::PAYLOAD.max(limits::ARCHIVE) as i64)),
        ]);
        let exchange = self.link.names.blobs();
        let declare = async {
            let channel = session.channel().await?;
            bound_queue(&channel, stream, &exchange, stream, kept).await?;
            let _ = channel.close(200, "done".into()).await;
            Ok(())
        };
        self.link.within(attempted, declare).await?;
        let count = content.len().div_ceil(PART).max(1);
        let parts = (0..count).map(|part| content.slice(part * PART..content.len().min((part + 1) * PART)));
        let (channel, exchange) = (&session.publishing, exchange.as_str());
        let mut confirms = futures::stream::iter(parts)
            .map(|part| async move {
                let options = BasicPublishOptions::default();
                let publish = channel.basic_publish(exchange.into(), stream.into(), options, &part, plain());
                let confirmed = async { publish.await?.await };
                match tokio::time::timeout(WITHIN * 2, confirmed).await {
                    Ok(Ok(Confirmation::Ack(_) | Confirmation::NotRequested)) => Ok(()),
                    // Said to be there it would have a hole, and be what can never be read.
                    Ok(Ok(Confirmation::Nack(_))) => Err(BrokerError::unavailable(attempted, "a part was not stored")),
                    Ok(Err(error)) => Err(super::error::into_broker(attempted, error)),
                    Err(_) => Err(BrokerError::unavailable(attempted, "no answer came in time")),
                }
            })
            .buffered(PARTS_AT_ONCE);
        while let Some(confirmed) = confirms.next().await {
            confirmed?;
        }
        Ok(())
    }

    async fn read_blob(&self, place: &Place) -> Result<Option<Bytes>, BrokerError> {
        let attempted = "read a blob";
        let session = self.link.session(attempted).await?;
        let opened = tokio::time::timeout(WITHIN, consume(&session, &place.stream, "first")).await;
        let (channel, mut parts) = match opened {
            Ok(Ok(reading)) => reading,
            Ok(Err(error)) if is_not_found(&error) => return Ok(None),
            Ok(Err(error)) => return Err(super::error::into_broker(attempted, error)),
            Err(_) => return Err(BrokerError::unavailable(attempted, "no answer came in time")),
        };
        let mut content = BytesMut::with_capacity(place.size);
        while content.len() < place.size {
            let part = tokio::time::timeout(WITHIN, parts.next()).await;
            let part = part.map_err(|_| BrokerError::unavailable(attempted, "no answer came in time"))?;
            // Deleted while it was read.
            let Some(part) = part else { return Ok(None) };
            let part = part.map_err(|error| super::error::into_broker(attempted, error))?;
            content.extend_from_slice(&part.data);
            let _ = channel.basic_ack(part.delivery_tag, BasicAckOptions::default()).await;
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(Some(content.freeze()))
    }

    async fn remove_stream(&self, stream: &str) -> Result<(), BrokerError> {
        let session = self.link.session("delete a blob").await?;
        let remove =
            async { session.channel().await?.queue_delete(stream.into(), QueueDeleteOptions::default()).await };
        self.link.within("delete a blob", remove).await.map(|_| ())
    }

    /// Has a stream deleted once nobody reads it any more, whatever becomes of this process.
    async fn throw_away(&self, stream: &str) -> Result<(), BrokerError> {
        put(&self.logs.passing, GARBAGE, stream, Bytes::new()).await.map(|_| ())
    }

    /// Removes what was thrown away, and what a process began to write and did not finish.
    pub(super) async fn sweep_blobs(self: Arc<Self>) {
        loop {
            // Not all gateways at once: what one deleted the others need not.
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY.mul_f64(0.5 + rand::random::<f64>())) => {}
                () = self.link.closed.cancelled() => return,
            }
            if let Err(error) = self.sweep().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "what is left of blobs is removed later");
            }
        }
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        let rows = |table| self.logs.passing.look(|view| view.table(table).map(Rows::all).unwrap_or_default());
        let old = now().minus(READ_UNTIL);
        for row in rows(GARBAGE).into_iter().filter(|row| row.at < old) {
            // An agent may say that it threw away what it likes.
            if row.key.starts_with(&self.link.names.all_blobs()) {
                self.remove_stream(&row.key).await?;
            }
            delete(&self.logs.passing, GARBAGE, &row.key).await?;
        }
        let old = now().minus(UNFINISHED_FOR);
        for row in rows(BLOBS).into_iter().filter(|row| row.at < old) {
            let place = row.value.as_deref().and_then(|value| serde_json::from_slice::<Place>(value).ok());
            let Some(place) = place.filter(|place| place.unfinished.is_some()) else { continue };
            self.throw_away(&place.stream).await?;
            match place.finished() {
                Some(before) => self.say_place(&row.key, &before).await?,
                None => delete(&self.logs.passing, BLOBS, &row.key).await?,
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Blobs for RabbitBroker {
    async fn put_blob(&self, bucket: &str, key: &str, content: Bytes) -> Result<(), BrokerError> {
        let row = blob_key(bucket, key);
        let before = self.parts.place(&row).await?.and_then(Place::finished);
        let stream = self.parts.link.names.blob(bucket, rand::random());
        let size = content.len();
        let unfinished = Some(before.clone().map(Box::new));
        self.parts.say_place(&row, &Place { stream: stream.clone(), size, unfinished }).await?;
        self.parts.write_blob(&stream, content).await?;
        self.parts.say_place(&row, &Place { stream, size, unfinished: None }).await?;
        if let Some(before) = before {
            self.parts.throw_away(&before.stream).await?;
        }
        Ok(())
    }

    async fn get_blob(&self, bucket: &str, key: &str, most: usize) -> Result<Option<Bytes>, BrokerError> {
        let row = blob_key(bucket, key);
        for _ in 0..TRIES {
            let Some(place) = self.parts.place(&row).await?.and_then(Place::finished) else { return Ok(None) };
            if place.size > most {
                return Err(BrokerError::TooLarge { size: place.size, limit: most });
            }
            if place.size == 0 {
                return Ok(Some(Bytes::new()));
            }
            if let Some(content) = self.parts.read_blob(&place).await? {
                return Ok(Some(content));
            }
        }
        Err(BrokerError::unavailable("read a blob", "it is replaced faster than it can be read"))
    }

    async fn has_blob(&self, bucket: &str, key: &str) -> Result<bool, BrokerError> {
        Ok(self.parts.place(&blob_key(bucket, key)).await?.and_then(Place::finished).is_some())
    }

    async fn delete_blob(&self, bucket: &str, key: &str) -> Result<(), BrokerError> {
        let row = blob_key(bucket, key);
        let Some(place) = self.parts.place(&row).await? else { return Ok(()) };
        delete(&self.parts.logs.passing, BLOBS, &row).await?;
        self.parts.throw_away(&place.stream).await
    }
}
