//! The protocol between agent and launcher: two `SOCK_SEQPACKET` sockets, one message a packet.
//!
//! ```text
//!   spawn    agent ── SpawnRequest + stdin, stdout, stderr ──► launcher     (a worker's: and its channel)
//!            agent ◄── Started … Ended, or Refused ─────────── launcher
//!   control  agent ◄── Hello (once, first) ─────────────────── launcher
//!            agent ── Kill, Ping, IsAlone, Clear ────────────► launcher
//!            agent ◄── Pong, Alone, Cleared ────────────────── launcher
//! ```
//!
//! Both ends are always the same build of the same binary, so there is no negotiation: the first byte of a packet is
//! the protocol's version and a stranger's packet is refused. Requests above [`INLINE_REQUEST`] ride in a memfd that
//! follows the descriptors, since a packet is bounded by the socket's buffer.

mod codec;
#[cfg(test)]
mod tests;
mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use codec::{Reader, Writer};
use serde::{Deserialize, Serialize};
pub use tree::{LauncherAnswer, LauncherWish, TREE_FD};

use crate::capabilities::Capabilities;

/// The protocol's version: the first byte of every packet.
pub const VERSION: u8 = 1;
/// Encoded requests up to this size are sent as the packet itself.
pub const INLINE_REQUEST: usize = 32 << 10;
/// The largest encoded request; the kernel's own limit on arguments and environment is about 2 MiB.
pub const MAX_REQUEST: usize = 4 << 20;
/// The size of buffer that takes any reply or control packet.
pub const MAX_REPLY: usize = 32 << 10;

/// A packet that is not of this protocol.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    #[error("the packet ends before its message does")]
    Truncated,
    #[error("{0} bytes follow the message's end")]
    TrailingBytes(usize),
    #[error("a string is not UTF-8")]
    NotUtf8,
    #[error("unknown protocol version or kind: {version}/{kind}")]
    Unknown { version: u8, kind: u8 },
    #[error("a capabilities message does not parse: {0}")]
    Capabilities(String),
    #[error("the request takes {size} bytes, more than the {MAX_REQUEST} allowed")]
    TooLarge { size: usize },
}

impl WireError {
    /// The same bytes never parse later.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Which network a function sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The machine's.
    #[default]
    Host,
    /// An empty one, with `lo` up.
    None,
}

/// What a function may use; 0 is "no limit of its own" everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub memory_bytes: u64,
    /// Thousandths of a core, by quota.
    pub cpu_millicores: u32,
    /// Processes and threads together.
    pub pids_max: u32,
    pub open_files: u64,
    /// The largest file that can be written.
    pub file_size_bytes: u64,
    /// At the memory limit the kernel ends one process, and not all of them: what a worker that forks does not share with
    /// its child.
    pub spares_others: bool,
}

/// Start one process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpawnRequest {
    /// Chosen by the client, unique on its connection; every reply names it.
    pub id: u64,
    /// What may share a slot, one after another: `function@version`.
    pub slot_key: String,
    /// Relative to `code_dir` (`./x` and `x` are the same), or absolute as the function will see it.
    pub program: String,
    /// Without `argv[0]`, which is the program's path.
    pub args: Vec<String>,
    /// All of the environment. Without slots `TMPDIR` and `HOME` are replaced and `FLUX_LAUNCHER` added.
    pub env: Vec<(String, String)>,
    /// Where the unpacked code is on this machine; the working directory.
    pub code_dir: PathBuf,
    pub limits: Limits,
    pub network: Network,
    /// A worker: the fourth descriptor that comes with the request is its descriptor 3, and it lasts.
    pub channel: bool,
    /// A worker that is spoken to by HTTP: it finds a socket that the launcher listens on at [`RUNTIME_API`], and it lasts. The
    /// socket is the first descriptor that comes with `Started`.
    pub listens: bool,
}

/// The environment variable with the address and port of a worker's own server.
pub const RUNTIME_API: &str = "AWS_LAMBDA_RUNTIME_API";

