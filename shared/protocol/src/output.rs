//! What a function wrote: numbered chunks of stdout and stderr, bounded, with the middle dropped; and what its handler returned.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeStruct as _};

use crate::limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
    /// A handler's return value as JSON: one chunk, never published live, no part of the text.
    Result,
}

/// A piece of output as it was written. `seq` counts from 1 within an attempt, over both streams.
///
/// In JSON the bytes are `data` where they are UTF-8, else `data_base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub seq: u64,
    pub stream: Stream,
    pub data: Bytes,
}

impl Serialize for Chunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Chunk", 3)?;
        fields.serialize_field("seq", &self.seq)?;
        fields.serialize_field("stream", &self.stream)?;
        match std::str::from_utf8(&self.data) {
            Ok(text) => fields.serialize_field("data", text)?,
            Err(_) => fields.serialize_field("data_base64", &BASE64.encode(&self.data))?,
        }
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            seq: u64,
            stream: Stream,
            data: Option<String>,
            data_base64: Option<String>,
        }
        let wire = Wire::deserialize(deserializer)?;
        let data = match (wire.data, wire.data_base64) {
            (Some(text), _) => Bytes::from(text),
            (None, Some(encoded)) => BASE64.decode(encoded).map_err(D::Error::custom)?.into(),
            (None, None) => Bytes::new(),
        };
        Ok(Self { seq: wire.seq, stream: wire.stream, data })
    }
}

/// All that is kept of one attempt's output, in the order in which it was read.
///
/// At most [`limits::OUTPUT`] bytes: beyond that the head (half) and a moving tail (half) stay, and
/// `dropped_bytes` says how much of the middle is gone. Chunk numbers keep their gaps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutputLog {
    pub chunks: Vec<Chunk>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped_bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Bytes as text; and as they were, where they are not all UTF-8.
fn text_or_bytes(bytes: Vec<u8>) -> (String, Option<Vec<u8>>) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(error.into_bytes())),
    }
}

impl OutputLog {
    /// Bytes kept.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.data.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Both streams interleaved, as text; what is not UTF-8 becomes U+FFFD.
    pub fn to_text(&self) -> String {
        text_or_bytes(self.joined()).0
    }

    /// As [`Self::to_text`], and the same byte for byte where that is not exact.
    pub fn to_text_and_bytes(&self) -> (String, Option<Vec<u8>>) {
        text_or_bytes(self.joined())
    }

    /// One stream's bytes, in order.
    pub fn bytes_of(&self, stream: Stream) -> Bytes {
        let mut matching = self.chunks.iter().filter(|chunk| chunk.stream == stream);
        let Some(first) = matching.next() else { return Bytes::new() };
        let Some(second) = matching.next() else { return first.data.clone() };
        let mut all = BytesMut::from(&first.data[..]);
        all.extend_from_slice(&second.data);
        matching.for_each(|chunk| all.extend_from_slice(&chunk.data));
        all.freeze()
    }

    fn joined(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        let written = self.chunks.iter().filter(|chunk| chunk.stream != Stream::Result);
        written.for_each(|chunk| all.extend_from_slice(&chunk.data));
        all
    }

    /// The bytes of what a handler returned.
    pub fn returned(&self) -> Option<&Bytes> {
        self.chunks.iter().rev().find(|chunk| chunk.stream == Stream::Result).map(|chunk| &chunk.data)
    }

    /// The text of the `result`: what a handler returned, or else stdout where nothing of it was dropped. It is a result
    /// only where it is one JSON document.
    pub fn result_text(&self) -> Option<Bytes> {
        match self.returned() {
            Some(returned) => Some(returned.clone()),
            None if self.dropped_bytes > 0 => None,
            None => Some(self.bytes_of(Stream::Stdout)).filter(|text| !text.iter().all(u8::is_ascii_whitespace)),
        }
    }

    /// [`Self::result_text`] where it is one JSON document.
    pub fn result(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.result_text()?).ok()
    }

    /// The compact form in which output above [`limits::INLINE_OUTPUT`] lies in the blob seam:
    /// `dropped_bytes` as 8 bytes, then per chunk seq (8), stream (1: 0 stdout, 1 stderr, 2 result), length (4), data; big-endian.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(8 + self.len() + self.chunks.len() * 13);
        out.put_u64(self.dropped_bytes);
        for chunk in &self.chunks {
            out.put_u64(chunk.seq);
            out.put_u8(match chunk.stream {
                Stream::Stdout => 0,
                Stream::Stderr => 1,
                Stream::Result => 2,
            });
            out.put_u32(u32::try_from(chunk.data.len()).unwrap_or(u32::MAX));
            out.put_slice(&chunk.data);
        }
        out.freeze()
    }

    /// `None` when the bytes are not an encoded log.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < 8 {
            return None;
        }
        let mut log = Self { dropped_bytes: bytes.get_u64(), chunks: Vec::new() };
        while !bytes.is_empty() {
            if bytes.len() < 13 {
                return None;
            }
            let seq = bytes.get_u64();
            let stream = match bytes.get_u8() {
                0 => Stream::Stdout,
                1 => Stream::Stderr,
                2 => Stream::Result,
                _ => return None,
            };
            let length = bytes.get_u32() as usize;
            if bytes.len() < length {
                return None;
            }
            log.chunks.push(Chunk { seq, stream, data: bytes.split_to(length) });
        }
        Some(log)
    }
}

