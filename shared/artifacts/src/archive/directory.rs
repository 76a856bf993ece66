//! The central directory, read strictly and before anything else: how many entries, and what they are called.
//!
//! The zip library keeps about a third of a kilobyte per entry, and forgets all but the last of entries that
//! share a name. So both are looked at here first, on the bytes themselves.

use std::collections::HashSet;

use flux_protocol::limits;

use super::{ArchiveError, plan};

const END: &[u8; 4] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const END64: &[u8; 4] = b"PK\x06\x06";
const END64_BYTES: usize = 56;
const LOCATOR64: &[u8; 4] = b"PK\x06\x07";
const LOCATOR64_BYTES: usize = 20;
const HEADER: &[u8; 4] = b"PK\x01\x02";
const HEADER_BYTES: usize = 46;

/// Checks the directory and returns the number of its entries.
pub(super) fn check(archive: &[u8]) -> Result<usize, ArchiveError> {
    if archive.len() > limits::ARCHIVE {
        return Err(ArchiveError::TooLarge { bytes: archive.len() as u64, limit: limits::ARCHIVE as u64 });
    }
    let end = find_end(archive)?;
    let (entries, start, size, before) = match read_end64(archive, end)? {
        Some(found) => found,
        None => (
            u64::from(u16_at(archive, end + 10)),
            u64::from(u32_at(archive, end + 16)),
            u64::from(u32_at(archive, end + 12)),
            end,
        ),
    };
    if entries > limits::ARCHIVE_ENTRIES as u64 {
        return Err(ArchiveError::TooManyEntries { entries, limit: limits::ARCHIVE_ENTRIES });
    }
    if start.checked_add(size) != Some(before as u64) {
        return Err(not_a_zip(
            "its directory does not end where the archive ends; zip the files anew, without a prefix",
        ));
    }
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    check_names(&archive[start.min(before)..before], entries)
}

fn not_a_zip(problem: &str) -> ArchiveError {
    ArchiveError::NotAZip { problem: problem.to_owned() }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The last end record, which must be followed by its comment and nothing else.
fn find_end(archive: &[u8]) -> Result<usize, ArchiveError> {
    if !archive.starts_with(b"PK") {
        return Err(not_a_zip("it does not begin like one; send the bytes of a .zip file"));
    }
    let truncated = || not_a_zip("its end is missing, so it was cut off on the way; send it again");
    let last = archive.len().checked_sub(END_BYTES).ok_or_else(truncated)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let end = (first..=last).rev().find(|at| archive[*at..].starts_with(END)).ok_or_else(truncated)?;
    if end + END_BYTES + usize::from(u16_at(archive, end + 20)) != archive.len() {
        return Err(not_a_zip("something follows its end; send the .zip file alone"));
    }
    if u16_at(archive, end + 4) != 0 || u16_at(archive, end + 6) != 0 {
        return Err(not_a_zip("it is one part of several; make one archive"));
    }
    Ok(end)
}

/// Entries, start and size of the directory, and where the record begins, of an archive in the 64-bit form.
fn read_end64(archive: &[u8], end: usize) -> Result<Option<(u64, u64, u64, usize)>, ArchiveError> {
    let Some(locator) = end.checked_sub(LOCATOR64_BYTES).filter(|at| archive[*at..].starts_with(LOCATOR64)) else {
        return Ok(None);
    };
    let at = locator.checked_sub(END64_BYTES).filter(|at| archive[*at..].starts_with(END64));
    match at {
        Some(at) if u64_at(archive, locator + 8) == at as u64 && u64_at(archive, at + 4) == END64_BYTES as u64 - 12 => {
            Ok(Some((u64_at(archive, at + 32), u64_at(archive, at + 48), u64_at(archive, at + 40), at)))
        }
        _ => Err(not_a_zip("its 64-bit end record is not where it should be; zip the files anew")),
    }
}

/// Walks the headers: as many as were said, up to the end exactly, each with a name of its own.
fn check_names(mut directory: &[u8], entries: u64) -> Result<usize, ArchiveError> {
    let damaged = || not_a_zip("its directory is damaged; zip the files anew");
    let mut names = HashSet::new();
    for _ in 0..entries {
        if directory.len() < HEADER_BYTES || !directory.starts_with(HEADER) {
            return Err(damaged());
        }
        let name_bytes = usize::from(u16_at(directory, 28));
        let more = name_bytes + usize::from(u16_at(directory, 30)) + usize::from(u16_at(directory, 32));
        let name = directory.get(HEADER_BYTES..HEADER_BYTES + name_bytes).ok_or_else(damaged)?;
        directory = directory.get(HEADER_BYTES + more..).ok_or_else(damaged)?;
        if !names.insert(name) {
            return Err(ArchiveError::at(plan::shown(name), "is in the archive twice; keep one"));
        }
    }
    if !directory.is_empty() {
        return Err(damaged());
    }
    Ok(names.len())
}
