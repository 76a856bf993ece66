//! A Flux as one file: what its store knows, and the code archives that its versions name; and back again, into a store and a
//! place for archives of whatever kind. The reasons: `docs/adr/0020-backup.md`; how it is used: `docs/backup.md`.
//!
//! ```text
//!  flux-backup.json         which form this is, and when it was made
//!  rows/<sha256>            up to a MiB of rows, as lines of JSON, packed by gzip          store first, as of one moment;
//!  code/<sha256>            an archive, as it was deployed                                 then the code that it names
//!  keys/<sha256>            a file of keys, only where they were asked for
//!  end/<sha256>             how many there were, and a digest over all of their names and digests
//! ```
//!
//! It is a tar: `tar tf` lists it, and each name is the SHA-256 of what is under it. Whoever reads one ([`read`]) gets no entry
//! that is not what was written (but the first, whose name is no digest), and learns at the end whether that was all of it.
//!
//! **Architecture Invariant:** nothing here holds more in memory than a few entries and the names of versions, and nothing is
//! changed by a file that was not read to its end before.

use flux_artifacts::ArtifactError;
use flux_protocol::{Digest, Timestamp};
use flux_store::StoreError;
use serde::{Deserialize, Serialize};

#[doc(hidden)]
pub mod fuzzing;
mod lease;
mod reader;
mod restore;
mod take;
mod writer;

pub use reader::{Piece, read};
pub use restore::{Checked, check, fill, require_empty};
pub use take::{Copied, Taken, copy};
pub use writer::Writer;

/// The form that is written here, and the newest that is read. It counts on when an earlier release could not read a file, or
/// would read it wrongly.
pub const FORM: u32 = 1;

const HEADER: &str = "flux-backup.json";
const END: &str = "end";
const ROWS: &str = "rows";
const CODE: &str = "code";
const KEYS: &str = "keys";

/// The first entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORM`] of who wrote it.
    pub flux_backup: u32,
    pub made_at: Timestamp,
    /// The release that wrote it.
    pub made_by: String,
    /// The engine that it was read from: `sqlite`, `postgres` or `redis`.
    pub engine: String,
}

/// The last entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// Before this one.
    entries: u64,
    /// Over the name and the digest of each of them, in their order.
    all: Digest,
    counts: Counts,
    /// Archives that versions name, and that were in no place.
    missing: Vec<Digest>,
}

/// How much is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    pub functions: u64,
    pub versions: u64,
    pub executions: u64,
    /// Those of them that have no outcome yet.
    pub open: u64,
    /// Executions whose output or payload was too large for a record: it lies in the queue, and is not in a backup.
    pub beside: u64,
    pub keys: u64,
    pub secrets: u64,
    pub archives: u64,
    pub key_files: u64,
}

/// A file of keys, with its path below where keys are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFile {
    pub path: String,
    #[serde(with = "base64_bytes")]
    pub content: Vec<u8>,
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Why no backup was made, or none restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("it is no backup of Flux's: {problem}")]
    NotABackup { problem: String },
    #[error("it was written by a newer release of Flux ({by}, form {form}); this one reads up to form {FORM}")]
    Newer { form: u32, by: String },
    /// Whoever wrote it died, or it was not copied to its end.
    #[error("it is cut off: it ends in the middle")]
    CutOff,
    #[error("it is damaged: {entry} {problem}")]
    Damaged { entry: String, problem: String },
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    #[error("it cannot be written")]
    Write(#[source] std::io::Error),
    #[error("{} code archives that versions name are in no place", .0.len())]
    Missing(Vec<Digest>),
    #[error("another backup is being made, or one broke off within the last minute")]
    Busy,
    #[error("a gateway is alive on this store")]
    GatewayAlive,
    /// It stood still for so long that it was believed dead.
    #[error("somebody else has taken the store over meanwhile, and it was ended")]
    Overtaken,
    #[error(
        "the store is not empty: it has {functions} functions, {executions} executions, {keys} API keys and {secrets} secrets"
    )]
    NotEmpty { functions: u64, executions: String, keys: u64, secrets: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Archives(#[from] ArtifactError),
    #[error("the work was stopped")]
    Stopped,
}

impl BackupError {
    /// Whether the same may succeed a little later.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Busy | Self::GatewayAlive => true,
            Self::Store(error) => error.is_retryable(),
            Self::Archives(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// What follows `before` where an entry of this name and content comes.
fn chain(before: Digest, name: &str, content: Digest) -> Digest {
    Digest::of(&[&before.as_bytes()[..], &content.as_bytes()[..], name.as_bytes()].concat())
}

/// What nothing has come before.
fn nothing() -> Digest {
    Digest::of(&[])
}
