//! The frames: a big-endian length of what follows (4 bytes), a kind (1 byte), a body; numbers are big-endian.
//!
//! Streams of bytes (stdin, output, the channel) are cut into frames of at most [`CHUNK`] bytes wherever they happen to be; what is
//! inside of them is nobody's matter here.

/// The version of this protocol, which `Hello` says: an image may hold a shim of another build.
pub const VERSION: u16 = 1;
/// The most bytes of a stream in one frame.
pub const CHUNK: usize = 64 << 10;
/// The largest frame: a `Start` with all of its arguments and environment.
pub const FRAME: usize = 1 << 20;

/// Random bytes of a `Wake`.
pub const SEED: usize = 64;

const START: u8 = 1;
const STDIN: u8 = 2;
const TO_CHANNEL: u8 = 3;
const SIGNAL: u8 = 4;
const WAKE: u8 = 5;
const HELLO: u8 = 16;
const STARTED: u8 = 17;
const REFUSED: u8 = 18;
const OUTPUT: u8 = 19;
const FROM_CHANNEL: u8 = 20;
const EXITED: u8 = 21;

/// Bytes that are not of this protocol: nothing that follows them can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {size} bytes, and at most {FRAME} are taken")]
    TooLarge { size: usize },
    #[error("an empty frame")]
    Empty,
    #[error("a frame of unknown kind {0}")]
    Unknown(u8),
    #[error("a frame of kind {kind} whose fields are not what they should be")]
    Malformed { kind: u8 },
}

impl FrameError {
    /// The same bytes never parse later.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

/// The process to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// A path (relative to `directory` unless it begins with `/`), or a name that is looked for in `PATH`.
    pub program: String,
    pub args: Vec<String>,
    /// Beside the shim's own environment, which an image gave it; these replace what has the same name.
    pub env: Vec<(String, String)>,
    /// The working directory; empty is the shim's own.
    pub directory: String,
    /// Uid and gid to change to, where the shim is root.
    pub user: Option<(u32, u32)>,
    /// The limit on open files; 0 is the shim's own.
    pub open_files: u64,
    /// A worker: its descriptor 3 is its channel. Else its stdin is what `Stdin` brings.
    pub channel: bool,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToShim {
    Start(Box<Start>),
    /// No bytes: the end.
    Stdin(Vec<u8>),
    /// No bytes: the agent's end is closed; what the worker says is still heard.
    Channel(Vec<u8>),
    /// `SIGKILL` goes to all that runs here, any other to the process's group.
    Signal(i32),
    /// The first word to a guest, which may be the clone of another: what time it is, and what its randomness begins with.
    Wake {
        /// `CLOCK_REALTIME`.
        now_us: u64,
        seed: Box<[u8; SEED]>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Signaled(i32),
}

/// How the process ended, and what was used until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub status: Status,
    /// The kernel ended a process for want of memory.
    pub oom_killed: bool,
    pub cpu_us: u64,
    pub memory_peak_bytes: u64,
    /// `CLOCK_REALTIME`.
    pub ended_at_us: u64,
}

/// What a shim says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromShim {
    /// The first word on each connection.
    Hello {
        version: u16,
    },
    /// Again on a connection that finds a process which was started on an earlier one.
    Started {
        /// As the shim sees it.
        pid: u32,
        /// `CLOCK_REALTIME`.
        started_at_us: u64,
    },
    Refused {
        errno: i32,
        message: String,
    },
    Output(Stream, Vec<u8>),
    Channel {
        /// Processes that lived beside the main one and the shim when these bytes were said.
        beside: u32,
        /// What the main process held in memory then; 0 where that is not known.
        resident_bytes: u64,
        bytes: Vec<u8>,
    },
    /// The process ended, whatever it left behind was ended, and all that it printed was sent.
    Exited(Exit),
}

