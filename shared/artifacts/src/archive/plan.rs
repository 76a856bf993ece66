//! What unpacking an archive would do, decided from its directory before anything is written.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{Cursor, Read as _, Write},
};

use flux_protocol::limits;
use zip::{CompressionMethod, System, result::ZipError};

use super::{ArchiveError, Start, Zip, bounded, directory};

/// Longest name of an entry, and of one component of it (what file systems take).
const NAME_BYTES: usize = 1024;
const COMPONENT_BYTES: usize = 255;
const LINK_BYTES: u64 = 1024;
/// Links followed from one path before it counts as a circle, as Linux has it.
const LINK_HOPS: usize = 40;
/// Below this size nobody looks at the ratio: a page of zeros is not a bomb.
const RATIO_MATTERS_FROM: u64 = 16 * limits::MIB as u64;

const TYPE_BITS: u32 = 0o170_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_LINK: u32 = 0o120_000;
const SET_ID_BITS: u32 = 0o6000;

pub(super) struct Plan<'a> {
    zip: Zip<'a>,
    pub(super) entries: Vec<Planned>,
    pub(super) count: usize,
    /// Whether any file says that it is executable; without one the contents are asked.
    modes_tell: bool,
    /// Unpacked bytes that may still come.
    left_bytes: u64,
    ratio_bound: u64,
    total: u64,
}

pub(super) struct Planned {
    index: usize,
    /// Relative, with `/` between components, without `.` and `..`.
    pub(super) path: String,
    pub(super) kind: Kind,
    /// As declared, and enforced.
    pub(super) bytes: u64,
}

pub(super) enum Kind {
    Directory,
    File { executable: bool },
    Link { target: String },
}

impl<'a> Plan<'a> {
    pub(super) fn of(archive: &'a [u8]) -> Result<Self, ArchiveError> {
        let count = directory::check(archive)?;
        let mut zip = Zip::new(Cursor::new(archive)).map_err(|error| unreadable(&error))?;
        if zip.len() != count || zip.offset() != 0 {
            return Err(ArchiveError::NotAZip {
                problem: "its directory can be read in two ways; zip the files anew".into(),
            });
        }
        if zip.has_overlapping_entries().map_err(|error| unreadable(&error))? {
            return Err(ArchiveError::NotAZip { problem: "its entries overlap; zip the files anew".into() });
        }
        let mut plan = Self {
            zip,
            entries: Vec::with_capacity(count),
            count,
            modes_tell: false,
            left_bytes: limits::ARCHIVE_UNPACKED,
            ratio_bound: ratio_bound(archive.len()),
            total: 0,
        };
        let mut declared = 0_u64;
        for index in 0..count {
            let planned = plan.judge(index)?;
            declared = declared.saturating_add(planned.bytes);
            plan.check_total(declared, &planned.path)?;
            plan.modes_tell |= matches!(planned.kind, Kind::File { executable: true });
            plan.entries.push(planned);
        }
        if !plan.entries.iter().any(|entry| matches!(entry.kind, Kind::File { .. })) {
            return Err(ArchiveError::NotAZip { problem: "it has no files; zip the function's files".to_owned() });
        }
        check_tree(&plan.entries)?;
        Ok(plan)
    }

    fn check_total(&self, total: u64, entry: &str) -> Result<(), ArchiveError> {
        if total > limits::ARCHIVE_UNPACKED {
            return Err(ArchiveError::TooMuch { entry: entry.to_owned(), limit: limits::ARCHIVE_UNPACKED });
        }
        if total > self.ratio_bound {
            return Err(ArchiveError::Bomb { entry: entry.to_owned() });
        }
        Ok(())
    }

