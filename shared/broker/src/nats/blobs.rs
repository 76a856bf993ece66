//! Blobs as the object store lays them out (ADR-20), so that `nats object` reads them: chunks on a subject of
//! their own, then one message that names them. A reader finds the old object or the new one.
//!
//! In the buckets that agents read by name alone, or write to, each chunk has a subject of its own: with the subject of a
//! stored message an agent needs no right to ask for others. There a key may have a first part, before a point, which is a
//! part of its subjects: who may write it. (`nats object` reads the code's bucket, and not these.)
//!
//! Chunks are sent without waiting for each other's acks and read a few megabytes at a time: a client that reads
//! slowly is not cut off by the server for what waits for it.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::{Bytes, BytesMut};
use flux_protocol::{limits, subject, time::now};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{NatsBroker, core::Core, dead_letters::Done, queue::MESSAGE_ID};
use crate::{BlobListed, Blobs, BrokerError};

const CHUNK: usize = 512 * limits::KIB;
/// Chunks on their way to the server.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Asked for at once when reading.
const READ_AT_ONCE: usize = 4 * limits::MIB;
/// Names of blobs in one page of a list.
const LISTED_AT_ONCE: usize = 256;
/// A blob that is replaced while it is read is read again this often.
const READ_TRIES: usize = 4;
/// Between tries of the same blob: a replica may be behind.
const READ_PAUSE: Duration = Duration::from_millis(50);

/// The message that makes chunks an object.
#[derive(Debug, Serialize, Deserialize)]
struct ObjectInfo {
    name: String,
    bucket: String,
    nuid: String,
    size: usize,
    mtime: String,
    chunks: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    options: Option<ObjectOptions>,
    /// Each chunk is the last message of its own subject.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    apart: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct ObjectOptions {
    max_chunk_size: usize,
}

#[async_trait]
impl Blobs for NatsBroker {
    async fn put_blob(&self, bucket: &str, key: &str, content: Bytes) -> Result<(), BrokerError> {
        check(bucket, key)?;
        let core = &self.core;
        let old = match info(core, bucket, key).await {
            // An agent's own, which it writes once.
            Err(BrokerError::Denied { .. }) => None,
            old => old?,
        };
        let mut nuid = format!("{:032x}", rand::random::<u128>());
        if let Some((writer, _)) = key.split_once('.') {
            nuid = format!("{writer}.{nuid}");
        }
        let apart = is_apart(bucket);
        let subject = chunks_subject(bucket, &nuid);
        let chunks = content.len().div_ceil(CHUNK);
        let attempted = "store a blob";
        let sent = stream::iter(0..chunks)
            .map(|index| {
                let chunk = content.slice(index * CHUNK..content.len().min((index + 1) * CHUNK));
                let subject = if apart { format!("{subject}.{index}") } else { subject.clone() };
                let id = format!("{nuid}.{index}");
                async move {
                    let mut headers = HeaderMap::new();
                    headers.insert(HeaderName::from_static(MESSAGE_ID), id);
                    // A chunk carries its number: a try that is sent again may come behind its successor.
                    headers.insert(HeaderName::from_static(CHUNK_INDEX), HeaderValue::from(index));
                    core.publish(attempted, &subject, || headers.clone(), chunk).await.map(|_| ())
                }
            })
            .buffer_unordered(CHUNKS_IN_FLIGHT)
            .try_collect::<Vec<()>>()
            .await;
        if let Err(error) = sent {
            purge(core, bucket, &nuid, apart).await;
            return Err(error);
        }
        let new = ObjectInfo {
            name: key.to_owned(),
            bucket: bucket.to_owned(),
            nuid,
            size: content.len(),
            mtime: now().to_string(),
            chunks,
            digest: Some(digest(&content)),
            deleted: false,
            options: Some(ObjectOptions { max_chunk_size: CHUNK }),
            apart,
        };
        put_info(core, attempted, &new).await?;
        if let Some(old) = old {
            purge(core, bucket, &old.nuid, old.apart).await;
        }
        Ok(())
    }