impl SpawnRequest {
    /// Whether it lasts, serving one invocation after another.
    pub fn is_worker(&self) -> bool {
        self.channel || self.listens
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Exited(i32),
    Signaled(i32),
}

/// The end of an execution's main process, and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedReport {
    pub id: u64,
    pub status: ExitStatus,
    /// The kernel killed a process of this execution because of its memory limit.
    pub oom_killed: bool,
    /// User and system time of the process and of the children it waited for.
    pub cpu_us: u64,
    pub memory_peak_bytes: u64,
    /// `CLOCK_REALTIME`.
    pub ended_at_us: u64,
}

/// A process that was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedReport {
    pub id: u64,
    /// Where it failed: `request`, `slot`, `cgroup`, `clone`, `setns`, `user`, `chdir`, `exec` …
    pub step: String,
    pub errno: i32,
    /// What is wrong and what to do about it, for the function's owner.
    pub message: String,
}

impl RefusedReport {
    /// The function's own fault (its handler cannot be executed), so another try will not help.
    pub fn is_functions_fault(&self) -> bool {
        self.step == "exec"
    }
}

/// What the launcher says on the spawn socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Of a worker that listens with its socket, and of one in a cgroup with that directory's descriptor: `cgroup.procs` in it lists all that lives there. It is to be
    /// opened anew each time, since version 1 keeps what an open file said for a second.
    Started {
        id: u64,
        /// As the launcher sees it.
        pid: u32,
        /// `CLOCK_REALTIME`.
        started_at_us: u64,
    },
    Ended(EndedReport),
    /// Both at once, of a process that was over within a moment: one packet wakes the agent once.
    Ran {
        /// As the launcher saw it.
        pid: u32,
        /// `CLOCK_REALTIME`.
        started_at_us: u64,
        ended: EndedReport,
    },
    Refused(RefusedReport),
}

/// What the agent says on the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// `SIGKILL` goes to everything of the execution, any other signal to its process group. Unknown ids are ignored:
    /// the execution ended already.
    Kill {
        id: u64,
        signal: i32,
    },
    Ping {
        nonce: u64,
    },
    /// Does nothing of the execution live but its main process? For workers that are in no cgroup.
    IsAlone {
        id: u64,
        nonce: u64,
    },
    /// End everything of the execution but its main process, and make the rest of its slot as new. For workers that fork.
    Clear {
        id: u64,
        nonce: u64,
    },
}

/// What the launcher says on the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlReply {
    Hello(Box<Capabilities>),
    Pong {
        nonce: u64,
    },
    Alone {
        nonce: u64,
        alone: bool,
    },
    /// `clean`: nothing is left, and the worker may be used again.
    Cleared {
        nonce: u64,
        clean: bool,
    },
}

const SPAWN: u8 = 1;
const SPAWN_IN_MEMFD: u8 = 2;
const STARTED: u8 = 10;
const ENDED: u8 = 11;
const REFUSED: u8 = 12;
const RAN: u8 = 13;
const KILL: u8 = 20;
const PING: u8 = 21;
const IS_ALONE: u8 = 22;
const CLEAR: u8 = 23;
const HELLO: u8 = 30;
const PONG: u8 = 31;
const ALONE: u8 = 32;
const CLEARED: u8 = 33;

fn writer(kind: u8, capacity: usize) -> Writer {
    let mut w = Writer(Vec::with_capacity(capacity));
    w.u8(VERSION);
    w.u8(kind);
    w
}

fn reader(bytes: &[u8]) -> Result<(u8, Reader<'_>), WireError> {
    let mut r = Reader(bytes);
    let version = r.u8()?;
    let kind = r.u8()?;
    if version != VERSION {
        return Err(WireError::Unknown { version, kind });
    }
    Ok((kind, r))
}

/// The packet that stands in for a request in a memfd of this size.
pub fn memfd_stub(size: usize) -> Vec<u8> {
    let mut w = writer(SPAWN_IN_MEMFD, 10);
    w.u64(size as u64);
    w.0
}

