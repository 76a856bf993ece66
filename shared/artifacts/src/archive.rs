//! Reading a zip that a stranger made. Everything is checked before anything is written: names, kinds of entries,
//! counts, sizes as declared, and then again sizes as they come out, since a header may lie.

use std::{
    collections::{HashMap, HashSet},
    io::{Cursor, Read},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use flux_protocol::limits;

use crate::error::{ArchiveError, ArtifactError};

/// What an archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSummary {
    pub files: usize,
    pub unpacked_bytes: u64,
    executables: HashSet<String>,
    names: HashSet<String>,
}

impl ArchiveSummary {
    pub fn has_file(&self, name: &str) -> bool {
        self.names.contains(normal(name))
    }

    /// Whether the file will be executable once it is unpacked.
    pub fn is_executable(&self, name: &str) -> bool {
        self.executables.contains(normal(name))
    }

    /// The names of all files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

fn normal(name: &str) -> &str {
    name.trim_start_matches("./")
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    File { executable: bool },
    Link { target: String },
}

struct Entry {
    index: usize,
    name: String,
    kind: Kind,
    size: u64,
}

/// Checks a whole archive without writing anything.
///
/// # Errors
/// It is no zip, passes a limit, or has an entry that could reach outside its folder.
pub fn inspect(archive: &[u8]) -> Result<ArchiveSummary, ArchiveError> {
    let mut zip = open(archive)?;
    let entries = read_entries(&mut zip)?;
    let mut summary =
        ArchiveSummary { files: 0, unpacked_bytes: 0, executables: HashSet::new(), names: HashSet::new() };
    for entry in &entries {
        summary.unpacked_bytes += entry.size;
        if let Kind::File { executable } = &entry.kind {
            summary.files += 1;
            if *executable {
                summary.executables.insert(entry.name.clone());
            }
        }
        if entry.kind != Kind::Directory {
            summary.names.insert(entry.name.clone());
        }
    }
    if summary.files == 0 {
        return Err(ArchiveError::NotZip { problem: "it has no files".to_owned() });
    }
    Ok(summary)
}

/// One file's content, at most `most` bytes; `None` when there is none of that name.
///
/// # Errors
/// As [`inspect`], or the file is larger.
pub fn read_entry(archive: &[u8], name: &str, most: usize) -> Result<Option<Vec<u8>>, ArchiveError> {
    let mut zip = open(archive)?;
    let entries = read_entries(&mut zip)?;
    let Some(entry) =
        entries.iter().find(|entry| entry.name == normal(name) && matches!(entry.kind, Kind::File { .. }))
    else {
        return Ok(None);
    };
    if entry.size > most as u64 {
        return Err(ArchiveError::entry(name, format!("has {} bytes; at most {most} are read", entry.size)));
    }
    let mut content = Vec::new();
    copy_checked(&mut zip, entry, &mut content, most as u64)?;
    Ok(Some(content))
}

/// Unpacks into `destination`, which must not exist, through a temporary folder beside it and one rename: a folder
/// that is there is whole.
///
/// # Errors
/// As [`inspect`], or the disk refuses.
pub fn unpack(archive: &[u8], destination: &Path) -> Result<u64, ArtifactError> {
    let mut zip = open(archive)?;
    let entries = read_entries(&mut zip)?;
    let parent = destination.parent().unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new()
        .prefix(crate::cache::STAGING)
        .tempdir_in(parent)
        .map_err(|source| ArtifactError::file("cannot make a folder in", parent, source))?;
    let root = staging.path();
    set_mode(root, 0o755)?;
    let mut unpacked = 0;
    // Links last: nothing is ever written through one.
    for entry in entries.iter().filter(|entry| !matches!(entry.kind, Kind::Link { .. })) {
        let path = root.join(&entry.name);
        match &entry.kind {
            Kind::Directory => make_directories(root, &path)?,
            Kind::File { executable } => {
                make_directories(root, path.parent().unwrap_or(root))?;
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .map_err(|source| ArtifactError::file("cannot create", &path, source))?;
                unpacked += copy_checked(&mut zip, entry, &mut file, limits::ARCHIVE_UNPACKED - unpacked)?;
                set_mode(&path, if *executable { 0o755 } else { 0o644 })?;
            }
            Kind::Link { .. } => {}
        }
    }
    for entry in &entries {
        if let Kind::Link { target } = &entry.kind {
            let path = root.join(&entry.name);
            make_directories(root, path.parent().unwrap_or(root))?;
            symlink(target, &path).map_err(|source| ArtifactError::file("cannot link", &path, source))?;
        }
    }
    let staged = staging.keep();
    std::fs::rename(&staged, destination).map_err(|source| {
        let _ = std::fs::remove_dir_all(&staged);
        ArtifactError::file("cannot rename the unpacked folder to", destination, source)
    })?;
    Ok(unpacked)
}

fn open(archive: &[u8]) -> Result<zip::ZipArchive<Cursor<&[u8]>>, ArchiveError> {
    if archive.len() > limits::ARCHIVE {
        return Err(ArchiveError::TooLarge { size: archive.len() as u64, limit: limits::ARCHIVE as u64 });
    }
    let zip = zip::ZipArchive::new(Cursor::new(archive))
        .map_err(|error| ArchiveError::NotZip { problem: error.to_string() })?;
    if zip.len() > limits::ARCHIVE_ENTRIES {
        return Err(ArchiveError::TooManyEntries { entries: zip.len(), limit: limits::ARCHIVE_ENTRIES });
    }
    Ok(zip)
}

const KIND_MASK: u32 = 0o170_000;

fn read_entries(zip: &mut zip::ZipArchive<Cursor<&[u8]>>) -> Result<Vec<Entry>, ArchiveError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(zip.len());
    let mut total = 0_u64;
    // A zip made without Unix modes cannot say what is executable: then the content does.
    let mut modeless = Vec::new();
    for index in 0..zip.len() {
        let file = zip.by_index(index).map_err(|error| damaged(&format!("entry {index}"), error.to_string()))?;
        let raw = std::str::from_utf8(file.name_raw())
            .map_err(|_| ArchiveError::entry(&format!("entry {index}"), "has a name that is not UTF-8; rename it"))?
            .to_owned();
        let name = safe_name(&raw)?;
        if file.encrypted() {
            return Err(ArchiveError::entry(&raw, "is encrypted; make the archive without a password"));
        }
        total = total.saturating_add(file.size());
        if total > limits::ARCHIVE_UNPACKED {
            return Err(ArchiveError::UnpacksTooLarge { entry: raw, limit: limits::ARCHIVE_UNPACKED });
        }
        // Small files compress as they like; a bomb needs bulk.
        if file.size() > limits::MIB as u64 && file.size() / file.compressed_size().max(1) > limits::ARCHIVE_RATIO {
            return Err(ArchiveError::Ratio { entry: raw, ratio: limits::ARCHIVE_RATIO });
        }
        let mode = file.unix_mode().filter(|mode| *mode != 0);
        let size = file.size();
        let kind = match mode.map_or(0, |mode| mode & KIND_MASK) {
            _ if raw.ends_with('/') => Kind::Directory,
            0 | 0o100_000 => {
                let bits = mode.unwrap_or(0);
                if bits & 0o7000 != 0 {
                    return Err(ArchiveError::entry(
                        &raw,
                        "has setuid, setgid or sticky bits; remove them with chmod 755",
                    ));
                }
                if mode.is_none() {
                    modeless.push(entries.len());
                }
                Kind::File { executable: bits & 0o111 != 0 }
            }
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Link { target: String::new() },
            _ => {
                return Err(ArchiveError::entry(
                    &raw,
                    "is a device, pipe or socket; only files, folders and links are taken",
                ));
            }
        };
        if name.is_empty() {
            if kind == Kind::Directory {
                continue;
            }
            return Err(ArchiveError::entry(&raw, "has an empty name"));
        }
        drop(file);
        entries.push(Entry { index, name, kind, size });
    }
    for at in modeless {
        let head = read_head(zip, entries[at].index);
        entries[at].kind = Kind::File { executable: head.starts_with(b"#!") || head.starts_with(b"\x7fELF") };
    }
    read_links(zip, &mut entries)?;
    check_tree(&entries)?;
    Ok(entries)
}