/// What several collectors share.
#[derive(Debug)]
pub struct OutputRoom {
    left: AtomicUsize,
}

impl OutputRoom {
    pub fn new(bytes: usize) -> Self {
        Self { left: AtomicUsize::new(bytes) }
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// What one collector took of the room. Given back when dropped.
#[derive(Debug, Default)]
pub struct OutputTaken {
    room: Option<Arc<OutputRoom>>,
    bytes: usize,
}

impl OutputTaken {
    /// Whether so many bytes may be kept.
    fn fits(&mut self, bytes: usize) -> bool {
        let Some(room) = &self.room else { return true };
        while bytes > limits::INLINE_OUTPUT + self.bytes {
            if !room.take(limits::OUTPUTS_STEP) {
                return false;
            }
            self.bytes += limits::OUTPUTS_STEP;
        }
        true
    }
}

impl Drop for OutputTaken {
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            room.left.fetch_add(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Collects output as it is read, within [`limits::OUTPUT`] and what is left of a room that it shares.
///
/// The first [`limits::INLINE_OUTPUT`] bytes, and the last as many, it keeps whatever others take.
#[derive(Debug)]
pub struct OutputCollector {
    head: Vec<Chunk>,
    tail: std::collections::VecDeque<Chunk>,
    head_bytes: usize,
    tail_bytes: usize,
    dropped_bytes: u64,
    next_seq: u64,
    half: usize,
    taken: OutputTaken,
}

impl Default for OutputCollector {
    fn default() -> Self {
        Self::with_limit(limits::OUTPUT)
    }
}

impl OutputCollector {
    pub fn with_limit(limit: usize) -> Self {
        Self {
            head: Vec::new(),
            tail: std::collections::VecDeque::new(),
            head_bytes: 0,
            tail_bytes: 0,
            dropped_bytes: 0,
            next_seq: 1,
            half: limit / 2,
            taken: OutputTaken::default(),
        }
    }

    /// Shares the room until it is dropped.
    pub fn in_room(room: Arc<OutputRoom>) -> Self {
        Self { taken: OutputTaken { room: Some(room), bytes: 0 }, ..Self::default() }
    }

    /// Adds what was read and returns it as the chunk to publish.
    pub fn push(&mut self, stream: Stream, data: Bytes) -> Chunk {
        let chunk = Chunk { seq: self.next_seq, stream, data };
        self.next_seq += 1;
        let fits = self.taken.fits(self.head_bytes + self.tail_bytes + chunk.data.len());
        if fits && self.tail.is_empty() && self.head_bytes + chunk.data.len() <= self.half {
            self.head_bytes += chunk.data.len();
            self.head.push(chunk.clone());
        } else {
            self.tail_bytes += chunk.data.len();
            self.tail.push_back(chunk.clone());
            let whole = 2 * self.half;
            let most = if fits { whole } else { (self.taken.bytes + limits::INLINE_OUTPUT).min(whole) };
            // What the head left unused is the tail's: output of exactly the limit is kept whole.
            let tail = (most - self.head_bytes.min(most)).max(if fits { 0 } else { limits::INLINE_OUTPUT.min(whole) });
            while self.tail_bytes > tail {
                let Some(oldest) = self.tail.pop_front() else { break };
                self.tail_bytes -= oldest.data.len();
                self.dropped_bytes += oldest.data.len() as u64;
            }
        }
        chunk
    }

    /// Bytes that were written, kept or not.
    pub fn written_bytes(&self) -> u64 {
        (self.head_bytes + self.tail_bytes) as u64 + self.dropped_bytes
    }

    /// What is kept by now.
    pub fn log(&self) -> OutputLog {
        OutputLog { chunks: self.head.iter().chain(&self.tail).cloned().collect(), dropped_bytes: self.dropped_bytes }
    }

    /// As [`Self::log`], at the end.
    pub fn finish(self) -> OutputLog {
        self.finish_and_hold().0
    }

    /// As [`Self::finish`], for who keeps it for longer.
    pub fn finish_and_hold(self) -> (OutputLog, OutputTaken) {
        let mut chunks = self.head;
        chunks.extend(self.tail);
        (OutputLog { chunks, dropped_bytes: self.dropped_bytes }, self.taken)
    }
}