fn frame(into: &mut Vec<u8>, kind: u8, fields: impl FnOnce(&mut Vec<u8>)) {
    let at = into.len();
    into.extend_from_slice(&[0, 0, 0, 0, kind]);
    fields(into);
    let length = u32::try_from(into.len() - at - 4).unwrap_or(u32::MAX);
    into[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_text(into: &mut Vec<u8>, text: &str) {
    into.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    into.extend_from_slice(text.as_bytes());
}

fn put_count(into: &mut Vec<u8>, count: usize) {
    into.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
}

/// A piece of the channel, without a copy of it before; none is the agent's end of it.
pub fn encode_channel(bytes: &[u8], into: &mut Vec<u8>) {
    frame(into, TO_CHANNEL, |f| f.extend_from_slice(bytes));
}

/// A piece of stdin, without a copy of it before; none is its end.
pub fn encode_stdin(bytes: &[u8], into: &mut Vec<u8>) {
    frame(into, STDIN, |f| f.extend_from_slice(bytes));
}

impl ToShim {
    pub fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Self::Start(start) => frame(into, START, |f| {
                put_text(f, &start.program);
                put_text(f, &start.directory);
                put_count(f, start.args.len());
                start.args.iter().for_each(|arg| put_text(f, arg));
                put_count(f, start.env.len());
                for (name, value) in &start.env {
                    put_text(f, name);
                    put_text(f, value);
                }
                let (uid, gid) = start.user.unwrap_or_default();
                f.push(u8::from(start.user.is_some()));
                f.extend_from_slice(&uid.to_be_bytes());
                f.extend_from_slice(&gid.to_be_bytes());
                f.extend_from_slice(&start.open_files.to_be_bytes());
                f.push(u8::from(start.channel));
            }),
            Self::Stdin(bytes) => encode_stdin(bytes, into),
            Self::Channel(bytes) => encode_channel(bytes, into),
            Self::Signal(signal) => frame(into, SIGNAL, |f| f.extend_from_slice(&signal.to_be_bytes())),
            Self::Wake { now_us, seed } => frame(into, WAKE, |f| {
                f.extend_from_slice(&now_us.to_be_bytes());
                f.extend_from_slice(&seed[..]);
            }),
        }
    }

    fn read(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields { rest: body, kind };
        let said = match kind {
            START => {
                let (program, directory) = (fields.text()?, fields.text()?);
                let args = (0..fields.count(4)?).map(|_| fields.text()).collect::<Result<_, _>>()?;
                let env = (0..fields.count(8)?)
                    .map(|_| Ok((fields.text()?, fields.text()?)))
                    .collect::<Result<_, FrameError>>()?;
                let (is_user, uid, gid) = (fields.byte()? != 0, fields.u32()?, fields.u32()?);
                let (open_files, channel) = (fields.u64()?, fields.byte()? != 0);
                let user = is_user.then_some((uid, gid));
                Self::Start(Box::new(Start { program, args, env, directory, user, open_files, channel }))
            }
            STDIN => Self::Stdin(fields.all()),
            TO_CHANNEL => Self::Channel(fields.all()),
            SIGNAL => Self::Signal(fields.u32()?.cast_signed()),
            WAKE => Self::Wake { now_us: fields.u64()?, seed: Box::new(fields.array()?) },
            kind => return Err(FrameError::Unknown(kind)),
        };
        fields.end().map(|()| said)
    }
}

