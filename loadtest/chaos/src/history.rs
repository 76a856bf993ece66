//! What happened, as JSON lines: every operation and its answer, every fault, every start and end of a function, every
//! record that was read. Times are microseconds of one clock (see `clock`); the lines are in no certain order.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at_us: u64,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first line.
    Opened {
        seed: u64,
        topology: String,
        agents: u32,
        max_losses: u32,
    },
    /// An operation is about to be sent.
    Asked {
        op: u64,
        ask: Ask,
    },
    /// An answer to it, or that none came. One that is tried again with its idempotency key has several.
    Answered {
        op: u64,
        answer: Answer,
    },
    /// A function's process said that it started, at this time by its own clock.
    Began {
        execution: String,
        op: u64,
        attempt: u32,
        version: u32,
    },
    /// It said that it is about to exit.
    Finished {
        execution: String,
        attempt: u32,
    },
    /// No process of that attempt is left: its connection to the harness is closed.
    Gone {
        execution: String,
        attempt: u32,
    },
    Struck {
        fault: u64,
        kind: FaultKind,
        target: String,
    },
    /// What the fault held (a pause, a full disk) was let go.
    Lifted {
        fault: u64,
    },
    /// After a strike or a lift a call succeeded again.
    Recovered {
        fault: u64,
    },
    /// A process that nobody had killed just then had ended, and was started again as a supervisor does.
    Restarted {
        program: String,
    },
    /// A record was read.
    Read {
        execution: String,
        seen: Seen,
    },
    /// The load and the faults are over and everything had time to end: what is read from here on is final.
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, later SIGCONT.
    Pause,
    /// A connection to the queue that delays what passes.
    SlowLink,
    /// One that passes nothing, and stays open.
    StalledLink,
    /// One that is reset.
    BrokenLink,
    /// Two servers of the queue's cluster, or one and all others, do not hear each other.
    Partition,
    /// One of them does not hear the others, or is not heard by them.
    OneWayLoss,
    /// No room left below the data directory.
    DiskFull,
    /// The queue's directory was removed under a killed server.
    Wipe,
    /// Its wall clock was set to another time, and back.
    ClockStep,
}

impl FaultKind {
    /// Whether something may go on living while others must take it for dead.
    pub fn is_stall(self) -> bool {
        !matches!(self, Self::Kill | Self::ClockStep)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Pause => "SIGSTOP",
            Self::SlowLink => "slow connection",
            Self::StalledLink => "stalled connection",
            Self::BrokenLink => "reset connection",
            Self::Partition => "partition",
            Self::OneWayLoss => "one-way loss",
            Self::DiskFull => "full disk",
            Self::Wipe => "wiped queue",
            Self::ClockStep => "clock step",
        }
    }
}

/// Where a message lies in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub stream: String,
    pub sequence: u64,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    pub kind: AskKind,
    pub function: String,
    /// What the function is told to exit with.
    #[serde(default)]
    pub exit: u8,
    /// How often a function that fails by itself is run (`retry.max_attempts`; a call's is 1).
    #[serde(default = "once")]
    pub attempts: u32,
    /// `Idempotency-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Of a cancel: whose. Of a direct publish: the id that it carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
}

fn once() -> u32 {
    1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskKind {
    Async,
    Call,
    Direct,
    Cancel,
    Deploy,
    Rollback,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// 202.
    Accepted { execution: String },
    /// The queue acknowledged a direct publish.
    Stored {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<Place>,
    },
    /// A call's outcome.
    Outcome { execution: String, seen: Seen },
    /// A cancel was confirmed.
    Confirmed,
    /// A cancel came too late: it has ended with this status.
    AlreadyEnded { status: String },
    /// A version is current.
    Current { version: u32 },
    /// An error that says that nothing was accepted.
    Refused { status: u16, code: String },
    /// No answer.
    None { why: String },
}

/// A record or an outcome, as someone saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// `running` until it has its outcome.
    pub status: String,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// `error.kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    #[serde(default)]
    pub output: String,
}

impl Seen {
    pub fn is_terminal(&self) -> bool {
        self.status != "running"
    }

    /// Of the API's JSON of a record or of a call.
    pub(crate) fn of(json: &serde_json::Value) -> Self {
        let number = |value: &serde_json::Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        Self {
            status: json["status"].as_str().unwrap_or_default().to_owned(),
            attempt: number(&json["attempt"]).unwrap_or_default(),
            version: number(&json["version"]),
            error: json["error"]["kind"].as_str().map(str::to_owned),
            exit_code: json["error"]["exit_code"].as_i64(),
            output: json["output"].as_str().unwrap_or_default().to_owned(),
        }
    }
}

/// Where everything is written down: to a file as it happens, and kept for the checker.
#[derive(Debug)]
pub(crate) struct History {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: Vec<Entry>,
    file: BufWriter<File>,
    begun: HashSet<String>,
}

impl History {
    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Self { inner: Mutex::new(Inner { entries: Vec::new(), file, begun: HashSet::new() }) })
    }

    /// It happens now.
    pub(crate) fn note(&self, event: Event) {
        self.note_at(clock::now_us(), event);
    }

    pub(crate) fn note_at(&self, at_us: u64, event: Event) {
        let entry = Entry { at_us, event };
        let mut inner = self.inner.lock();
        // What cannot be written is still checked; the file is for people.
        if serde_json::to_writer(&mut inner.file, &entry).is_ok() {
            let _ = inner.file.write_all(b"\n");
        }
        if let Event::Began { execution, .. } = &entry.event
            && !inner.begun.contains(execution)
        {
            inner.begun.insert(execution.clone());
        }
        inner.entries.push(entry);
    }

    /// Executions that began.
    pub(crate) fn begun(&self) -> u64 {
        self.inner.lock().begun.len() as u64
    }

    /// All so far; the file has them too then.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut inner = self.inner.lock();
        let _ = inner.file.flush();
        inner.entries.clone()
    }
}

/// Reads a history file back.
///
/// # Errors
/// It cannot be read, or a line is no entry.
pub fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    use anyhow::Context as _;
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    text.lines()
        .enumerate()
        .map(|(n, line)| serde_json::from_str(line).with_context(|| format!("line {} is no entry", n + 1)))
        .collect()
}
