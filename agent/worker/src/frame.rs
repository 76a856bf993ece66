//! The frames: a big-endian length of what follows (4 bytes), a kind (1 byte), a body.

use bytes::{Buf as _, Bytes, BytesMut};
use flux_protocol::{function::Entry, limits};
use serde::{Deserialize, Serialize};

/// The version of the protocol that this build speaks: what a worker's `Hello` has to say.
pub const VERSION: u16 = 2;
/// Random bytes of a `Reseed`.
pub const SEED: usize = 32;
/// The longest `Hello` text that is kept.
const HELLO_TEXT: usize = 256;
/// Signal, exit code, CPU time, peak of memory, whether its invocation is unread.
const OF_CHILD: usize = 4 + 4 + 8 + 8 + 1;
/// The longest text of why a worker does not fork.
const REASON: usize = 256;
/// CPU time, peak of memory, threads left, bytes dropped.
const USED: usize = 8 + 8 + 4 + 8;
/// The largest frame of a worker: its result and what goes with it. (An error's texts, as JSON, are less.)
const FROM_WORKER: usize = limits::RESULT + limits::KIB;

/// The memory of a frame larger than this goes with the frame.
const KEPT: usize = 64 * limits::KIB;

const PROGRAM: u8 = 1;
const LOAD: u8 = 2;
const INVOKE: u8 = 3;
const RESEED: u8 = 4;
const FORK: u8 = 5;
const HELLO: u8 = 16;
const READY: u8 = 17;
const FAILED: u8 = 18;
const RESULT: u8 = 19;
const ERROR: u8 = 20;
const OVER: u8 = 21;

/// Bytes that are not of this protocol: the worker that sent them cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {size} bytes, and at most {limit} are taken")]
    TooLarge { size: usize, limit: usize },
    #[error("an empty frame")]
    Empty,
    #[error("a frame of unknown kind {0}")]
    Unknown(u8),
    #[error("a frame of kind {kind} that ends before its fields do")]
    Truncated { kind: u8 },
    #[error("a frame of kind {kind} that is not the JSON it should be: {problem}")]
    Json { kind: u8, problem: String },
}

impl FrameError {
    /// The same bytes never parse later.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

/// Which handler a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Paths below the working directory; the first that is there is it.
    pub files: Vec<String>,
    pub function: Option<String>,
    /// Each invocation is to be served by a fork of the worker.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

impl From<Entry> for Load {
    fn from(Entry { files, function }: Entry) -> Self {
        Self { files, function, fresh: false }
    }
}

/// One invocation, beside its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call {
    pub execution_id: String,
    pub function: String,
    pub version: u32,
    pub attempt: u32,
    /// Milliseconds since the epoch.
    pub deadline_ms: Option<i64>,
    pub args: Vec<String>,
    pub traceparent: String,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToWorker<'a> {
    Program(&'a str),
    Load(&'a Load),
    Invoke(&'a Call, &'a Bytes),
    /// It may be the clone of another: what the language keeps of randomness begins anew with these bytes. Not answered.
    Reseed(&'a [u8; SEED]),
    /// To a worker that forks, after the end of a child: nothing of that is left, and the next one may begin.
    Fork,
}

impl ToWorker<'_> {
    /// The frame, but for an invocation's payload, which is to follow at once: it may be large, and is not copied.
    pub fn encode_head(&self, into: &mut Vec<u8>) {
        let (kind, head, rest) = match self {
            Self::Program(text) => (PROGRAM, text.as_bytes().to_vec(), 0),
            Self::Load(load) => (LOAD, json(load), 0),
            Self::Reseed(seed) => (RESEED, seed.to_vec(), 0),
            Self::Fork => (FORK, Vec::new(), 0),
            Self::Invoke(call, payload) => {
                let json = json(call);
                let mut head = Vec::with_capacity(4 + json.len());
                head.extend_from_slice(&length(json.len()));
                head.extend_from_slice(&json);
                (INVOKE, head, payload.len())
            }
        };
        into.reserve(5 + head.len());
        into.extend_from_slice(&length(1 + head.len() + rest));
        into.push(kind);
        into.extend_from_slice(&head);
    }
}

/// Texts and numbers alone: JSON can say them.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// The largest payload and what goes with it are far from where this would be cut.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// What an invocation used, as the worker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    pub cpu_us: u64,
    /// The worker's greatest memory so far.
    pub peak_bytes: u64,
    /// Threads that the invocation began and that still do something; or [`Used::ENDS`], or [`Used::SPOILED`].
    pub threads_left: u32,
    /// What callbacks of earlier invocations printed meanwhile, and nobody sees.
    pub dropped_bytes: u64,
}

impl Used {
    /// In `threads_left`: the worker ends by itself after this answer.
    pub const ENDS: u32 = u32::MAX;
    /// In `threads_left`: what an earlier invocation began failed meanwhile, and nobody knows the worker's state.
    pub const SPOILED: u32 = u32::MAX - 1;
}

/// The end of a child that was forked for one invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Over {
    /// What ended it; 0 where it exited.
    pub signal: i32,
    pub exit_code: i32,
    pub cpu_us: u64,
    pub peak_bytes: u64,
    /// It ended before it had read all of its invocation.
    pub is_unread: bool,
}