/// A piece of output, without a copy of it before.
pub(crate) fn encode_output(stream: Stream, bytes: &[u8], into: &mut Vec<u8>) {
    frame(into, OUTPUT, |f| {
        f.push(match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        f.extend_from_slice(bytes);
    });
}

pub(crate) fn encode_said(beside: u32, resident_bytes: u64, bytes: &[u8], into: &mut Vec<u8>) {
    frame(into, FROM_CHANNEL, |f| {
        f.extend_from_slice(&beside.to_be_bytes());
        f.extend_from_slice(&resident_bytes.to_be_bytes());
        f.extend_from_slice(bytes);
    });
}

impl FromShim {
    pub fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Self::Hello { version } => frame(into, HELLO, |f| f.extend_from_slice(&version.to_be_bytes())),
            Self::Started { pid, started_at_us } => frame(into, STARTED, |f| {
                f.extend_from_slice(&pid.to_be_bytes());
                f.extend_from_slice(&started_at_us.to_be_bytes());
            }),
            Self::Refused { errno, message } => frame(into, REFUSED, |f| {
                f.extend_from_slice(&errno.to_be_bytes());
                put_text(f, message);
            }),
            Self::Output(stream, bytes) => encode_output(*stream, bytes, into),
            Self::Channel { beside, resident_bytes, bytes } => encode_said(*beside, *resident_bytes, bytes, into),
            Self::Exited(exit) => frame(into, EXITED, |f| {
                let (how, number) = match exit.status {
                    Status::Exited(code) => (0, code),
                    Status::Signaled(signal) => (1, signal),
                };
                f.push(how);
                f.extend_from_slice(&number.to_be_bytes());
                f.push(u8::from(exit.oom_killed));
                for number in [exit.cpu_us, exit.memory_peak_bytes, exit.ended_at_us] {
                    f.extend_from_slice(&number.to_be_bytes());
                }
            }),
        }
    }

    fn read(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields { rest: body, kind };
        let said = match kind {
            HELLO => Self::Hello { version: u16::from_be_bytes(fields.array()?) },
            STARTED => Self::Started { pid: fields.u32()?, started_at_us: fields.u64()? },
            REFUSED => Self::Refused { errno: fields.u32()?.cast_signed(), message: fields.text()? },
            OUTPUT => match fields.byte()? {
                1 => Self::Output(Stream::Stdout, fields.all()),
                2 => Self::Output(Stream::Stderr, fields.all()),
                _ => return Err(FrameError::Malformed { kind }),
            },
            FROM_CHANNEL => Self::Channel { beside: fields.u32()?, resident_bytes: fields.u64()?, bytes: fields.all() },
            EXITED => {
                let (how, number) = (fields.byte()?, fields.u32()?.cast_signed());
                Self::Exited(Exit {
                    status: if how == 0 { Status::Exited(number) } else { Status::Signaled(number) },
                    oom_killed: fields.byte()? != 0,
                    cpu_us: fields.u64()?,
                    memory_peak_bytes: fields.u64()?,
                    ended_at_us: fields.u64()?,
                })
            }
            kind => return Err(FrameError::Unknown(kind)),
        };
        fields.end().map(|()| said)
    }
}

/// What is left of a body.
struct Fields<'a> {
    rest: &'a [u8],
    kind: u8,
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(FrameError::Malformed { kind: self.kind })?;
        self.rest = rest;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_be_bytes)
    }

    /// How many things follow, of at least `each` bytes: more than can be there is refused before anything is allocated.
    fn count(&mut self, each: usize) -> Result<u32, FrameError> {
        let count = self.u32()?;
        let most = self.rest.len() / each;
        if count as usize <= most { Ok(count) } else { Err(FrameError::Malformed { kind: self.kind }) }
    }

    fn text(&mut self) -> Result<String, FrameError> {
        let malformed = FrameError::Malformed { kind: self.kind };
        let length = self.u32()? as usize;
        let (text, rest) = self.rest.split_at_checked(length).ok_or(malformed)?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|_| malformed)
    }

    fn all(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest).to_vec()
    }

    fn end(&self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FrameError::Malformed { kind: self.kind }) }
    }
}

/// Finds frames in what was read, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Of the buffer, what was given out already.
    done: usize,
}

impl Decoder {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done);
        self.done = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The agent's next word; `None` while it is not whole.
    ///
    /// # Errors
    /// What came is not of this protocol.
    pub fn next_to_shim(&mut self) -> Result<Option<ToShim>, FrameError> {
        self.next_frame(ToShim::read)
    }

    /// The shim's next word; `None` while it is not whole.
    ///
    /// # Errors
    /// What came is not of this protocol.
    pub fn next_from_shim(&mut self) -> Result<Option<FromShim>, FrameError> {
        self.next_frame(FromShim::read)
    }

    fn next_frame<T>(
        &mut self,
        read: impl FnOnce(u8, &[u8]) -> Result<T, FrameError>,
    ) -> Result<Option<T>, FrameError> {
        let Some((head, rest)) = self.buffer[self.done..].split_first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_be_bytes(*head) as usize;
        if size > FRAME {
            return Err(FrameError::TooLarge { size });
        }
        let Some((kind, _)) = rest.split_first() else {
            return if size == 0 { Err(FrameError::Empty) } else { Ok(None) };
        };
        if size == 0 {
            return Err(FrameError::Empty);
        }
        let Some(body) = rest.get(1..size) else { return Ok(None) };
        let said = read(*kind, body)?;
        self.done += 4 + size;
        Ok(Some(said))
    }
}