    fn judge(&mut self, index: usize) -> Result<Planned, ArchiveError> {
        let entry = self.zip.by_index_data(index).map_err(|error| unreadable(&error))?;
        let raw = entry.name_raw();
        let is_directory = raw.ends_with(b"/");
        let path = safe_path(raw)?;
        let at = |problem: &str| ArchiveError::at(&path, problem);
        if entry.encrypted() {
            return Err(at("is encrypted; zip it without a password, and keep secrets out of the archive"));
        }
        match entry.compression() {
            CompressionMethod::Stored | CompressionMethod::Deflated => {}
            _ => return Err(at("is compressed in a way that is not taken; zip it with deflate, the usual way")),
        }
        let bytes = entry.size();
        let mode = match entry.system() {
            System::Unix | System::OsDarwin => entry.external_attributes() >> 16,
            _ => 0,
        };
        let kind = match (mode & TYPE_BITS, is_directory) {
            (0 | TYPE_DIRECTORY, true) => Kind::Directory,
            (0 | TYPE_FILE, false) if mode & SET_ID_BITS != 0 => {
                return Err(at("is setuid or setgid; remove those bits (chmod ug-s)"));
            }
            (0 | TYPE_FILE, false) => Kind::File { executable: mode & 0o111 != 0 },
            (TYPE_LINK, false) => Kind::Link { target: self.link_target(index, &path, bytes)? },
            _ => return Err(at("is neither a file, a directory nor a link (a device, FIFO or socket?); leave it out")),
        };
        if matches!(kind, Kind::Directory) && bytes != 0 {
            return Err(at("is a directory with content; zip the files anew"));
        }
        Ok(Planned { index, path, kind, bytes })
    }

    fn link_target(&mut self, index: usize, path: &str, bytes: u64) -> Result<String, ArchiveError> {
        if bytes > LINK_BYTES {
            return Err(ArchiveError::at(path, format!("is a link whose target is longer than {LINK_BYTES} bytes")));
        }
        let entry = self.zip.by_index(index).map_err(|error| broken(path, &error))?;
        let mut target = Vec::new();
        bounded(entry, LINK_BYTES + 1).read_to_end(&mut target).map_err(|error| broken(path, &error))?;
        if target.len() as u64 != bytes {
            return Err(lies(path));
        }
        String::from_utf8(target)
            .ok()
            .filter(|target| !target.is_empty() && !target.contains('\0'))
            .ok_or_else(|| ArchiveError::at(path, "is a link whose target is not a path; make the link anew"))
    }

    /// Copies a file's content into `sink`, held to what was declared. Returns its bytes.
    pub(super) fn copy(&mut self, planned: &Planned, sink: &mut impl Write) -> Result<u64, ArchiveError> {
        let path = &planned.path;
        let entry = self.zip.by_index(planned.index).map_err(|error| broken(path, &error))?;
        // One byte more than declared, to see the lie; the library checks the checksum at the end.
        let mut reader = bounded(entry, planned.bytes.saturating_add(1).min(self.left_bytes.saturating_add(1)));
        let mut copied = 0_u64;
        let mut buffer = vec![0; 64 * limits::KIB];
        loop {
            let read = reader.read(&mut buffer).map_err(|error| broken(path, &error))?;
            if read == 0 {
                break;
            }
            copied += read as u64;
            if copied > planned.bytes {
                return Err(lies(path));
            }
            sink.write_all(&buffer[..read]).map_err(|source| ArchiveError::Disk {
                attempted: "write",
                path: path.clone(),
                source,
            })?;
        }
        drop(reader);
        if copied != planned.bytes {
            return Err(lies(path));
        }
        self.total = self.total.saturating_add(copied);
        self.left_bytes = self.left_bytes.saturating_sub(copied);
        self.check_total(self.total, path)?;
        Ok(copied)
    }

    pub(super) fn is_executable(&self, planned: &Planned, start: &Start) -> bool {
        match planned.kind {
            Kind::File { executable } if self.modes_tell => executable,
            Kind::File { .. } => start.is_program(),
            Kind::Directory | Kind::Link { .. } => false,
        }
    }
}

/// What an archive of so many bytes may be when unpacked, before it counts as a bomb.
pub(super) fn ratio_bound(archive_bytes: usize) -> u64 {
    (archive_bytes as u64).saturating_mul(limits::ARCHIVE_RATIO).max(RATIO_MATTERS_FROM)
}

fn unreadable(error: &ZipError) -> ArchiveError {
    ArchiveError::NotAZip { problem: format!("{error}; zip the files anew") }
}

fn broken(path: &str, error: &dyn std::error::Error) -> ArchiveError {
    ArchiveError::at(path, format!("cannot be read ({error}); zip the files anew, and send the archive again"))
}