    async fn get_blob(&self, bucket: &str, key: &str, most: usize) -> Result<Option<Bytes>, BrokerError> {
        check(bucket, key)?;
        let mut seen: Option<String> = None;
        let mut replaced = false;
        for _ in 0..READ_TRIES {
            let found = match info(&self.core, bucket, key).await {
                // An agent may not ask the leader: a replica that lags is asked again.
                Err(BrokerError::Denied { .. }) => {
                    tokio::time::sleep(READ_PAUSE).await;
                    continue;
                }
                found => found?,
            };
            let Some(found) = found else { return Ok(None) };
            if found.size > most {
                return Err(BrokerError::TooLarge { size: found.size, limit: most });
            }
            if let Some(content) = read(&self.core, &found).await? {
                return Ok(Some(content));
            }
            match seen.replace(found.nuid.clone()) {
                Some(before) if before == found.nuid => tokio::time::sleep(READ_PAUSE).await,
                before => replaced |= before.is_some(),
            }
        }
        if seen.is_none() {
            return Ok(None);
        }
        if replaced {
            return Err(BrokerError::unavailable("read a blob", format!("{key} was replaced again and again")));
        }
        // Nobody replaces it: asking again would not bring the part back.
        Err(BrokerError::NotFound { what: format!("a part of the blob {key}") })
    }

    async fn has_blob(&self, bucket: &str, key: &str) -> Result<bool, BrokerError> {
        check(bucket, key)?;
        Ok(info(&self.core, bucket, key).await?.is_some())
    }

    async fn delete_blob(&self, bucket: &str, key: &str) -> Result<(), BrokerError> {
        check(bucket, key)?;
        let Some(old) = info(&self.core, bucket, key).await? else { return Ok(()) };
        // Nothing is left of it, not even that it was: blobs come and go with executions. What names its chunks goes
        // first: chunks without a name cost space, a name without chunks would be a blob that cannot be read.
        purge_subject(&self.core, bucket, &info_subject(bucket, key)).await?;
        purge(&self.core, bucket, &old.nuid, old.apart).await;
        Ok(())
    }

    async fn list_blobs(&self, bucket: &str) -> Result<Option<Vec<BlobListed>>, BrokerError> {
        let (stream, subject) = (stream_of(bucket), format!("$O.{bucket}.M.>"));
        let mut all = Vec::new();
        let mut from = 1;
        loop {
            let page = self.core.stored_from(&stream, &subject, from, LISTED_AT_ONCE, READ_AT_ONCE).await?;
            let Some(last) = page.last() else { return Ok(Some(all)) };
            from = last.sequence + 1;
            for found in page {
                let info: ObjectInfo = serde_json::from_slice(&found.body)
                    .map_err(|error| BrokerError::refused("read what a blob is", error))?;
                if !info.deleted {
                    // One without a time that can be read is new: nothing is to be concluded from its age.
                    let put_at = info.mtime.parse().unwrap_or_else(|_| now());
                    all.push(BlobListed { key: info.name, bytes: info.size as u64, put_at });
                }
            }
        }
    }
}

const CHUNK_INDEX: &str = "Flux-Chunk";