/// The size of the request in the memfd that came with this packet; `None` when the packet is the request itself.
pub fn memfd_size(packet: &[u8]) -> Result<Option<usize>, WireError> {
    let (kind, mut r) = reader(packet)?;
    if kind != SPAWN_IN_MEMFD {
        return Ok(None);
    }
    let size = usize::try_from(r.u64()?).unwrap_or(usize::MAX);
    r.end()?;
    if size > MAX_REQUEST {
        return Err(WireError::TooLarge { size });
    }
    Ok(Some(size))
}

impl SpawnRequest {
    /// Fails for a request above [`MAX_REQUEST`].
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let strings: usize = self.args.iter().map(|a| a.len() + 4).sum::<usize>()
            + self.env.iter().map(|(k, v)| k.len() + v.len() + 8).sum::<usize>();
        let mut w = writer(SPAWN, 256 + strings);
        w.u64(self.id);
        w.bytes(self.slot_key.as_bytes());
        w.bytes(self.program.as_bytes());
        w.u32(u32::try_from(self.args.len()).unwrap_or(u32::MAX));
        for arg in &self.args {
            w.bytes(arg.as_bytes());
        }
        w.u32(u32::try_from(self.env.len()).unwrap_or(u32::MAX));
        for (name, value) in &self.env {
            w.bytes(name.as_bytes());
            w.bytes(value.as_bytes());
        }
        w.bytes(self.code_dir.as_os_str().as_bytes());
        w.u64(self.limits.memory_bytes);
        w.u32(self.limits.cpu_millicores);
        w.u32(self.limits.pids_max);
        w.u64(self.limits.open_files);
        w.u64(self.limits.file_size_bytes);
        w.u8(u8::from(self.limits.spares_others));
        w.u8(match self.network {
            Network::Host => 0,
            Network::None => 1,
        });
        w.u8(u8::from(self.channel));
        w.u8(u8::from(self.listens));
        if w.0.len() > MAX_REQUEST {
            return Err(WireError::TooLarge { size: w.0.len() });
        }
        Ok(w.0)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (kind, mut r) = reader(bytes)?;
        if kind != SPAWN {
            return Err(WireError::Unknown { version: VERSION, kind });
        }
        let id = r.u64()?;
        let slot_key = r.string()?;
        let program = r.string()?;
        let args = (0..r.count(4)?).map(|_| r.string()).collect::<Result<_, _>>()?;
        let env = (0..r.count(8)?).map(|_| Ok((r.string()?, r.string()?))).collect::<Result<_, WireError>>()?;
        let code_dir = PathBuf::from(OsStr::from_bytes(r.bytes()?));
        let limits = Limits {
            memory_bytes: r.u64()?,
            cpu_millicores: r.u32()?,
            pids_max: r.u32()?,
            open_files: r.u64()?,
            file_size_bytes: r.u64()?,
            spares_others: r.u8()? != 0,
        };
        let network = match r.u8()? {
            0 => Network::Host,
            _ => Network::None,
        };
        let channel = r.u8()? != 0;
        let listens = r.u8()? != 0;
        r.end()?;
        Ok(SpawnRequest { id, slot_key, program, args, env, code_dir, limits, network, channel, listens })
    }

    /// The id alone, for a refusal of a request that does not decode.
    pub fn peek_id(bytes: &[u8]) -> Option<u64> {
        reader(bytes).ok()?.1.u64().ok()
    }
}

impl EndedReport {
    fn write(&self, w: &mut Writer) {
        w.u64(self.id);
        let (how, number) = match self.status {
            ExitStatus::Exited(code) => (0, code),
            ExitStatus::Signaled(signal) => (1, signal),
        };
        w.u8(how);
        w.i32(number);
        w.u8(u8::from(self.oom_killed));
        w.u64(self.cpu_us);
        w.u64(self.memory_peak_bytes);
        w.u64(self.ended_at_us);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let id = r.u64()?;
        let how = r.u8()?;
        let number = r.i32()?;
        Ok(EndedReport {
            id,
            status: if how == 0 { ExitStatus::Exited(number) } else { ExitStatus::Signaled(number) },
            oom_killed: r.u8()? != 0,
            cpu_us: r.u64()?,
            memory_peak_bytes: r.u64()?,
            ended_at_us: r.u64()?,
        })
    }
}

