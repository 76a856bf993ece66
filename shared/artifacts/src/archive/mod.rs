//! What may be in a deployed archive, reading it, unpacking it, and making one.
//!
//! An archive comes from outside: nothing of it is believed. [`inspect`] judges it whole before anything is
//! kept, and [`unpack`] judges it again, because the machine that unpacks is not the one that was asked first.
//!
//! The format has two lists of its entries, and programs that read different ones see different archives. Here
//! only one reading is possible: the central directory that ends the file exactly, without prefix, gap or
//! overlap. Sizes are checked as declared and enforced while reading.
//!
//! Permissions are reduced to one bit: files are 0644 or 0755, directories 0755. Where no file of an archive is
//! marked executable (zip programs on Windows, and Python's `zipfile.writestr`, mark none), those that begin like
//! a script or an ELF program are.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read, Write},
};

use flux_protocol::{Digest, limits};

mod directory;
mod ignore;
mod pack;
mod plan;
mod unpack;

pub use pack::{pack_dir, pack_with};
pub use unpack::{unpack, unpack_into};

use self::plan::{Kind, Plan, Planned};

/// Why an archive is not taken; each message names the entry and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("this is not a zip archive that can be used: {problem}")]
    NotAZip { problem: String },
    #[error("the archive has {bytes} bytes; at most {limit} are taken: leave out what the function does not need")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("the archive has {entries} entries; at most {limit} are taken: leave out what the function does not need")]
    TooManyEntries { entries: u64, limit: usize },
    #[error(
        "unpacked, the archive has more than {limit} bytes at `{entry}`: leave out what the function does not need"
    )]
    TooMuch { entry: String, limit: u64 },
    #[error(
        "unpacked, the archive is more than {} times its own size at `{entry}`, as only bombs are: leave that file out",
        limits::ARCHIVE_RATIO
    )]
    Bomb { entry: String },
    #[error("`{entry}` {problem}")]
    Entry { entry: String, problem: String },
    #[error("the archive's content is {found}, not {wanted} as it should be: fetch it again")]
    OtherDigest { wanted: Digest, found: Digest },
    #[error("trying to {attempted} {path} failed")]
    Disk {
        attempted: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
}

impl ArchiveError {
    /// The entry that it is about.
    pub fn entry(&self) -> Option<&str> {
        match self {
            Self::Entry { entry, .. } | Self::Bomb { entry } | Self::TooMuch { entry, .. } => Some(entry),
            _ => None,
        }
    }

    /// Whether the disk failed, and not the archive.
    pub const fn is_disk(&self) -> bool {
        matches!(self, Self::Disk { .. })
    }

    fn at(entry: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Entry { entry: entry.into(), problem: problem.into() }
    }
}

/// An archive that was read to its end and found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSummary {
    pub entries: usize,
    pub unpacked_bytes: u64,
    files: BTreeMap<String, FileEntry>,
    links: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileEntry {
    pub bytes: u64,
    /// Whether it will be when unpacked.
    pub executable: bool,
}

impl ArchiveSummary {
    /// The file at a path, links followed: how to see whether a handler is there and can be run.
    pub fn file(&self, path: &str) -> Option<FileEntry> {
        let resolved = plan::resolve(path, &self.links).ok()?;
        self.files.get(&resolved).copied()
    }

    pub fn has_file(&self, path: &str) -> bool {
        self.file(path).is_some()
    }

    /// Whether the file is there and will be executable when unpacked.
    pub fn is_executable(&self, path: &str) -> bool {
        self.file(path).is_some_and(|file| file.executable)
    }

    /// Paths of the files, sorted.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

/// Judges an archive, reading it to its end. Nothing is written. It is work for a thread that may block.
///
/// # Errors
/// The first thing about it that is not taken.
pub fn inspect(archive: &[u8]) -> Result<ArchiveSummary, ArchiveError> {
    let mut plan = Plan::of(archive)?;
    let mut files = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut unpacked_bytes = 0;
    for planned in std::mem::take(&mut plan.entries) {
        match &planned.kind {
            Kind::Directory => {}
            Kind::Link { target } => drop(links.insert(planned.path, target.clone())),
            Kind::File { .. } => {
                let mut start = Start::default();
                let bytes = plan.copy(&planned, &mut start)?;
                unpacked_bytes += bytes;
                let executable = plan.is_executable(&planned, &start);
                files.insert(planned.path, FileEntry { bytes, executable });
            }
        }
    }
    Ok(ArchiveSummary { entries: plan.count, unpacked_bytes, files, links })
}

/// One file's content, such as `flux.yaml`; `None` when there is none of that name.
///
/// # Errors
/// The archive is not taken, as in [`inspect`] but for the content of the other files, or the file has more than
/// `most` bytes.
pub fn read_entry(archive: &[u8], name: &str, most: usize) -> Result<Option<Vec<u8>>, ArchiveError> {
    let mut plan = Plan::of(archive)?;
    let wanted = |planned: &Planned| planned.path == name && matches!(planned.kind, Kind::File { .. });
    let Some(at) = plan.entries.iter().position(wanted) else { return Ok(None) };
    let planned = plan.entries.swap_remove(at);
    if planned.bytes > most as u64 {
        return Err(ArchiveError::at(&planned.path, format!("has {} bytes; at most {most} are read", planned.bytes)));
    }
    let mut content = Vec::new();
    plan.copy(&planned, &mut content)?;
    Ok(Some(content))
}

/// A sink that keeps how a file begins.
#[derive(Default)]
pub(crate) struct Start {
    bytes: [u8; 4],
    kept: usize,
}

impl Start {
    fn is_program(&self) -> bool {
        let start = &self.bytes[..self.kept];
        start.starts_with(b"#!") || start == b"\x7fELF"
    }
}

impl Write for Start {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let more = data.len().min(self.bytes.len() - self.kept);
        self.bytes[self.kept..self.kept + more].copy_from_slice(&data[..more]);
        self.kept += more;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Zip<'a> = zip::ZipArchive<Cursor<&'a [u8]>>;

/// An entry's content from an untrusted archive, never more than `most` bytes.
fn bounded<'a>(reader: impl Read + 'a, most: u64) -> impl Read + 'a {
    reader.take(most)
}
