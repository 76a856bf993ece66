//! The zip that is a function's code.

use std::io::{Cursor, Write};

use zip::{ZipWriter, write::SimpleFileOptions};

/// A file of an archive.
#[derive(Debug, Clone)]
pub struct File {
    path: String,
    mode: u32,
    bytes: Vec<u8>,
}

impl File {
    /// A file that can be run (0755).
    pub fn executable(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self::with_mode(path, 0o755, bytes)
    }

    /// A file that is only read (0644).
    pub fn plain(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self::with_mode(path, 0o644, bytes)
    }

    pub fn with_mode(path: impl Into<String>, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode, bytes: bytes.into() }
    }
}

/// The files as a zip: the same files give the same bytes, and so the same digest.
pub fn archive(files: &[File]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for file in files {
        let options = SimpleFileOptions::default().unix_permissions(file.mode);
        zip.start_file(file.path.as_str(), options).expect("a path that zip takes");
        zip.write_all(&file.bytes).expect("a write to memory");
    }
    zip.finish().expect("a write to memory").into_inner()
}
