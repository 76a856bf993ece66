//! Writing: one entry after the other, each complete when it is begun.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use flux_protocol::{Digest, Payload, limits};
use flux_store::Entry;
use serde::Serialize;

use crate::{BackupError, CODE, Counts, END, End, HEADER, Header, KEYS, KeyFile, ROWS, chain, nothing};

/// For its owner alone, wherever it is unpacked.
const MODE: u32 = 0o600;

/// A backup that is being written. One that is dropped before its end is cut off, and refused by whoever reads it.
pub struct Writer<W: Write> {
    tar: tar::Builder<W>,
    made_at_seconds: u64,
    entries: u64,
    all: Digest,
    counts: Counts,
    /// Rows that are not written yet.
    lines: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// # Errors
    /// `Write`.
    pub fn begin(out: W, header: &Header) -> Result<Self, BackupError> {
        let made_at_seconds = u64::try_from(header.made_at.as_millis() / 1000).unwrap_or(0);
        let mut writer = Self {
            tar: tar::Builder::new(out),
            made_at_seconds,
            entries: 0,
            all: nothing(),
            counts: Counts::default(),
            lines: Vec::new(),
        };
        writer.entry(HEADER.to_owned(), &json(header)?)?;
        Ok(writer)
    }

    /// # Errors
    /// `Write`.
    pub fn row(&mut self, row: &Entry) -> Result<(), BackupError> {
        count(&mut self.counts, row);
        serde_json::to_writer(&mut self.lines, row).map_err(|error| BackupError::Write(error.into()))?;
        self.lines.push(b'\n');
        if self.lines.len() >= limits::BACKUP_ROWS { self.flush_rows() } else { Ok(()) }
    }

    /// # Errors
    /// `Write`.
    pub fn archive(&mut self, digest: Digest, content: &[u8]) -> Result<(), BackupError> {
        self.flush_rows()?;
        self.counts.archives += 1;
        self.entry(format!("{CODE}/{}", digest.hex()), content)
    }

    /// # Errors
    /// `Write`.
    pub fn key(&mut self, file: &KeyFile) -> Result<(), BackupError> {
        self.flush_rows()?;
        self.counts.key_files += 1;
        self.named_by_digest(KEYS, &json(file)?)
    }

    /// Says that this was all. `missing`: archives that versions name, and that there are none of.
    ///
    /// # Errors
    /// `Write`.
    pub fn end(mut self, missing: Vec<Digest>) -> Result<(Counts, W), BackupError> {
        self.flush_rows()?;
        let counts = self.counts;
        let end = End { entries: self.entries, all: self.all, counts, missing };
        self.named_by_digest(END, &json(&end)?)?;
        let mut out = self.tar.into_inner().map_err(BackupError::Write)?;
        out.flush().map_err(BackupError::Write)?;
        Ok((counts, out))
    }

    fn flush_rows(&mut self) -> Result<(), BackupError> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.lines);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let packed = packed.write_all(&lines).and_then(|()| packed.finish()).map_err(BackupError::Write)?;
        self.named_by_digest(ROWS, &packed)
    }

    fn named_by_digest(&mut self, kind: &str, content: &[u8]) -> Result<(), BackupError> {
        self.entry(format!("{kind}/{}", Digest::of(content).hex()), content)
    }

    fn entry(&mut self, name: String, content: &[u8]) -> Result<(), BackupError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(MODE);
        header.set_mtime(self.made_at_seconds);
        self.tar.append_data(&mut header, &name, content).map_err(BackupError::Write)?;
        self.entries += 1;
        self.all = chain(self.all, &name, Digest::of(content));
        Ok(())
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, BackupError> {
    serde_json::to_vec(value).map_err(|error| BackupError::Write(io::Error::from(error)))
}

fn count(counts: &mut Counts, row: &Entry) {
    match row {
        Entry::Function(head) if head.current.is_some() => counts.functions += 1,
        Entry::Version(_) => counts.versions += 1,
        Entry::Execution(record) => {
            counts.executions += 1;
            counts.open += u64::from(!record.is_terminal());
            let output = record.outcome.as_ref().is_some_and(|outcome| outcome.output_ref.is_some());
            let payload = record.invocation.as_ref().is_some_and(|kept| matches!(kept.payload, Payload::Blob(_)));
            counts.beside += u64::from(output || payload);
        }
        Entry::ApiKey(_) => counts.keys += 1,
        Entry::Secret(_) => counts.secrets += 1,
        Entry::Function(_) | Entry::Idempotency(_) | Entry::Audit(_) | Entry::SharedKey(_) => {}
    }
}
