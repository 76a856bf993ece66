//! Reading: every entry is what its name says, and the end is there, or it is an error that says what is wrong.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use flux_protocol::{Digest, limits};
use flux_store::Entry;
use serde::de::DeserializeOwned;

use crate::{BackupError, CODE, Counts, END, End, FORM, HEADER, Header, KEYS, KeyFile, ROWS, chain, nothing};

/// An entry, whose content is what was written.
#[derive(Debug)]
pub enum Piece {
    Header(Header),
    /// See [`Piece::rows`].
    Rows(Vec<u8>),
    Archive(Digest, Vec<u8>),
    Key(KeyFile),
}

impl Piece {
    /// The rows of [`Piece::Rows`].
    ///
    /// # Errors
    /// `Damaged`: they are not rows that this release knows.
    pub fn rows(packed: &[u8]) -> Result<Vec<Entry>, BackupError> {
        let bad = |problem: String| BackupError::Damaged { entry: "a group of rows".to_owned(), problem };
        let most = limits::BACKUP_ROWS_UNPACKED;
        let mut lines = Vec::new();
        let mut unpacked = MultiGzDecoder::new(packed).take(most as u64 + 1);
        unpacked.read_to_end(&mut lines).map_err(|error| bad(format!("cannot be unpacked: {error}")))?;
        if lines.len() > most {
            return Err(bad(format!("has more than the {most} bytes that are taken")));
        }
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(|error| bad(format!("has no row: {error}")))).collect()
    }
}

/// Reads a backup to its end; returns how much was in it, and the archives that it lacks.
///
/// # Errors
/// What is wrong with the file; or what `each` says.
pub fn read(
    from: impl Read,
    mut each: impl FnMut(Piece) -> Result<(), BackupError>,
) -> Result<(Counts, Vec<Digest>), BackupError> {
    let mut archive = tar::Archive::new(from);
    let (mut entries, mut all) = (0, nothing());
    let mut ended = None;
    // Raw: whatever would lead the content of one entry into the name of another is then an entry of an unknown kind.
    for entry in archive.entries().map_err(broken(entries))?.raw(true) {
        let mut entry = entry.map_err(broken(entries))?;
        let name = entry.path().ok().and_then(|path| path.to_str().map(str::to_owned)).unwrap_or_default();
        if ended.is_some() {
            return Err(BackupError::Damaged { entry: name, problem: "comes after the end".to_owned() });
        }
        if entries == 0 && name != HEADER {
            return Err(BackupError::NotABackup { problem: format!("it does not begin with {HEADER}") });
        }
        let kind = Kind::of(&name).filter(|_| entry.header().entry_type() == tar::EntryType::Regular);
        let Some(kind) = kind else {
            return Err(BackupError::Damaged {
                entry: shown(&name),
                problem: "is nothing that a backup has".to_owned(),
            });
        };
        let content = content_of(&mut entry, kind.most(), &name)?;
        let digest = Digest::of(&content);
        if kind.digest().is_some_and(|named| named != digest) {
            return Err(BackupError::Damaged { entry: name, problem: "is not what was written".to_owned() });
        }
        match kind {
            Kind::End(_) => ended = Some(end(&content, entries, all)?),
            Kind::Header if entries > 0 => {
                return Err(BackupError::Damaged { entry: name, problem: "comes twice".to_owned() });
            }
            Kind::Header => each(Piece::Header(header(&content)?))?,
            Kind::Rows(_) => each(Piece::Rows(content))?,
            Kind::Code(digest) => each(Piece::Archive(digest, content))?,
            Kind::Key(_) => each(Piece::Key(json(&content, &name)?))?,
        }
        all = chain(all, &name, digest);
        entries += 1;
    }
    match ended {
        Some(end) => Ok((end.counts, end.missing)),
        None if entries == 0 => Err(BackupError::NotABackup { problem: "it is empty".to_owned() }),
        None => Err(BackupError::CutOff),
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Header,
    Rows(Digest),
    Code(Digest),
    Key(Digest),
    End(Digest),
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        if name == HEADER {
            return Some(Self::Header);
        }
        let (kind, digest) = name.split_once('/')?;
        let digest = format!("sha256:{digest}").parse().ok()?;
        match kind {
            ROWS => Some(Self::Rows(digest)),
            CODE => Some(Self::Code(digest)),
            KEYS => Some(Self::Key(digest)),
            END => Some(Self::End(digest)),
            _ => None,
        }
    }

    const fn digest(self) -> Option<Digest> {
        match self {
            Self::Rows(digest) | Self::Code(digest) | Self::Key(digest) | Self::End(digest) => Some(digest),
            Self::Header => None,
        }
    }

    const fn most(self) -> usize {
        match self {
            Self::Code(_) => limits::ARCHIVE,
            Self::Rows(_) => limits::BACKUP_ROWS_UNPACKED,
            Self::Header | Self::Key(_) => limits::BACKUP_KEY_FILE,
            Self::End(_) => limits::BACKUP_END,
        }
    }
}

