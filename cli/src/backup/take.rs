//! `flux backup`.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use flux_backup::{BackupError, Copied, FORM, Header, Taken};
use flux_gateway::compose;
use flux_protocol::time::now;
use flux_runtime::Settings;
use serde_json::json;
use tempfile::NamedTempFile;

use super::{Which, holder, keys, open, owner::as_owner_of, place, problem, said, told};
use crate::{error::CliError, output::Output};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it goes; `-` is standard output
    file: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Also the keys: certificates with their private keys, the CA's among them, and what secrets are encrypted with
    #[arg(long)]
    with_keys: bool,
    /// Also where code archives are missing that versions name
    #[arg(long)]
    incomplete: bool,
}

/// A file that is there once it is whole, or standard output.
enum Out {
    File(NamedTempFile, PathBuf),
    Stdout,
}

impl Out {
    fn open(path: &Path, out: Output) -> Result<Self, CliError> {
        if path == Path::new("-") {
            if out.stdout_is_terminal {
                return Err(CliError::usage("a backup is no text: give a file, or `-` with a pipe behind it"));
            }
            return Ok(Self::Stdout);
        }
        let cannot = |error| CliError::local(format!("{} cannot be written", path.display()), error);
        if path.is_dir() {
            return Err(cannot(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        // Made with mode 0600, and removed if it is not finished.
        let fresh = tempfile::Builder::new().prefix(".flux-backup-").tempfile_in(dir).map_err(cannot)?;
        Ok(Self::File(fresh, path.to_owned()))
    }

    fn writer(&self) -> Result<Box<dyn Write + Send>, CliError> {
        match self {
            Self::File(file, path) => {
                let again = file.as_file().try_clone();
                let again =
                    again.map_err(|error| CliError::local(format!("{} cannot be written", path.display()), error));
                Ok(Box::new(BufWriter::new(again?)))
            }
            Self::Stdout => Ok(Box::new(BufWriter::new(io::stdout()))),
        }
    }

    /// Puts it in its place.
    fn keep(self) -> Result<(), CliError> {
        let Self::File(file, path) = self else { return Ok(()) };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let kept = file.as_file().sync_all().and_then(|()| {
            file.persist(&path).map_err(|error| error.error)?;
            File::open(dir)?.sync_all()
        });
        kept.map_err(|error| problem(BackupError::Write(error)))
    }
}

pub(crate) fn run(args: &Args, out: Output) -> Result<(), CliError> {
    let settings = place::settings(&args.which)?;
    // A store that is not there would be made.
    if let Some(path) = place::database(&settings).filter(|path| !path.exists()) {
        return Err(CliError::problem(
            format!("there is no store: {} is not there", path.display()),
            "say which Flux: --data-dir of `flux up`, or --config of `flux-gateway`",
        ));
    }
    let file = Out::open(&args.file, out)?;
    let writer = file.writer()?;
    let owned = place::database(&settings).or(settings.artifacts.dir.as_deref()).unwrap_or_else(|| Path::new("."));
    let copied = as_owner_of(owned, || {
        let runtime = flux_runtime::async_runtime()
            .map_err(|source| CliError::local("the async runtime cannot be started", source))?;
        let copied = runtime.block_on(copy(args, &settings, writer));
        runtime.shutdown_background();
        copied
    })?;
    // After the store: keys that were new before the moment of the backup are in them, and the one before is kept.
    let keys = if args.with_keys { keys::read(&settings, copied.sealed_with())? } else { Vec::new() };
    let taken = copied.end(&keys).map_err(problem)?;
    drop(taken.out);
    file.keep()?;
    let Taken { counts, missing, .. } = taken;
    if args.file != Path::new("-") && out.json {
        out.json(&json!({ "file": args.file, "counts": told(&counts), "missing": missing }));
    } else {
        out.note(said(&counts));
    }
    for digest in missing {
        out.note(format!("{digest} is in no place and not in it: deploy its function again"));
    }
    if counts.beside > 0 {
        out.note(format!(
            "{} of the executions have an output or a payload in the queue, which is not in the backup",
            counts.beside
        ));
    }
    if args.with_keys {
        out.note("it has private keys in it: whoever can read it can be this Flux");
    } else if counts.secrets > 0 {
        let path = settings.gateway.secrets_key.unwrap_or_default();
        out.note(format!("secrets in it open with {} alone, which is not in it: keep a copy", path.display()));
    }
    Ok(())
}

async fn copy(
    args: &Args,
    settings: &Settings,
    writer: Box<dyn Write + Send>,
) -> Result<Copied<Box<dyn Write + Send>>, CliError> {
    let store = open(settings, false).await?;
    let archives = compose::archives(&settings.artifacts).await;
    let archives = archives.map_err(|error| CliError::Problem { what: format!("{error:#}"), remedy: None })?;
    let header = Header {
        flux_backup: FORM,
        made_at: now(),
        made_by: env!("CARGO_PKG_VERSION").to_owned(),
        engine: place::engine(settings),
    };
    let holder = holder("backup");
    let what = (header, args.incomplete, holder.as_str());
    let copied = tokio::select! {
        copied = Box::pin(flux_backup::copy(&*store, &*archives, what, writer)) => copied,
        // What was written of it is removed on the way out.
        _ = tokio::signal::ctrl_c() => {
            let remedy = "no backup was made; another can be after a minute".to_owned();
            return Err(CliError::Interrupted { remedy });
        }
    };
    store.close().await;
    copied.map_err(problem)
}
