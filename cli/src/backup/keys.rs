//! The files of keys: certificates' directory, and what secrets are encrypted with. In a backup only where they are asked for.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use flux_backup::KeyFile;
use flux_protocol::limits;
use flux_runtime::Settings;
use walkdir::WalkDir;

use super::owner::as_owner_of;
use crate::error::CliError;

const CERTS: &str = "certs";
const SECRETS: &str = "secrets.key";
const OWN_DIR: u32 = 0o700;

/// Every file of keys that there is. `sealed_with`: the keys that secrets in the backup are encrypted with, which then are there.
pub(super) fn read(settings: &Settings, sealed_with: &BTreeSet<String>) -> Result<Vec<KeyFile>, CliError> {
    let certs = settings.certs_dir();
    let mut files = Vec::new();
    for entry in WalkDir::new(&certs).follow_links(false).sort_by_file_name() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => continue,
            Err(error) => return Err(cannot(&certs, error.into())),
        };
        let below = entry.path().strip_prefix(&certs).unwrap_or_else(|_| entry.path());
        // A lock, or a file that is being written.
        let passes = entry.file_name().to_str().is_none_or(|name| name.starts_with('.') || name.ends_with(".lock"));
        if passes || entry.depth() == 0 {
            continue;
        }
        // Whose directory this is might lead root to what is another's.
        if entry.path_is_symlink() {
            return Err(CliError::problem(
                format!("{} is a link, and is not followed", entry.path().display()),
                "with --with-keys, keys are files: put it there itself; or make the backup without, and keep the keys apart",
            ));
        }
        if entry.file_type().is_file() {
            files.push(file(entry.path(), Path::new(CERTS).join(below))?);
        }
    }
    files.extend(secrets_key(settings, sealed_with)?);
    Ok(files)
}

fn secrets_key(settings: &Settings, sealed_with: &BTreeSet<String>) -> Result<Option<KeyFile>, CliError> {
    let path = settings.gateway.secrets_key.as_deref().unwrap_or_else(|| Path::new(""));
    let is_absent = fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if is_absent && sealed_with.is_empty() {
        return Ok(None);
    }
    let file = file(path, PathBuf::from(SECRETS))?;
    let text = String::from_utf8_lossy(&file.content);
    let has: BTreeSet<&str> = flux_secrets::key_ids(&text).collect();
    match sealed_with.iter().find(|key| !has.contains(key.as_str())) {
        None => Ok(Some(file)),
        Some(key) => Err(CliError::problem(
            format!("secrets are encrypted with the key {key}, which {} does not have", path.display()),
            "name the file of the gateway's that set them (`gateway.secrets_key`); if keys were changed meanwhile, make it again",
        )),
    }
}

fn file(path: &Path, named: PathBuf) -> Result<KeyFile, CliError> {
    let failed = |error| cannot(path, error);
    let open = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).map_err(failed)?;
    if open.metadata().map_err(failed)?.len() > limits::BACKUP_KEY_FILE as u64 / 2 {
        return Err(failed(io::Error::other("it is too large for a file of keys")));
    }
    let content = io::read_to_string(open).map_err(failed)?.into_bytes();
    let path = named.into_os_string().into_string().map_err(|_| failed(io::Error::other("its name is not UTF-8")))?;
    Ok(KeyFile { path, content })
}

fn cannot(path: &Path, error: io::Error) -> CliError {
    CliError::local(format!("{} cannot be read", path.display()), error)
}

/// A file of keys and where it goes. `None`: it is there already, the same.
type Planned<'k> = (&'k KeyFile, PathBuf);

/// What would be written where. Refuses what leads elsewhere, and unless it is forced, what would take another's place.
pub(super) fn plan<'k>(settings: &Settings, files: &'k [KeyFile], force: bool) -> Result<Vec<Planned<'k>>, CliError> {
    let certs = settings.certs_dir();
    let mut planned = Vec::new();
    for file in files {
        let path = Path::new(&file.path);
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(CliError::Problem {
                what: format!("the backup has a key for `{}`", path.display()),
                remedy: None,
            });
        }
        let to = match path.strip_prefix(CERTS) {
            Ok(below) => certs.join(below),
            Err(_) if file.path == SECRETS => settings.gateway.secrets_key.clone().unwrap_or_default(),
            Err(_) => continue, // of a later release
        };
        match fs::read(&to) {
            Ok(there) if there == file.content => continue,
            Ok(_) if !force => {
                return Err(CliError::problem(
                    format!("{} is there already, and is another", to.display()),
                    "nothing was changed; with --force keys too are replaced by those of the backup",
                ));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot(&to, error)),
        }
        planned.push((file, to));
    }
    Ok(planned)
}

/// Writes them, each whole or not at all, for their owner alone.
pub(super) fn write(planned: &[Planned<'_>]) -> Result<(), CliError> {
    for (file, to) in planned {
        as_owner_of(to, || {
            let failed = |error| CliError::local(format!("{} cannot be written", to.display()), error);
            let dir = to.parent().unwrap_or_else(|| Path::new("."));
            fs::DirBuilder::new().recursive(true).mode(OWN_DIR).create(dir).map_err(failed)?;
            // Made with mode 0600.
            let mut fresh = tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(failed)?;
            fresh.write_all(&file.content).and_then(|()| fresh.as_file().sync_all()).map_err(failed)?;
            fresh.persist(to).map_err(|error| failed(error.error))?;
            Ok(())
        })?;
    }
    Ok(())
}
