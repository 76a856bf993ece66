//! A folder as an archive: sorted names and fixed times, so that the same tree is the same digest.

use std::{
    io::{Cursor, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use flux_protocol::limits;
use zip::{CompressionMethod, DateTime, ZipWriter, write::SimpleFileOptions};

use crate::error::{ArchiveError, ArtifactError};

/// Never packed.
const SKIPPED: &[&str] = &[".git", ".hg", ".svn", "__pycache__", ".DS_Store", ".fluxignore", ".venv"];

/// Packs a folder, without what `.fluxignore` names: one name, or path from the folder, a line; `*.ext` by ending.
///
/// # Errors
/// The folder or a file cannot be read, or a limit is passed.
pub fn pack_dir(dir: &Path) -> Result<Bytes, ArtifactError> {
    let ignored = read_ignored(dir)?;
    let mut paths = Vec::new();
    collect(dir, Path::new(""), &ignored, &mut paths)?;
    if paths.is_empty() {
        return Err(ArtifactError::Pack {
            path: dir.to_owned(),
            problem: "the folder has no files to deploy".to_owned(),
        });
    }
    paths.sort();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut total = 0_u64;
    for relative in &paths {
        let path = dir.join(relative);
        let fail = |problem: String| ArtifactError::Pack { path: path.clone(), problem };
        let name = relative.to_str().ok_or_else(|| fail("its name is not UTF-8; rename it".to_owned()))?;
        let metadata = path.symlink_metadata().map_err(|source| ArtifactError::file("cannot read", &path, source))?;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(DateTime::default());
        if metadata.is_symlink() {
            let target =
                std::fs::read_link(&path).map_err(|source| ArtifactError::file("cannot read", &path, source))?;
            let target = target.to_str().ok_or_else(|| fail("it links to a name that is not UTF-8".to_owned()))?;
            zip.add_symlink(name, target, options).map_err(|error| fail(error.to_string()))?;
            continue;
        }
        total += metadata.len();
        if total > limits::ARCHIVE_UNPACKED {
            return Err(
                ArchiveError::UnpacksTooLarge { entry: name.to_owned(), limit: limits::ARCHIVE_UNPACKED }.into()
            );
        }
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let content = std::fs::read(&path).map_err(|source| ArtifactError::file("cannot read", &path, source))?;
        // What compresses beyond the ratio that a bomb passes is stored as it is.
        let method = if content.len() > limits::MIB && content.iter().all(|byte| *byte == content[0]) {
            CompressionMethod::Stored
        } else {
            CompressionMethod::Deflated
        };
        zip.start_file(name, options.compression_method(method).unix_permissions(mode))
            .map_err(|error| fail(error.to_string()))?;
        zip.write_all(&content).map_err(|source| ArtifactError::file("cannot pack", &path, source))?;
    }
    let packed = zip
        .finish()
        .map_err(|error| ArtifactError::Pack { path: dir.to_owned(), problem: error.to_string() })?
        .into_inner();
    if packed.len() > limits::ARCHIVE {
        return Err(ArchiveError::TooLarge { size: packed.len() as u64, limit: limits::ARCHIVE as u64 }.into());
    }
    Ok(packed.into())
}

fn read_ignored(dir: &Path) -> Result<Vec<String>, ArtifactError> {
    let path = dir.join(".fluxignore");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text
            .lines()
            .map(|line| line.trim().trim_end_matches('/').to_owned())
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(ArtifactError::file("cannot read", &path, source)),
    }
}

fn is_ignored(relative: &Path, name: &str, ignored: &[String]) -> bool {
    SKIPPED.contains(&name)
        || ignored.iter().any(|pattern| match pattern.strip_prefix('*') {
            Some(ending) => name.ends_with(ending),
            None => pattern == name || Path::new(pattern.trim_start_matches('/')) == relative,
        })
}

fn collect(dir: &Path, below: &Path, ignored: &[String], paths: &mut Vec<PathBuf>) -> Result<(), ArtifactError> {
    let here = dir.join(below);
    let entries =
        std::fs::read_dir(&here).map_err(|source| ArtifactError::file("cannot read the folder", &here, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| ArtifactError::file("cannot read the folder", &here, source))?;
        let name = entry.file_name();
        let relative = below.join(&name);
        if is_ignored(&relative, &name.to_string_lossy(), ignored) {
            continue;
        }
        let kind = entry.file_type().map_err(|source| ArtifactError::file("cannot read", &entry.path(), source))?;
        if kind.is_dir() {
            collect(dir, &relative, ignored, paths)?;
        } else if kind.is_file() || kind.is_symlink() {
            paths.push(relative);
        } else {
            return Err(ArtifactError::Pack {
                path: entry.path(),
                problem: "is a device, pipe or socket; move it out of the folder".to_owned(),
            });
        }
        if paths.len() > limits::ARCHIVE_ENTRIES {
            return Err(ArchiveError::TooManyEntries { entries: paths.len(), limit: limits::ARCHIVE_ENTRIES }.into());
        }
    }
    Ok(())
}
