//! From a directory to an archive. The same tree gives the same bytes on every machine, and so the same digest:
//! names sorted, times fixed, permissions reduced to the executable bit.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Cursor, ErrorKind, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use flux_protocol::limits;
use zip::{CompressionMethod, DateTime, ZipWriter, write::SimpleFileOptions};

use super::{
    ArchiveError,
    ignore::Ignore,
    plan::{ratio_bound, resolve},
};

enum Found {
    EmptyDirectory,
    File { from: PathBuf, executable: bool, bytes: u64 },
    Link { target: String },
}

/// As [`pack_dir`], with what is in `packages` beside it. Of two files of the same name the directory's own is taken.
///
/// # Errors
/// As [`pack_dir`].
pub fn pack_with(directory: &Path, packages: &Path) -> Result<Bytes, ArchiveError> {
    pack(directory, Some(packages))
}

/// Packs what is in `directory`, but for what `.fluxignore` names, version control's own directories and
/// `__pycache__`.
///
/// # Errors
/// A file cannot be read, is neither file, directory nor link, is a link to outside, or a limit is passed; the
/// error names it.
pub fn pack_dir(directory: &Path) -> Result<Bytes, ArchiveError> {
    pack(directory, None)
}

fn pack(directory: &Path, packages: Option<&Path>) -> Result<Bytes, ArchiveError> {
    let ignore = match fs::read_to_string(directory.join(".fluxignore")) {
        Ok(text) => Ignore::parse(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ignore::default(),
        Err(error) => return Err(disk("read", &directory.join(".fluxignore"), error)),
    };
    let mut found = BTreeMap::new();
    walk(directory, "", &ignore, &mut found)?;
    if let Some(packages) = packages {
        let mut more = BTreeMap::new();
        walk(packages, "", &Ignore::default(), &mut more)?;
        for (path, entry) in more {
            found.entry(path).or_insert(entry);
        }
    }
    check_links(&found)?;
    if found.len() > limits::ARCHIVE_ENTRIES {
        return Err(ArchiveError::TooManyEntries { entries: found.len() as u64, limit: limits::ARCHIVE_ENTRIES });
    }
    let mut total = 0_u64;
    for (path, entry) in &found {
        if let Found::File { bytes, .. } = entry {
            total = total.saturating_add(*bytes);
        }
        if total > limits::ARCHIVE_UNPACKED {
            return Err(ArchiveError::TooMuch { entry: path.clone(), limit: limits::ARCHIVE_UNPACKED });
        }
    }
    if !found.values().any(|entry| matches!(entry, Found::File { .. })) {
        let empty = io::Error::other("it has no files to deploy");
        return Err(disk("pack", directory, empty));
    }
    let mut archive = write(&found, CompressionMethod::Deflated)?;
    if total > ratio_bound(archive.len()) {
        // It would be taken for a bomb. What is as regular as that is sent as it is.
        archive = write(&found, CompressionMethod::Stored)?;
    }
    if archive.len() > limits::ARCHIVE {
        return Err(ArchiveError::TooLarge { bytes: archive.len() as u64, limit: limits::ARCHIVE as u64 });
    }
    Ok(archive.into())
}

fn write(found: &BTreeMap<String, Found>, method: CompressionMethod) -> Result<Vec<u8>, ArchiveError> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (path, entry) in found {
        let options = SimpleFileOptions::default().compression_method(method).last_modified_time(DateTime::DEFAULT);
        let refused = |error: zip::result::ZipError| ArchiveError::at(path, format!("cannot be packed ({error})"));
        match entry {
            Found::EmptyDirectory => {
                writer.add_directory(path.as_str(), options.unix_permissions(0o755)).map_err(refused)?;
            }
            Found::Link { target } => {
                writer.add_symlink(path.as_str(), target.as_str(), options.unix_permissions(0o777)).map_err(refused)?;
            }
            Found::File { from, executable, bytes } => {
                let mode = if *executable { 0o755 } else { 0o644 };
                writer.start_file(path.as_str(), options.unix_permissions(mode)).map_err(refused)?;
                copy(from, *bytes, &mut writer)?;
            }
        }
    }
    let written = writer
        .finish()
        .map_err(|error| ArchiveError::NotAZip { problem: format!("{error}, while its end was written") })?;
    Ok(written.into_inner())
}

fn copy(path: &Path, bytes: u64, writer: &mut ZipWriter<Cursor<Vec<u8>>>) -> Result<(), ArchiveError> {
    let file = fs::File::open(path).map_err(|source| disk("read", path, source))?;
    let mut reader = file.take(bytes.saturating_add(1));
    let mut buffer = vec![0; 64 * limits::KIB];
    let mut copied = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(|source| disk("read", path, source))?;
        if read == 0 {
            break;
        }
        copied += read as u64;
        writer.write_all(&buffer[..read]).map_err(|source| disk("pack", path, source))?;
    }
    if copied != bytes {
        let changed = io::Error::other("it changed while it was read; try again");
        return Err(disk("read", path, changed));
    }
    Ok(())
}

fn walk(root: &Path, below: &str, ignore: &Ignore, found: &mut BTreeMap<String, Found>) -> Result<(), ArchiveError> {
    let here = root.join(below);
    let entries = fs::read_dir(&here).map_err(|source| disk("read", &here, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| disk("read", &here, source))?;
        let full: PathBuf = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(ArchiveError::at(full.display().to_string(), "has a name that is not UTF-8; rename it"));
        };
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let metadata = fs::symlink_metadata(&full).map_err(|source| disk("read", &full, source))?;
        if ignore.leaves_out(&path, metadata.is_dir()) {
            continue;
        }
        if path.contains('\\') {
            return Err(ArchiveError::at(&path, "has a backslash in its name; rename it"));
        }
        let kind = metadata.file_type();
        if kind.is_dir() {
            let before = found.len();
            walk(root, &path, ignore, found)?;
            if found.len() == before {
                found.insert(path, Found::EmptyDirectory);
            }
            continue;
        }
        let entry = if kind.is_symlink() {
            let target = fs::read_link(&full).map_err(|source| disk("read", &full, source))?;
            let target = target
                .into_os_string()
                .into_string()
                .map_err(|_| ArchiveError::at(&path, "is a link whose target is not UTF-8; put a copy in its place"))?;
            Found::Link { target }
        } else if kind.is_file() {
            let executable = metadata.permissions().mode() & 0o111 != 0;
            Found::File { from: full, executable, bytes: metadata.len() }
        } else {
            return Err(ArchiveError::at(&path, "is neither a file, a directory nor a link; name it in .fluxignore"));
        };
        found.insert(path, entry);
        if found.len() > limits::ARCHIVE_ENTRIES {
            return Err(ArchiveError::TooManyEntries { entries: found.len() as u64, limit: limits::ARCHIVE_ENTRIES });
        }
    }
    Ok(())
}

fn check_links(found: &BTreeMap<String, Found>) -> Result<(), ArchiveError> {
    let links: BTreeMap<String, String> = found
        .iter()
        .filter_map(|(path, entry)| match entry {
            Found::Link { target } => Some((path.clone(), target.clone())),
            _ => None,
        })
        .collect();
    for path in links.keys() {
        resolve(path, &links).map_err(|problem| ArchiveError::at(path, problem))?;
    }
    Ok(())
}

fn disk(attempted: &'static str, path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Disk { attempted, path: path.display().to_string(), source }
}