fn damaged(entry: &str, problem: String) -> ArchiveError {
    ArchiveError::Damaged { entry: entry.chars().take(200).collect(), problem }
}

/// The name with `./` and a trailing `/` taken off, if it stays below its folder.
fn safe_name(raw: &str) -> Result<String, ArchiveError> {
    let name = normal(raw).trim_end_matches('/');
    let problem = if raw.len() > 1024 {
        Some("has a name of more than 1024 bytes")
    } else if raw.starts_with('/') {
        Some("has an absolute path; make the archive from inside the folder")
    } else if raw.contains('\\') || raw.contains('\0') {
        Some("has a backslash or NUL in its name; use `/` between folders")
    } else if name.split('/').any(|part| part == "..") {
        Some("reaches outside with `..`; make the archive from inside the folder")
    } else if !name.is_empty() && name.split('/').any(|part| part.is_empty() || part == "." || part.len() > 255) {
        Some("has an empty, `.` or overlong part in its path")
    } else {
        None
    };
    match problem {
        Some(problem) => Err(ArchiveError::entry(raw, problem)),
        None => Ok(name.to_owned()),
    }
}

fn read_head(zip: &mut zip::ZipArchive<Cursor<&[u8]>>, index: usize) -> Vec<u8> {
    let mut head = Vec::new();
    if let Ok(file) = zip.by_index(index) {
        // What cannot be read here fails when it is unpacked, with its reason.
        let _ = file.take(4).read_to_end(&mut head);
    }
    head
}

