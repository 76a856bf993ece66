//! The cache's directory, which several agents may share.
//!
//! ```text
//!   <dir>/.lock                 held while starting, and for the moment in which a directory is made
//!   <dir>/.boot                 the boot in which the directories below were written
//!   <dir>/.unpack-…, .gone-…    being made, being deleted; of nobody once its lock is free
//!   <dir>/<hex>/bytes           what its files have in all
//!   <dir>/<hex>/code/…          the archive's files
//! ```
//!
//! Whoever uses a `<hex>` directory holds a shared lock on it (flock, so it ends with the process); whoever
//! deletes it holds an exclusive one. Files are not synced when they are unpacked, which would take longer than
//! unpacking; instead everything from before the machine's last start is thrown away, as it may have lost power.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use flux_protocol::Digest;

use super::{CacheError, CodeDir};
use crate::archive;

const UNPACKING: &str = ".unpack-";
const GONE: &str = ".gone-";
/// Tries to put an unpacked directory into its place while other agents come and go there.
const RENAMES: usize = 100;

/// A shared lock on a directory that is in use; free when dropped.
#[derive(Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "held for its lock")] File);

#[derive(Debug, Clone)]
pub(super) struct Disk {
    directory: Arc<Path>,
}

impl Disk {
    /// Makes the directory ready. Returns the digests that lie there whole, oldest first, with their bytes.
    pub(super) fn open(directory: PathBuf) -> Result<(Self, Vec<(Digest, u64)>), CacheError> {
        let disk = Self { directory: directory.into() };
        let found = disk.start().map_err(|source| disk.failed(source))?;
        Ok((disk, found))
    }

    fn failed(&self, source: io::Error) -> CacheError {
        CacheError::Disk { directory: self.directory.display().to_string(), source: Arc::new(source) }
    }

    pub(super) async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, CacheError> {
        let disk = self.clone();
        let joined = tokio::task::spawn_blocking(move || work(&disk)).await;
        joined.map_err(|error| self.failed(io::Error::other(error)))?
    }

    fn start(&self) -> io::Result<Vec<(Digest, u64)>> {
        fs::create_dir_all(&self.directory)?;
        // Functions run as another user and read their code through it.
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o755))?;
        let lock = self.lock_file()?;
        lock.lock()?;
        let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot_file = self.directory.join(".boot");
        let same_boot = fs::read(&boot_file).is_ok_and(|found| found == boot);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(UNPACKING) || name.starts_with(GONE) {
                remove_unused(&entry.path());
            } else if let Ok(digest) = format!("sha256:{name}").parse::<Digest>() {
                match read_bytes(&entry.path()) {
                    Some(bytes) if same_boot => found.push((entry.metadata()?.mtime(), digest, bytes)),
                    _ => remove_unused(&entry.path()),
                }
            }
        }
        if !same_boot {
            fs::write(boot_file, boot)?;
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, digest, bytes)| (digest, bytes)).collect())
    }

    fn lock_file(&self) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).open(self.directory.join(".lock"))
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// The code if it lies there whole; it is locked then.
    pub(super) fn find(&self, digest: Digest) -> Result<Option<CodeDir>, CacheError> {
        self.hold(digest).map_err(|source| self.failed(source))
    }

    fn hold(&self, digest: Digest) -> io::Result<Option<CodeDir>> {
        let path = self.path(digest);
        loop {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            file.lock_shared()?;
            // Between opening and locking another agent may have moved it away to delete it.
            let held = file.metadata()?;
            let same = |there: fs::Metadata| there.dev() == held.dev() && there.ino() == held.ino();
            if !fs::metadata(&path).is_ok_and(same) {
                continue;
            }
            let Some(bytes) = read_bytes(&path) else {
                // Somebody was at it by hand: made again.
                drop(file);
                remove_unused(&path);
                return Ok(None);
            };
            return Ok(Some(CodeDir { digest, path: path.join("code"), bytes, _held: Held(file) }));
        }
    }

    /// Unpacks an archive and renames it into place. Another agent that was first is as good.
    pub(super) fn unpack(&self, digest: Digest, archive: &[u8]) -> Result<CodeDir, CacheError> {
        let fail = |source| self.failed(source);
        let (temporary, lock) = self.make_temporary().map_err(fail)?;
        let code = temporary.join("code");
        let unpacked = DirBuilder::new()
            .mode(0o755)
            .create(&code)
            .map_err(fail)
            .and_then(|()| {
                archive::unpack_into(archive, digest, &code)
                    .map_err(|source| CacheError::Unpack { digest, source: Arc::new(source) })
            })
            .and_then(|bytes| fs::write(temporary.join("bytes"), bytes.to_string()).map_err(fail).map(|()| bytes));
        let bytes = match unpacked {
            Ok(bytes) => bytes,
            Err(error) => {
                delete(&temporary);
                return Err(error);
            }
        };
        let path = self.path(digest);
        for _ in 0..RENAMES {
            match fs::rename(&temporary, &path) {
                // The lock is on the directory, whatever it is called.
                Ok(()) => return Ok(CodeDir { digest, path: path.join("code"), bytes, _held: Held(lock) }),
                // Another agent was first, which is as good, unless it deletes it again just now.
                Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                    if let Some(code) = self.find(digest)? {
                        delete(&temporary);
                        return Ok(code);
                    }
                }
                Err(error) => {
                    delete(&temporary);
                    return Err(fail(error));
                }
            }
        }
        delete(&temporary);
        Err(fail(io::Error::other("what is unpacked there keeps disappearing; is something else deleting it?")))
    }

    /// A new directory with a shared lock on it, so that an agent that starts leaves it alone.
    fn make_temporary(&self) -> io::Result<(PathBuf, File)> {
        let lock = self.lock_file()?;
        lock.lock_shared()?;
        let path = tempfile::Builder::new()
            .prefix(UNPACKING)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(&self.directory)?
            .keep();
        let file = File::open(&path)?;
        file.lock_shared()?;
        Ok((path, file))
    }

    /// Deletes a digest's directory, unless another agent uses it.
    pub(super) fn remove(&self, digest: Digest) {
        remove_unused(&self.path(digest));
    }
}

fn read_bytes(path: &Path) -> Option<u64> {
    fs::read_to_string(path.join("bytes")).ok()?.parse().ok()
}

/// Moves a directory away and deletes it, if nobody holds its lock.
fn remove_unused(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return,
        Err(TryLockError::Error(error)) => {
            tracing::warn!(path = %path.display(), %error, "a directory of the code cache cannot be locked");
            return;
        }
    }
    // Moved first, so that nobody finds a half of it under its name.
    let aside = path.parent().and_then(|parent| {
        let aside = tempfile::Builder::new().prefix(GONE).tempdir_in(parent).ok()?.keep();
        fs::rename(path, &aside).ok().map(|()| aside)
    });
    match aside {
        Some(aside) => delete(&aside),
        None => tracing::warn!(path = %path.display(), "a directory of the code cache could not be moved away"),
    }
}

fn delete(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "a directory of the code cache could not be deleted");
    }
}
