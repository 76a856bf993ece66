//! What agent and driver say to each other: a JSON text a packet. Both are of one build.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Start(Box<Wanted>),
    /// Its handler is loaded. Connections to it end; the answer brings another one.
    Snapshot {
        id: u64,
    },
    /// End it, whatever it does. Of one that is gone already nothing comes of it.
    End {
        id: u64,
    },
}

/// A guest for one process of a function's version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Chosen by the agent, unique on its connection.
    pub id: u64,
    /// Everything that decides what the guest's process is before its first invocation: guests that say the same are each
    /// other's clones.
    pub function: String,
    /// Unpacked code, below the directory that the driver was told, in a folder that is named by its digest.
    pub code: PathBuf,
    pub memory_mb: u32,
    pub cpu_millicores: u32,
    /// It may come from a snapshot, and become one: it has no secrets.
    pub snapshot: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case", deny_unknown_fields)]
pub enum Report {
    /// A guest was booted and answered, and what an earlier driver left is removed.
    Ready {
        /// Firecracker's own.
        release: String,
        /// Guests have a jail each, and not only Firecracker's own filter of system calls.
        jailed: bool,
    },
    /// None can be.
    Absent { reason: String },
    /// With the stream to its agent.
    Started {
        id: u64,
        restored: bool,
        /// It is worth loading the handler and asking for a snapshot.
        snapshot: bool,
    },
    /// With another stream to the same guest. `problem`: no snapshot was made.
    Snapshotted { id: u64, problem: Option<String> },
    /// There is no guest, or none any more.
    Failed {
        id: u64,
        message: String,
        /// Another try may succeed.
        retryable: bool,
    },
    /// The guest is gone.
    Ended { id: u64 },
}
