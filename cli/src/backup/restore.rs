//! `flux restore`.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use flux_backup::{BackupError, Checked};
use flux_gateway::compose;
use flux_runtime::Settings;
use serde_json::json;

use super::{Which, holder, keys, open, owner::as_owner_of, place, problem, said, told};
use crate::{error::CliError, output::Output, up};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What `flux backup` wrote
    file: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Also where there is something: it is replaced
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args, out: Output) -> Result<(), CliError> {
    let cannot = |error| CliError::local(format!("{} cannot be read", args.file.display()), error);
    if args.file == Path::new("-") {
        return Err(CliError::usage("a backup is read more than once: give a file"));
    }
    let file = File::open(&args.file).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(CliError::problem(format!("{} is no file", args.file.display()), "`flux backup FILE` makes one"));
    }
    let checked = flux_backup::check(&file).map_err(problem)?;
    let settings = place::settings(&args.which)?;
    // Held to the end: no `flux up` starts on it meanwhile.
    let _held = match (&settings.data_dir, &args.which.config) {
        (Some(dir), None) => Some(up::hold(dir, &settings)?),
        (Some(dir), Some(_)) if args.which.data_dir.is_some() => Some(up::hold(dir, &settings)?),
        _ => None,
    };
    let planned = keys::plan(&settings, &checked.keys, args.force)?;
    let owned = place::database(&settings).or(settings.artifacts.dir.as_deref()).unwrap_or_else(|| Path::new("."));
    as_owner_of(owned, || {
        let runtime = flux_runtime::async_runtime()
            .map_err(|source| CliError::local("the async runtime cannot be started", source))?;
        let restored = runtime.block_on(fill(args, &settings, &file));
        runtime.shutdown_background();
        restored
    })?;
    keys::write(&planned)?;
    tell(&settings, &checked, out);
    Ok(())
}

async fn fill(args: &Args, settings: &Settings, file: &File) -> Result<(), CliError> {
    let archives = compose::archives(&settings.artifacts).await;
    let archives = archives.map_err(|error| CliError::Problem { what: format!("{error:#}"), remedy: None })?;
    let store = open(settings, true).await?;
    let confirm = async || -> Result<(), BackupError> {
        if args.force { Ok(()) } else { flux_backup::require_empty(&*store).await }
    };
    let filled = Box::pin(flux_backup::fill(file, &*store, &*archives, &holder("restore"), confirm)).await;
    store.close().await;
    filled.map_err(problem)
}

fn tell(settings: &Settings, checked: &Checked, out: Output) {
    let Checked { header, counts, missing, keys } = checked;
    if out.json {
        out.json(&json!({ "made_at": header.made_at, "counts": told(counts), "missing": missing }));
    } else {
        out.note(format!("restored as of {}: {}", header.made_at, said(counts)));
    }
    for digest in missing {
        out.note(format!("{digest} was not in it: deploy its function again"));
    }
    if counts.open > 0 {
        out.note(format!(
            "{} executions had no outcome: the gateway publishes them again within moments of its start, unless they are too \
             old by then",
            counts.open
        ));
    }
    let key = settings.gateway.secrets_key.as_deref().unwrap_or_else(|| Path::new("secrets.key"));
    if counts.secrets > 0 && keys.is_empty() && !key.exists() {
        out.note(format!("secrets open with the key file of then alone: put it at {}", key.display()));
    }
}