impl Reply {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Reply::Started { id, pid, started_at_us } => {
                let mut w = writer(STARTED, 32);
                w.u64(*id);
                w.u32(*pid);
                w.u64(*started_at_us);
                w.0
            }
            Reply::Ended(ended) => {
                let mut w = writer(ENDED, 64);
                ended.write(&mut w);
                w.0
            }
            Reply::Ran { pid, started_at_us, ended } => {
                let mut w = writer(RAN, 80);
                w.u32(*pid);
                w.u64(*started_at_us);
                ended.write(&mut w);
                w.0
            }
            Reply::Refused(refused) => {
                let mut w = writer(REFUSED, 64 + refused.message.len());
                w.u64(refused.id);
                w.bytes(refused.step.as_bytes());
                w.i32(refused.errno);
                w.bytes(refused.message.as_bytes());
                w.0
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (kind, mut r) = reader(bytes)?;
        let reply = match kind {
            STARTED => Reply::Started { id: r.u64()?, pid: r.u32()?, started_at_us: r.u64()? },
            ENDED => Reply::Ended(EndedReport::read(&mut r)?),
            RAN => Reply::Ran { pid: r.u32()?, started_at_us: r.u64()?, ended: EndedReport::read(&mut r)? },
            REFUSED => {
                Reply::Refused(RefusedReport { id: r.u64()?, step: r.string()?, errno: r.i32()?, message: r.string()? })
            }
            kind => {
                return Err(WireError::Unknown { version: VERSION, kind });
            }
        };
        r.end()?;
        Ok(reply)
    }
}

impl Control {
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Control::Kill { id, signal } => {
                let mut w = writer(KILL, 16);
                w.u64(id);
                w.i32(signal);
                w.0
            }
            Control::Ping { nonce } => {
                let mut w = writer(PING, 16);
                w.u64(nonce);
                w.0
            }
            Control::IsAlone { id, nonce } => {
                let mut w = writer(IS_ALONE, 24);
                w.u64(id);
                w.u64(nonce);
                w.0
            }
            Control::Clear { id, nonce } => {
                let mut w = writer(CLEAR, 24);
                w.u64(id);
                w.u64(nonce);
                w.0
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (kind, mut r) = reader(bytes)?;
        let control = match kind {
            KILL => Control::Kill { id: r.u64()?, signal: r.i32()? },
            PING => Control::Ping { nonce: r.u64()? },
            IS_ALONE => Control::IsAlone { id: r.u64()?, nonce: r.u64()? },
            CLEAR => Control::Clear { id: r.u64()?, nonce: r.u64()? },
            kind => {
                return Err(WireError::Unknown { version: VERSION, kind });
            }
        };
        r.end()?;
        Ok(control)
    }
}

impl ControlReply {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ControlReply::Hello(capabilities) => {
                let mut w = writer(HELLO, 512);
                let json = serde_json::to_vec(capabilities).unwrap_or_default();
                w.bytes(&json);
                w.0
            }
            ControlReply::Pong { nonce } => {
                let mut w = writer(PONG, 16);
                w.u64(*nonce);
                w.0
            }
            ControlReply::Alone { nonce, alone } => {
                let mut w = writer(ALONE, 16);
                w.u64(*nonce);
                w.u8(u8::from(*alone));
                w.0
            }
            ControlReply::Cleared { nonce, clean } => {
                let mut w = writer(CLEARED, 16);
                w.u64(*nonce);
                w.u8(u8::from(*clean));
                w.0
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (kind, mut r) = reader(bytes)?;
        let reply = match kind {
            HELLO => {
                let capabilities =
                    serde_json::from_slice(r.bytes()?).map_err(|e| WireError::Capabilities(e.to_string()))?;
                ControlReply::Hello(Box::new(capabilities))
            }
            PONG => ControlReply::Pong { nonce: r.u64()? },
            ALONE => ControlReply::Alone { nonce: r.u64()?, alone: r.u8()? != 0 },
            CLEARED => ControlReply::Cleared { nonce: r.u64()?, clean: r.u8()? != 0 },
            kind => {
                return Err(WireError::Unknown { version: VERSION, kind });
            }
        };
        r.end()?;
        Ok(reply)
    }
}
