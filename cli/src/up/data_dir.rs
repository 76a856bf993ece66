//! The data directory: made, locked, and given to whom the platform runs as.
//!
//! ```text
//!  D/lock          held by the one `flux up` that uses it, with its pid
//!    api-key       0600
//!    flux.db       records (and its -wal, -shm)
//!    artifacts/    code archives            agent/     unpacked code, reachable for functions
//!    nats/         the queue's streams      launcher/  the launcher's own
//!    run/          nats.conf, settings.json, both written at each start; the queue's port; log of nats-server
//! ```

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flux_launcher::Runner;
use flux_runtime::{Settings, config::env};

use super::identity::Identity;
use crate::{error::CliError, keys};

/// As root: where a service keeps its state.
const SYSTEM: &str = "/var/lib/flux";
/// The kernel lets go of a killed process's lock within this.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
pub(super) const RETRY: Duration = Duration::from_millis(20);

/// Reachable but not readable: functions are run from below it. Secrets in it are 0600.
const ENTERED_BY_ALL: u32 = 0o711;
const OWN: u32 = 0o700;

#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// For as long as this process lives.
    _lock: File,
}

/// The settings as the worker reads them.
#[derive(Debug)]
pub(super) struct WrittenSettings {
    pub(super) path: PathBuf,
    pub(super) settings: Settings,
}

impl DataDir {
    pub(super) fn open(given: Option<PathBuf>, identity: &Identity) -> Result<Self, CliError> {
        let path = match given {
            Some(path) => path,
            None => default_path(identity)?,
        };
        let cannot = |source| CliError::local(format!("the data directory {} cannot be used", path.display()), source);
        // Before it is made, so that a refusal leaves nothing; and after, when links are known.
        check_reachable(&std::path::absolute(&path).map_err(cannot)?, identity)?;
        fs::create_dir_all(&path).map_err(cannot)?;
        let path = path.canonicalize().map_err(cannot)?;
        check_reachable(&path, identity)?;
        let mode = if identity.is_root() { ENTERED_BY_ALL } else { OWN };
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(cannot)?;
        let lock = lock(&path)?;
        let data = Self { path, _lock: lock };
        for (dir, mode) in [("run", OWN), ("nats", OWN), ("artifacts", OWN), ("agent", mode), ("launcher", mode)] {
            data.make(dir, mode).map_err(cannot)?;
        }
        Ok(data)
    }

    fn make(&self, dir: &str, mode: u32) -> io::Result<()> {
        let dir = self.path.join(dir);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(mode))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn key_file(&self) -> PathBuf {
        self.path.join("api-key")
    }

    pub(super) fn run(&self, file: &str) -> PathBuf {
        self.path.join("run").join(file)
    }

    pub(super) fn launcher_dir(&self) -> PathBuf {
        self.path.join("launcher")
    }

    /// The file that says that the user was told that everything is ready: not there yet.
    pub(super) fn unsaid(&self) -> Result<PathBuf, CliError> {
        let path = self.run("ready");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CliError::local(format!("{} cannot be removed", path.display()), error))
            }
            _ => Ok(path),
        }
    }

    /// Writes what the worker reads: the key is in it, so nobody else may.
    pub(super) fn write_settings(&self, settings: Settings) -> Result<WrittenSettings, CliError> {
        let path = self.run("settings.json");
        let written = serde_json::to_string_pretty(&settings).map_err(io::Error::from);
        written
            .and_then(|text| keys::write_secret(&path, &text))
            .map_err(|source| CliError::local(format!("{} cannot be written", path.display()), source))?;
        Ok(WrittenSettings { path, settings })
    }

    /// Everything in it belongs to whom the platform runs as, except what the launcher keeps. A directory that does
    /// already is not walked again: the files below it are the platform's own.
    pub(super) fn give_to(&self, identity: &Identity) -> Result<(), CliError> {
        let Some(user) = identity.platform else { return Ok(()) };
        let owned =
            |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| (meta.uid(), meta.gid()) == (user.uid, user.gid));
        let skipped = |path: &Path| {
            path == self.launcher_dir()
                || (path.is_dir() && path != self.path && path != self.path.join("run") && owned(path))
        };
        for entry in walkdir::WalkDir::new(&self.path).into_iter().filter_entry(|entry| !skipped(entry.path())) {
            let given = entry.map_err(io::Error::from).and_then(|entry| {
                if owned(entry.path()) {
                    return Ok(());
                }
                std::os::unix::fs::lchown(entry.path(), Some(user.uid), Some(user.gid))
            });
            given.map_err(|source| {
                CliError::local(format!("{} cannot be given to the user flux", self.path.display()), source)
            })?;
        }
        Ok(())
    }
}

fn default_path(identity: &Identity) -> Result<PathBuf, CliError> {
    if identity.is_root() {
        return Ok(SYSTEM.into());
    }
    let home = || env("HOME").map(|home| Path::new(&home).join(".local/share"));
    let data = env("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
    let data = data.ok_or_else(|| CliError::problem("there is no home to keep data in", "say where: --data-dir"))?;
    Ok(data.join("flux"))
}

/// One `flux up` per directory: two would share a database and a queue.
fn lock(dir: &Path) -> Result<File, CliError> {
    let path = dir.join("lock");
    let cannot = |source| CliError::local(format!("{} cannot be locked", path.display()), source);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(cannot)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WITHIN => std::thread::sleep(RETRY),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(CliError::problem(
                    format!("another `flux up` (pid {}) uses {}", holder.trim(), dir.display()),
                    "use that one, stop it, or choose another --data-dir",
                ));
            }
            Err(TryLockError::Error(source)) => return Err(cannot(source)),
        }
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(cannot)?;
    writeln!(file, "{}", std::process::id()).map_err(cannot)?;
    Ok(file)
}

/// Can the platform's user enter every directory above?
fn check_reachable(dir: &Path, identity: &Identity) -> Result<(), CliError> {
    match identity.platform.and_then(|user| first_closed(dir, user)) {
        None => Ok(()),
        Some(closed) => Err(CliError::problem(
            format!("the user flux cannot enter {}, so it cannot reach {}", closed.display(), dir.display()),
            format!("choose another --data-dir, such as {SYSTEM}, or run `flux up` as an ordinary user"),
        )),
    }
}

/// The first directory above `path` that `user` may not pass through. One that is not there yet is made passable.
pub(super) fn first_closed(path: &Path, user: Runner) -> Option<PathBuf> {
    let closed = |dir: &&Path| {
        fs::metadata(dir).is_ok_and(|meta| {
            let bit = match (meta.uid() == user.uid, meta.gid() == user.gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            meta.permissions().mode() & bit == 0
        })
    };
    path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).find(closed).map(Path::to_owned)
}
