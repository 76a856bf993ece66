//! Request bodies, read whole into memory within a limit, while they keep coming, and within what all of them
//! together may take.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderMap,
        header::{CONTENT_LENGTH, EXPECT},
    },
};
use bytes::{Bytes, BytesMut};
use flux_protocol::{ErrorCode, limits};
use hyper::body::Body as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_stream::StreamExt as _;

use super::Http;
use crate::refusal::Refusal;

/// What a caller that is refused may still send before the connection closes: an answer that is followed by a
/// reset is often never read.
const DISCARD_BYTES: usize = limits::MIB;
const DISCARD_FOR: Duration = Duration::from_millis(500);
const DISCARD_LARGE_FOR: Duration = Duration::from_secs(5);

/// A body, and its share of the memory for bodies: hold both until the bytes are done with.
pub(super) struct RequestBody {
    pub(super) bytes: Bytes,
    pub(super) _share: Share,
}

/// Permits of [`limits::HTTP_BODY_FREE`] bytes each.
pub(super) struct Share {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Grows to cover `size`; small bodies need none.
    fn cover(&mut self, size: usize) -> Result<(), Refusal> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = (size / limits::HTTP_BODY_FREE).saturating_sub(held);
        let Some(wanted) = u32::try_from(wanted).ok().filter(|wanted| *wanted > 0) else { return Ok(()) };
        let more = Arc::clone(&self.budget).try_acquire_many_owned(wanted).map_err(|_| {
            let message = format!(
                "this gateway holds {} MiB of request bodies, which is all it takes at once; try again",
                limits::HTTP_BODIES / limits::MIB
            );
            Refusal::new(ErrorCode::TooManyRequests, message)
        })?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

/// Reads a body of at most `limit` bytes; `what` and `name` say in an error what it is and what the limit is called.
pub(super) async fn read(
    http: &Http,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    what: &str,
) -> Result<RequestBody, Refusal> {
    let too_large = |size: Option<usize>| {
        let size = size.map_or_else(|| "more than that".to_owned(), |size| format!("{size} bytes"));
        let message = format!("{what} is at most {limit} bytes; this one has {size}");
        Refusal::new(ErrorCode::PayloadTooLarge, message).with_details(serde_json::json!({ "limit_bytes": limit }))
    };
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut share = Share { budget: Arc::clone(&http.bodies), held: None };
    if let Some(size) = announced {
        if size > limit {
            // A client that asked before sending is told in time; any other is heard out, or it would not listen.
            if !headers.contains_key(EXPECT) {
                discard(body, limit.saturating_mul(2), DISCARD_LARGE_FOR).await;
            }
            return Err(too_large(announced));
        }
        share.cover(size)?;
    }
    if body.is_end_stream() {
        return Ok(RequestBody { bytes: Bytes::new(), _share: share });
    }
    let mut chunks = body.into_data_stream();
    let begun = Instant::now();
    let stall = http.options.body_stall_timeout;
    // Each chunk may be waited for, and all of them together have to come at a pace.
    let mut next = async |read: usize| {
        let paced = begun + stall + pace(read);
        match timeout_at(paced.min(Instant::now() + stall), chunks.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
            Ok(Some(Err(error))) => Err(Refusal::new(ErrorCode::InvalidRequest, "the body broke off").caused_by(error)),
            Err(_) => Err(too_slow(read, stall)),
        }
    };
    let Some(first) = next(0).await? else { return Ok(RequestBody { bytes: Bytes::new(), _share: share }) };
    // Nearly every body is one chunk, and needs no copy.
    if announced == Some(first.len()) {
        return Ok(RequestBody { bytes: first, _share: share });
    }
    // Room is made as the bytes come and not as they were announced: an announcement costs its sender nothing.
    let mut all = BytesMut::from(&first[..]);
    while let Some(chunk) = next(all.len()).await? {
        if all.len() + chunk.len() > limit {
            discard_stream(chunks, limit.saturating_mul(2), DISCARD_LARGE_FOR).await;
            return Err(too_large(None));
        }
        if all.len() + chunk.len() > all.capacity() {
            all.reserve(all.len().clamp(chunk.len(), limits::HTTP_BODIES));
        }
        all.extend_from_slice(&chunk);
        share.cover(all.len())?;
    }
    Ok(RequestBody { bytes: all.freeze(), _share: share })
}

/// How long so many bytes may take at the slowest pace.
fn pace(bytes: usize) -> Duration {
    let millis = bytes.saturating_mul(1000) / limits::HTTP_BODY_LEAST_PER_S;
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

fn too_slow(read: usize, stall: Duration) -> Refusal {
    let message = format!(
        "the body came too slowly: {read} bytes so far; it may pause for {} s, and comes with {} bytes a second at least",
        stall.as_secs_f64(),
        limits::HTTP_BODY_LEAST_PER_S
    );
    Refusal::new(ErrorCode::RequestTimeout, message)
}

/// Reads a body that nobody wants, within bounds that a stranger may cost.
pub(super) async fn discard_for_a_moment(body: Body) {
    if !body.is_end_stream() {
        discard(body, DISCARD_BYTES, DISCARD_FOR).await;
    }
}

async fn discard(body: Body, most: usize, within: Duration) {
    discard_stream(body.into_data_stream(), most, within).await;
}

async fn discard_stream(mut chunks: axum::body::BodyDataStream, most: usize, within: Duration) {
    let end = Instant::now() + within;
    let mut read = 0;
    while let Ok(Some(Ok(chunk))) = timeout_at(end, chunks.next()).await {
        read += chunk.len();
        if read > most {
            return;
        }
    }
}
