//! Files that are there wholly or not at all, and read with care.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use flux_protocol::limits;

use crate::PkiError;

pub(crate) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;
const DIRECTORY: u32 = 0o700;

fn failed(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { attempted, path, source }
}

/// Its text; `None` where it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mut text = String::new();
    let most = limits::PKI_FILE as u64 + 1;
    file.take(most).read_to_string(&mut text).map_err(failed("read", path))?;
    if text.len() > limits::PKI_FILE {
        return Err(PkiError::Damaged { path: path.to_owned(), why: "it is too large".to_owned() });
    }
    Ok(Some(text))
}

/// A key, which nobody else may be able to read.
pub(crate) fn read_secret(path: &Path) -> Result<Option<String>, PkiError> {
    let text = read(path)?;
    if text.is_some() {
        let mode = fs::metadata(path).map_err(failed("read", path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(PkiError::Exposed { path: path.to_owned(), mode });
        }
    }
    Ok(text)
}

pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    make_dir(dir)?;
    let written = || {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // So that the name is there after a power cut as well.
        File::open(dir)?.sync_all()
    };
    written().map_err(failed("written", path))
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY).create(dir).map_err(failed("made", dir))
}

/// Removes it if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removed", path)(error)),
        _ => Ok(()),
    }
}

/// Names of the directories in it; none where it is not there.
pub(crate) fn dirs(path: &Path) -> Result<Vec<String>, PkiError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("read", path))?;
        if entry.file_type().map_err(failed("read", path))?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}

/// Held by whoever changes the directory; what another process changes meanwhile waits.
pub(crate) fn lock(dir: &Path) -> Result<File, PkiError> {
    make_dir(dir)?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("opened", &path))?;
    file.lock().map_err(failed("locked", &path))?;
    Ok(file)
}