/// An exception, or what kept a handler from being loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fault {
    #[serde(rename = "type")]
    pub kind: String,
    pub message: String,
    #[serde(default)]
    pub stack: String,
    /// The handler's file or function is not there.
    #[serde(default)]
    pub missing: bool,
}

impl Fault {
    /// Its texts as long as they may be.
    #[must_use]
    pub fn cut(mut self) -> Self {
        cut(&mut self.kind, limits::ERROR_TYPE);
        cut(&mut self.message, limits::ERROR_MESSAGE);
        cut(&mut self.stack, limits::ERROR_STACK);
        self
    }
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromWorker {
    Hello {
        version: u16,
        /// Of the interpreter, such as `3.11.2`.
        interpreter: String,
    },
    /// Of one that was to fork: why it does not, and serves by itself.
    Ready {
        cannot_fork: Option<String>,
    },
    Failed(Fault),
    /// The return value as JSON, as the worker wrote it.
    Result(Used, Bytes),
    Error(Used, Fault),
    /// Of a worker that forks, after the answer of the child or in place of one.
    Over(Over),
}

impl FromWorker {
    /// What a worker says once its handler is loaded, for one that said so to somebody else.
    pub fn encode_hello_and_ready(interpreter: &str, into: &mut Vec<u8>) {
        into.extend_from_slice(&length(1 + 2 + interpreter.len()));
        into.push(HELLO);
        into.extend_from_slice(&VERSION.to_be_bytes());
        into.extend_from_slice(interpreter.as_bytes());
        into.extend_from_slice(&length(1));
        into.push(READY);
    }
}

/// Finds frames in what a worker sends, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Where to append what was read.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether nothing of a frame is held.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next frame; `None` while it is not whole.
    ///
    /// # Errors
    /// What came is not of this protocol. Nothing that follows it can be read.
    pub fn next_frame(&mut self) -> Result<Option<FromWorker>, FrameError> {
        let Some((head, _)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_be_bytes(*head) as usize;
        if size > FROM_WORKER {
            return Err(FrameError::TooLarge { size, limit: FROM_WORKER });
        }
        if size == 0 {
            return Err(FrameError::Empty);
        }
        if self.buffer.len() < 4 + size {
            // All of it in one piece, and no more than was announced within the limit.
            self.buffer.reserve(4 + size - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(4);
        let mut body = self.buffer.split_to(size).freeze();
        if self.buffer.is_empty() && size > KEPT {
            // What is left of the buffer would hold all of it, for as long as the worker waits.
            self.buffer = BytesMut::new();
        }
        let kind = body.get_u8();
        read(kind, body).map(Some)
    }
}

fn read(kind: u8, mut body: Bytes) -> Result<FromWorker, FrameError> {
    let truncated = FrameError::Truncated { kind };
    match kind {
        HELLO if body.len() < 2 => Err(truncated),
        HELLO => {
            let version = body.get_u16();
            let text = String::from_utf8_lossy(&body);
            Ok(FromWorker::Hello { version, interpreter: text.chars().take(HELLO_TEXT).collect() })
        }
        READY => {
            let text = String::from_utf8_lossy(&body);
            let reason = (!text.is_empty()).then(|| text.chars().take(REASON).collect());
            Ok(FromWorker::Ready { cannot_fork: reason })
        }
        OVER if body.len() < OF_CHILD => Err(truncated),
        OVER => Ok(FromWorker::Over(Over {
            signal: body.get_i32(),
            exit_code: body.get_i32(),
            cpu_us: body.get_u64(),
            peak_bytes: body.get_u64(),
            is_unread: body.get_u8() != 0,
        })),
        FAILED => fault(kind, &body).map(FromWorker::Failed),
        RESULT | ERROR => {
            if body.len() < USED {
                return Err(truncated);
            }
            let used = Used {
                cpu_us: body.get_u64(),
                peak_bytes: body.get_u64(),
                threads_left: body.get_u32(),
                dropped_bytes: body.get_u64(),
            };
            match kind {
                // The text is passed on as it is, so that it must be what it claims to be.
                RESULT => {
                    is_json(&body).map_err(|problem| FrameError::Json { kind, problem })?;
                    Ok(FromWorker::Result(used, body))
                }
                _ => Ok(FromWorker::Error(used, fault(kind, &body)?)),
            }
        }
        kind => Err(FrameError::Unknown(kind)),
    }
}

/// Skipping over a value does not look at what its strings are made of.
fn is_json(body: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).map(drop).map_err(|error| error.to_string())
}

fn fault(kind: u8, body: &[u8]) -> Result<Fault, FrameError> {
    let fault: Fault =
        serde_json::from_slice(body).map_err(|error| FrameError::Json { kind, problem: error.to_string() })?;
    Ok(fault.cut())
}

/// Longer texts end at a character, and say that they were cut.
fn cut(text: &mut String, most: usize) {
    const MORE: &str = "…";
    if text.len() <= most {
        return;
    }
    let end = (0..=most - MORE.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text.push_str(MORE);
}
