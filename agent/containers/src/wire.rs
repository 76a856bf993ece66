//! What agent and driver say to each other: a JSON text a packet, on one `SOCK_SEQPACKET` socket. Both are of one build.

use std::path::PathBuf;

use flux_launcher::{Missing, wire::Network};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Start(Box<Container>),
    /// Remove it, whatever it does. Of one that is gone already nothing comes of it.
    End {
        id: u64,
    },
}

/// A container for one process of a function's version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Chosen by the agent, unique on its connection.
    pub id: u64,
    pub function: String,
    pub version: u32,
    pub image: String,
    /// Unpacked code, below the directory that the driver was told.
    pub code: Option<PathBuf>,
    pub memory_bytes: u64,
    pub cpu_millicores: u32,
    pub pids_max: u32,
    pub open_files: u64,
    pub network: Network,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case", deny_unknown_fields)]
pub enum Report {
    /// Docker answers, and what an earlier driver of the same owner left is removed.
    Ready(Offer),
    /// It does not.
    Absent {
        reason: String,
    },
    /// With the stream to its shim.
    Started {
        id: u64,
    },
    Failed {
        id: u64,
        why: Why,
        message: String,
    },
    /// The container is gone; `code` is its shim's exit code where Docker said it.
    Ended {
        id: u64,
        code: Option<i32>,
    },
    /// Docker went away while it ran: nobody sees what becomes of it but who holds its stream.
    Unwatched {
        id: u64,
    },
}

/// What containers are held in here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Docker's own release.
    pub release: String,
    pub missing: Vec<Missing>,
    /// Networks whose functions are not run, since a layer is missing and all are required.
    pub refuses: Vec<Network>,
}

/// Why there is no container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Docker is not there: later it may be.
    Absent,
    /// The image is not there, and cannot or must not be pulled.
    Image,
    /// Docker refused, or the container did not start.
    Container,
    /// The request asks for what no agent of this build asks for.
    Request,
}