fn lies(path: &str) -> ArchiveError {
    ArchiveError::at(path, "has another size than the archive says; zip the files anew")
}

/// A name for messages: shortened, without what a terminal would act on.
pub(super) fn shown(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    text.chars().take(120).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The path that an entry is unpacked to, relative to the root.
fn safe_path(raw: &[u8]) -> Result<String, ArchiveError> {
    let at = |problem: &str| ArchiveError::at(shown(raw), problem);
    if raw.len() > NAME_BYTES {
        return Err(at("has a name of more than 1024 bytes; shorten it"));
    }
    let name = std::str::from_utf8(raw).map_err(|_| at("has a name that is not UTF-8; rename it"))?;
    if name.contains('\0') {
        return Err(at("has a NUL byte in its name; rename it"));
    }
    // A terminal would act on it, and a log take it for a line of its own.
    if name.chars().any(char::is_control) {
        return Err(at("has a control character in its name; rename it"));
    }
    if name.contains('\\') {
        return Err(at("has a backslash in its name; zip the files with a program that writes `/`"));
    }
    if name.starts_with('/') {
        return Err(at("has an absolute path; zip the files by relative paths"));
    }
    let mut path = String::with_capacity(name.len());
    for component in name.strip_suffix('/').unwrap_or(name).split('/') {
        match component {
            ".." => return Err(at("has `..` in its path; zip the files from inside their directory")),
            "" => return Err(at("has an empty component in its path; rename it")),
            "." => continue,
            long if long.len() > COMPONENT_BYTES => {
                return Err(at("has a component of more than 255 bytes in its path; shorten it"));
            }
            _ => {}
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(component);
    }
    if path.is_empty() {
        return Err(at("has no name; zip the files themselves"));
    }
    Ok(path)
}

/// The checks that need all entries: each path once, nothing below a file or link, and links that stay inside.
fn check_tree(entries: &[Planned]) -> Result<(), ArchiveError> {
    let mut paths = BTreeSet::new();
    let mut leaves = BTreeSet::new();
    let mut links = BTreeMap::new();
    for entry in entries {
        if !paths.insert(entry.path.as_str()) {
            return Err(ArchiveError::at(&entry.path, "is in the archive twice; keep one"));
        }
        if let Kind::Link { target } = &entry.kind {
            links.insert(entry.path.clone(), target.clone());
        }
        if !matches!(entry.kind, Kind::Directory) {
            leaves.insert(entry.path.as_str());
        }
    }
    for entry in entries {
        let above = entry.path.match_indices('/').map(|(at, _)| &entry.path[..at]);
        if let Some(leaf) = above.into_iter().find(|above| leaves.contains(above)) {
            let what = if links.contains_key(leaf) { "a link" } else { "a file" };
            return Err(ArchiveError::at(&entry.path, format!("lies below `{leaf}`, which is {what}; rename one")));
        }
    }
    for path in links.keys() {
        resolve(path, &links).map_err(|problem| ArchiveError::at(path, problem))?;
    }
    Ok(())
}

/// Where a path ends when all links on its way are followed; an error when it leaves the archive.
pub(super) fn resolve(path: &str, links: &BTreeMap<String, String>) -> Result<String, &'static str> {
    const OUTSIDE: &str = "is a link to something outside of the archive; put a copy in its place";
    let mut ahead: VecDeque<String> = path.split('/').map(str::to_owned).collect();
    let mut behind: Vec<String> = Vec::new();
    let mut hops = 0;
    while let Some(component) = ahead.pop_front() {
        match component.as_str() {
            "" | "." => continue,
            ".." => {
                behind.pop().ok_or(OUTSIDE)?;
                continue;
            }
            _ => behind.push(component),
        }
        let Some(target) = links.get(&behind.join("/")) else { continue };
        hops += 1;
        if hops > LINK_HOPS {
            return Err("is a link that leads back to itself; remove it");
        }
        if target.starts_with('/') {
            return Err(OUTSIDE);
        }
        behind.pop();
        for component in target.split('/').rev() {
            ahead.push_front(component.to_owned());
        }
    }
    Ok(behind.join("/"))
}