/// The content of an entry, as far as the file goes. What its head says of its size is believed only as it comes.
fn content_of(entry: &mut tar::Entry<'_, impl Read>, most: usize, name: &str) -> Result<Vec<u8>, BackupError> {
    let size = entry.size();
    if size > most as u64 {
        let problem = format!("has {size} bytes; at most {most} are taken");
        return Err(BackupError::Damaged { entry: name.to_owned(), problem });
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(|error| broken(1)(error))?;
    if content.len() as u64 == size { Ok(content) } else { Err(BackupError::CutOff) }
}

const CUT: [&str; 2] = ["failed to read entire block", "unexpected EOF"];

/// What an error of the tar's means, after so many entries.
fn broken(entries: u64) -> impl Fn(io::Error) -> BackupError {
    move |error| match error.kind() {
        _ if error.raw_os_error().is_some() => BackupError::Read(error),
        // The error's own words have the file's first bytes in them, which may be anything.
        _ if entries == 0 => BackupError::NotABackup { problem: "it is no archive of tar's".to_owned() },
        io::ErrorKind::UnexpectedEof => BackupError::CutOff,
        // As the tar's reader says that half a head is there, or half of what fills a block up.
        _ if CUT.iter().any(|said| error.to_string().contains(said)) => BackupError::CutOff,
        _ => BackupError::Damaged { entry: "a head".to_owned(), problem: format!("is none: {error}") },
    }
}

fn header(content: &[u8]) -> Result<Header, BackupError> {
    #[derive(serde::Deserialize)]
    struct Form {
        flux_backup: u32,
        #[serde(default)]
        made_by: String,
    }
    let form: Form = json(content, HEADER)?;
    match form.flux_backup {
        0 => Err(BackupError::Damaged { entry: HEADER.to_owned(), problem: "says form 0, which is none".to_owned() }),
        1..=FORM => json(content, HEADER),
        newer => Err(BackupError::Newer { form: newer, by: form.made_by.chars().take(40).collect() }),
    }
}

fn end(content: &[u8], entries: u64, all: Digest) -> Result<End, BackupError> {
    let end: End = json(content, END)?;
    if end.entries != entries || end.all != all {
        let problem = format!("says {} entries, and there are {entries}, or others", end.entries);
        return Err(BackupError::Damaged { entry: END.to_owned(), problem });
    }
    Ok(end)
}

fn json<T: DeserializeOwned>(content: &[u8], name: &str) -> Result<T, BackupError> {
    serde_json::from_slice(content).map_err(|error| BackupError::Damaged {
        entry: name.to_owned(),
        problem: format!("cannot be understood: {error}"),
    })
}

/// A name that may be anything, as it is told.
fn shown(name: &str) -> String {
    format!("`{}`", name.chars().filter(|c| !c.is_control()).take(80).collect::<String>())
}
