//! `flux backup` and `flux restore`: a Flux as one file, and back. They go straight to the store and the code archives, by the
//! configuration that the gateway has: a restore must, since no gateway may be there, and a backup is made also where none is.

use std::path::PathBuf;

use flux_backup::{BackupError, Counts};
use flux_gateway::compose;
use flux_runtime::Settings;
use flux_store::{SharedStore, StoreError, Tuning};
use serde_json::{Value, json};

use crate::{commands::shown::count, error::CliError};

mod keys;
mod owner;
mod place;
mod restore;
mod take;

pub(crate) use restore::{Args as RestoreArgs, run as restore};
pub(crate) use take::{Args, run};

/// Which Flux.
#[derive(Debug, clap::Args)]
struct Which {
    /// The data directory of `flux up` [default: ~/.local/share/flux; as root /var/lib/flux]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The configuration of `flux-gateway`, or with --data-dir that of `flux up` [default: what `flux up` was last started with]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// For this once.
fn holder(what: &str) -> String {
    format!("{what}-{}-{:08x}", std::process::id(), flux_protocol::time::now().as_micros() & 0xffff_ffff)
}

/// `filling`: else what is to be saved is left as it is.
async fn open(settings: &Settings, filling: bool) -> Result<SharedStore, CliError> {
    let url = settings.store.url.as_deref().unwrap_or_default();
    let tuning = Tuning { filling, migrate: filling, ..compose::tuning(settings.queue.durability) };
    flux_store::open(url, &tuning).await.map_err(|error| problem(error.into()))
}

/// With what to do about it.
fn problem(error: BackupError) -> CliError {
    let mut what = error.to_string();
    let mut below = std::error::Error::source(&error);
    while let Some(source) = below {
        let said = source.to_string();
        if !what.contains(&said) {
            what = format!("{what}: {said}");
        }
        below = source.source();
    }
    let remedy = match &error {
        BackupError::NotABackup { .. } => "`flux backup FILE` makes one",
        BackupError::Newer { .. } => "restore it with that release, or a later one",
        BackupError::CutOff | BackupError::Damaged { .. } => {
            "nothing was changed; take another copy of it, or another backup"
        }
        BackupError::Write(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            "nothing was left behind; make room, or write it elsewhere"
        }
        BackupError::Write(_) => "nothing was left behind",
        BackupError::Read(_) => "nothing was changed; may this user read it?",
        BackupError::Missing(_) => {
            "`flux gc` puts there what the queue still has; with --incomplete the backup is made without the others, whose \
             versions have to be deployed again"
        }
        BackupError::Busy => "wait for it; one that was killed is believed dead after a minute",
        BackupError::GatewayAlive => {
            "nothing was changed; stop every gateway of this store first (a restore that was killed looks like one for a minute)"
        }
        BackupError::Overtaken => "stop every gateway of this store, and do it again",
        BackupError::NotEmpty { .. } => {
            "nothing was changed; with --force all of that is replaced by what the backup has"
        }
        BackupError::Store(StoreError::Unavailable { .. }) => "is `store.url` right, and may this machine reach it?",
        _ => return CliError::Problem { what, remedy: None },
    };
    CliError::problem(what, remedy)
}

fn said(counts: &Counts) -> String {
    let many = |n: u64, what: &str| count(usize::try_from(n).unwrap_or(usize::MAX), what);
    format!(
        "{} with {}, {}, {} ({} without an outcome), {}, {}",
        many(counts.functions, "function"),
        many(counts.versions, "version"),
        many(counts.archives, "code archive"),
        many(counts.executions, "execution"),
        counts.open,
        many(counts.keys, "API key"),
        many(counts.secrets, "secret"),
    )
}

fn told(counts: &Counts) -> Value {
    json!(counts)
}