fn read_links(zip: &mut zip::ZipArchive<Cursor<&[u8]>>, entries: &mut [Entry]) -> Result<(), ArchiveError> {
    for entry in entries.iter_mut() {
        if !matches!(entry.kind, Kind::Link { .. }) {
            continue;
        }
        let mut target = Vec::new();
        if entry.size > 1024 {
            return Err(ArchiveError::entry(&entry.name, "is a link with a target of more than 1024 bytes"));
        }
        copy_checked(zip, entry, &mut target, 1024)?;
        let target = String::from_utf8(target)
            .map_err(|_| ArchiveError::entry(&entry.name, "is a link to a name that is not UTF-8"))?;
        // Where the link points, counted from the folder it lies in.
        let mut depth = entry.name.split('/').count() - 1;
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| ArchiveError::entry(&entry.name, "is a link that points outside the archive"))?;
                }
                _ => depth += 1,
            }
        }
        if target.starts_with('/') || target.is_empty() || target.contains('\0') {
            return Err(ArchiveError::entry(
                &entry.name,
                "is a link that points outside the archive; make it relative",
            ));
        }
        entry.kind = Kind::Link { target };
    }
    Ok(())
}

/// No name twice, and nothing below a file or a link.
fn check_tree(entries: &[Entry]) -> Result<(), ArchiveError> {
    let mut kinds: HashMap<&str, &Kind> = HashMap::with_capacity(entries.len());
    for entry in entries {
        let before = kinds.insert(&entry.name, &entry.kind);
        if before.is_some_and(|kind| *kind != Kind::Directory || entry.kind != Kind::Directory) {
            return Err(ArchiveError::entry(&entry.name, "is in the archive twice"));
        }
    }
    for entry in entries {
        let mut above = entry.name.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if kinds.get(parent).is_some_and(|kind| **kind != Kind::Directory) {
                return Err(ArchiveError::entry(&entry.name, format!("lies below `{parent}`, which is not a folder")));
            }
            above = parent;
        }
        // A link may pass through other links; each stays inside by itself, but two together may not.
        if let Kind::Link { target } = &entry.kind {
            let mut place: Vec<&str> = entry.name.split('/').collect();
            place.pop();
            let parts: Vec<&str> = target.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
            for (at, part) in parts.iter().enumerate() {
                if *part == ".." {
                    place.pop();
                } else {
                    place.push(part);
                }
                let passes =
                    at + 1 < parts.len() && matches!(kinds.get(place.join("/").as_str()), Some(Kind::Link { .. }));
                if passes {
                    return Err(ArchiveError::entry(&entry.name, "is a link that passes through another link"));
                }
            }
        }
    }
    Ok(())
}

/// Copies one entry out, never more than it declares, than `most`, or than the ratio allows.
fn copy_checked(
    zip: &mut zip::ZipArchive<Cursor<&[u8]>>,
    entry: &Entry,
    out: &mut impl std::io::Write,
    most: u64,
) -> Result<u64, ArchiveError> {
    let file = zip.by_index(entry.index).map_err(|error| damaged(&entry.name, error.to_string()))?;
    let limit = entry.size.min(most);
    let copied =
        std::io::copy(&mut file.take(limit + 1), out).map_err(|error| damaged(&entry.name, error.to_string()))?;
    if copied > most {
        return Err(ArchiveError::UnpacksTooLarge { entry: entry.name.clone(), limit: limits::ARCHIVE_UNPACKED });
    }
    if copied != entry.size {
        return Err(damaged(&entry.name, format!("it declares {} bytes and has another number", entry.size)));
    }
    Ok(copied)
}

fn make_directories(root: &Path, path: &Path) -> Result<(), ArtifactError> {
    let Ok(relative) = path.strip_prefix(root) else { return Ok(()) };
    let mut at = PathBuf::from(root);
    for part in relative {
        at.push(part);
        match std::fs::create_dir(&at) {
            Ok(()) => set_mode(&at, 0o755)?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(ArtifactError::file("cannot make the folder", &at, source)),
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ArtifactError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|source| ArtifactError::file("cannot set the mode of", path, source))
}
