//! From an archive to a directory, whole or not at all.

use std::{
    fs,
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use flux_protocol::Digest;

use super::{
    ArchiveError, Start,
    plan::{Kind, Plan},
};

/// Unpacks an archive into `destination`, which must not exist: into a directory beside it, renamed when it is
/// complete. Returns the bytes that the files have. Another process that was first is as good.
///
/// # Errors
/// The archive's digest is another, it is not taken, or the disk fails; nothing is left then.
pub fn unpack(archive: &[u8], digest: Digest, destination: &Path) -> Result<u64, ArchiveError> {
    let parent = destination.parent().unwrap_or_else(|| Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".unpack-")
        .tempdir_in(parent)
        .map_err(|source| disk("make a directory in", parent, source))?;
    let bytes = unpack_into(archive, digest, temporary.path())?;
    match fs::rename(temporary.path(), destination) {
        Ok(()) => {
            // It has another name now, under which nothing must remove it.
            let _ = temporary.keep();
            Ok(bytes)
        }
        Err(_) if destination.is_dir() => Ok(bytes),
        Err(source) => Err(disk("make", destination, source)),
    }
}

/// Unpacks an archive into `directory`, which must be there and empty, and gives it mode 0755.
///
/// # Errors
/// As [`unpack`], but what was written stays.
pub fn unpack_into(archive: &[u8], digest: Digest, directory: &Path) -> Result<u64, ArchiveError> {
    let found = Digest::of(archive);
    if found != digest {
        return Err(ArchiveError::OtherDigest { wanted: digest, found });
    }
    let mut plan = Plan::of(archive)?;
    set_mode(directory, 0o755)?;
    let mut total = 0;
    let mut links = Vec::new();
    for planned in std::mem::take(&mut plan.entries) {
        let path = directory.join(&planned.path);
        match &planned.kind {
            Kind::Directory => make_directories(directory, &path)?,
            // Last, so that nothing can be written through one whatever the plan missed.
            Kind::Link { target } => links.push((path, target.clone())),
            Kind::File { .. } => {
                if let Some(parent) = path.parent() {
                    make_directories(directory, parent)?;
                }
                let file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(|source| disk("make", &path, source))?;
                let mut sink = Sink { file: BufWriter::with_capacity(64 * 1024, file), start: Start::default() };
                total += plan.copy(&planned, &mut sink)?;
                let mode = if plan.is_executable(&planned, &sink.start) { 0o755 } else { 0o644 };
                let file = sink.file.into_inner().map_err(|error| disk("write", &path, error.into_error()))?;
                file.set_permissions(fs::Permissions::from_mode(mode))
                    .map_err(|source| disk("set the mode of", &path, source))?;
            }
        }
    }
    for (path, target) in links {
        if let Some(parent) = path.parent() {
            make_directories(directory, parent)?;
        }
        symlink(&target, &path).map_err(|source| disk("make", &path, source))?;
    }
    Ok(total)
}

/// A file being written, and how it began.
struct Sink {
    file: BufWriter<fs::File>,
    start: Start,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.start.write_all(&data[..written])?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes what is missing between `root` and `path`, each with mode 0755 whatever the umask.
fn make_directories(root: &Path, path: &Path) -> Result<(), ArchiveError> {
    if path == root || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directories(root, parent)?;
    }
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => set_mode(path, 0o755),
        Err(source) => Err(disk("make", path, source)),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ArchiveError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|source| disk("set the mode of", path, source))
}

fn disk(attempted: &'static str, path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Disk { attempted, path: path.display().to_string(), source }
}
