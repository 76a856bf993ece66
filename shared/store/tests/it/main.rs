//! The store's engines against the conformance suite, and what is SQLite's own.

use std::path::PathBuf;

use flux_store::{SharedStore, Tuning};

mod durability;
mod merge;
mod migrations;
mod postgres;
mod rate;
mod redis;
mod refusals;
mod server;
mod tls;

mod sqlite_in_memory {
    flux_store::conformance_tests!((crate::open("sqlite::memory:").await, ()));
}

mod sqlite_in_a_file {
    flux_store::conformance_tests!({
        let scratch = crate::Scratch::new();
        (crate::open(&scratch.url).await, scratch)
    });
}

/// A place for a database, removed with what is in it.
struct Scratch {
    path: PathBuf,
    url: String,
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flux.db");
        Self { url: format!("sqlite://{}", path.display()), path, directory }
    }
}

async fn open(url: &str) -> SharedStore {
    flux_store::open(url, &Tuning::default()).await.expect("open")
}
