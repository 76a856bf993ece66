//! From a URL to an engine.

use std::path::PathBuf;

use crate::{SharedStore, StoreError, postgres, redis, sqlite, url};

/// What an engine may use, and what its promises cost. Every field has a default that suits one small machine.
#[derive(Debug, Clone)]
pub struct Tuning {
    pub durability: Durability,
    /// Connections that read, each with a thread of its own.
    pub readers: usize,
    /// Memory of one connection's page cache, in KiB.
    pub cache_kib: u32,
    /// Calls that may wait for the writer; further ones wait for room.
    pub queue: usize,
    /// Connections to a server that takes one call at a time on each, as PostgreSQL does.
    pub connections: usize,
    /// The database grows to about this size, in bytes, and is [`StoreError::Full`] then. `None`: as the disk takes.
    pub max_bytes: Option<u64>,
    /// It is opened to be filled ([`Store::import`](crate::Store::import)): also where that was begun before and broke off.
    pub filling: bool,
    /// A schema of an earlier release is brought up to date; else it is refused.
    pub migrate: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            readers: 2,
            cache_kib: 2048,
            queue: flux_protocol::limits::CHANNEL,
            connections: flux_protocol::limits::STORE_CONNECTIONS,
            max_bytes: None,
            filling: false,
            migrate: true,
        }
    }
}

/// What a write that has returned survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The death of every process (`kill -9`). Power loss or a crash of the kernel may lose the last commits,
    /// and never damages what came before them.
    #[default]
    Process,
    /// Power loss too: each commit waits for the disk.
    Power,
}

/// Opens the store that `url` names, making it where there is none.
///
/// `sqlite:///abs/path`, `sqlite://relative/path`, or `sqlite::memory:` (gone with the last handle);
/// `postgres://user:password@host/database`; `redis://host`, `redis+sentinel://host,host/service`,
/// `redis+cluster://host,host`, and the same with `rediss` for TLS.
///
/// # Errors
/// `Url`; `Corrupt` for a file that is damaged, not Flux's, or of a newer release; `Unavailable`.
pub async fn open(url: &str, tuning: &Tuning) -> Result<SharedStore, StoreError> {
    let wrong = |problem: String| url::wrong(url, problem);
    let (scheme, rest) = url
        .split_once(':')
        .ok_or_else(|| wrong("it starts with a scheme, such as sqlite:///var/lib/flux/flux.db".to_owned()))?;
    match scheme {
        "sqlite" if rest == ":memory:" => sqlite::open(None, tuning).await,
        "sqlite" => {
            let path =
                rest.strip_prefix("//").filter(|path| !path.is_empty() && !path.ends_with('/')).ok_or_else(|| {
                    wrong("write sqlite:///absolute/path, sqlite://relative/path or sqlite::memory:".to_owned())
                })?;
            if path.contains(['?', '#', '%', '\0']) {
                return Err(wrong(
                    "the path is taken as it is, without parameters or escapes; ? # % are refused".to_owned(),
                ));
            }
            sqlite::open(Some(PathBuf::from(path)), tuning).await
        }
        "postgres" | "postgresql" => postgres::open(url, tuning).await,
        "redis" | "rediss" | "redis+sentinel" | "rediss+sentinel" | "redis+cluster" | "rediss+cluster" => {
            redis::open(url, tuning).await
        }
        _ => Err(wrong(format!(
            "`{}` is not a kind of store; known: sqlite, postgres, redis",
            scheme.chars().take(32).collect::<String>()
        ))),
    }
}