async fn info(core: &Core, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, BrokerError> {
    let Some(found) = core.last_on(&stream_of(bucket), &info_subject(bucket, key)).await? else { return Ok(None) };
    let info: ObjectInfo =
        serde_json::from_slice(&found.body).map_err(|error| BrokerError::refused("read what a blob is", error))?;
    Ok((!info.deleted).then_some(info))
}

async fn put_info(core: &Core, attempted: &'static str, info: &ObjectInfo) -> Result<(), BrokerError> {
    let body = serde_json::to_vec(info).map_err(|error| BrokerError::refused(attempted, error))?;
    let mut headers = HeaderMap::new();
    // Where a subject keeps its last message alone there is nothing to roll up.
    if info.bucket != subject::OUTPUT_BUCKET {
        headers.insert(HeaderName::from_static("Nats-Rollup"), "sub");
    }
    headers.insert(HeaderName::from_static(MESSAGE_ID), format!("{}.info", info.nuid));
    core.publish(attempted, &info_subject(&info.bucket, &info.name), || headers.clone(), body.into()).await.map(|_| ())
}

/// The content; `None` when a part of it is gone.
async fn read(core: &Core, info: &ObjectInfo) -> Result<Option<Bytes>, BrokerError> {
    let (stream, subject) = (stream_of(&info.bucket), chunks_subject(&info.bucket, &info.nuid));
    if info.apart {
        return read_apart(core, info, &stream, &subject).await;
    }
    let at_once = READ_AT_ONCE / info.options.as_ref().map_or(CHUNK, |options| options.max_chunk_size.max(1));
    let mut chunks: Vec<(usize, Bytes)> = Vec::with_capacity(info.chunks);
    let mut from = 1;
    while chunks.len() < info.chunks {
        let most = at_once.clamp(1, info.chunks - chunks.len());
        let page = core.stored_from(&stream, &subject, from, most, READ_AT_ONCE).await?;
        let Some(last) = page.last() else { return Ok(None) };
        from = last.sequence + 1;
        for chunk in page {
            let index = chunk.headers.get(CHUNK_INDEX).and_then(|index| index.as_str().parse().ok());
            chunks.push((index.unwrap_or(chunks.len()), chunk.body));
        }
    }
    chunks.sort_by_key(|(index, _)| *index);
    Ok(whole(info, chunks.into_iter().map(|(_, chunk)| chunk).collect()))
}

async fn read_apart(core: &Core, info: &ObjectInfo, stream: &str, subject: &str) -> Result<Option<Bytes>, BrokerError> {
    let chunks = stream::iter(0..info.chunks)
        .map(|index| async move {
            match core.last_on(stream, &format!("{subject}.{index}")).await {
                Err(BrokerError::Denied { .. }) => Ok(None),
                found => Ok(found?.map(|found| found.body)),
            }
        })
        .buffered(CHUNKS_IN_FLIGHT)
        .try_collect::<Vec<Option<Bytes>>>()
        .await?;
    Ok(chunks.into_iter().collect::<Option<Vec<Bytes>>>().and_then(|chunks| whole(info, chunks)))
}

/// The content of all chunks, if it is what was stored.
fn whole(info: &ObjectInfo, mut chunks: Vec<Bytes>) -> Option<Bytes> {
    let content = match chunks.len() {
        0 => Bytes::new(),
        1 => chunks.swap_remove(0),
        _ => {
            let mut content = BytesMut::with_capacity(info.size);
            for chunk in &chunks {
                content.extend_from_slice(chunk);
            }
            content.freeze()
        }
    };
    let whole = content.len() == info.size && info.digest.as_ref().is_none_or(|expected| *expected == digest(&content));
    whole.then_some(content)
}

/// Removes chunks that nothing names any more. What cannot be removed now costs space, no more.
async fn purge(core: &Core, bucket: &str, nuid: &str, apart: bool) {
    let subject = chunks_subject(bucket, nuid);
    let subject = if apart { format!("{subject}.*") } else { subject };
    if let Err(error) = purge_subject(core, bucket, &subject).await {
        tracing::warn!(bucket, nuid, %error, "the parts of a blob that was replaced or deleted are left behind");
    }
}

async fn purge_subject(core: &Core, bucket: &str, subject: &str) -> Result<(), BrokerError> {
    let attempted = "delete a blob";
    let body = json!({ "filter": subject }).to_string();
    core.api::<Done>(attempted, &format!("STREAM.PURGE.{}", stream_of(bucket)), body)
        .await
        .map(|_| ())
        .map_err(|failure| failure.into_broker(attempted, bucket))
}

fn digest(content: &[u8]) -> String {
    format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(content)))
}

fn stream_of(bucket: &str) -> String {
    format!("OBJ_{bucket}")
}

fn chunks_subject(bucket: &str, nuid: &str) -> String {
    format!("$O.{bucket}.C.{nuid}")
}

fn info_subject(bucket: &str, key: &str) -> String {
    match key.split_once('.') {
        Some((writer, name)) => format!("$O.{bucket}.M.{writer}.{}", URL_SAFE.encode(name)),
        None => format!("$O.{bucket}.M.{}", URL_SAFE.encode(key)),
    }
}

/// Whether each chunk has its own subject there.
fn is_apart(bucket: &str) -> bool {
    bucket != subject::CODE_BUCKET
}

fn check(bucket: &str, key: &str) -> Result<(), BrokerError> {
    let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let is_key = match key.split_once('.') {
        Some((writer, name)) => !writer.is_empty() && !name.is_empty() && is_name(writer) && is_name(name),
        None => is_name(key),
    };
    if (1..=200).contains(&key.len()) && is_key && !bucket.is_empty() && is_name(bucket) {
        return Ok(());
    }
    let rule = "use 1 to 200 of A-Z a-z 0-9 _ -, and one point in between";
    Err(BrokerError::refused("name a blob", format!("`{key}` cannot be a key: {rule}")))
}
