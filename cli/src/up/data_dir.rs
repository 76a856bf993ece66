//! The data directory: made, locked, and given to whom the platform runs as.
//!
//! ```text
//!  D/lock          held by the one `flux up` that uses it, with its pid
//!    api-key       0600
//!    run/          nats.conf, settings.json, both written at each start; the queue's port
//!    run/worker/   what the worker and nats-server write: that all is ready; accounts, pid and log of nats-server
//!    certs/        CA, certificates and keys
//!    db/           records: flux.db and its -wal, -shm
//!    artifacts/    code archives            agent/     unpacked code, reachable for functions
//!    nats/         the queue's streams      launcher/  the launcher's own
//!    keys/         what secrets are encrypted with
//! ```
//!
//! **Architecture Invariant:** as root, the platform's user writes only in `run/worker`, `certs`, `db`, `keys`, `artifacts`,
//! `agent` and `nats`. All else is root's, since root works in it at the next start: see [`guarded`].

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flux_launcher::Runner;
use flux_runtime::{Settings, config::env};

use super::{guarded, identity::Identity};
use crate::{error::CliError, keys};

/// As root: where a service keeps its state.
const SYSTEM: &str = "/var/lib/flux";
/// The kernel lets go of a killed process's lock within this.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
pub(super) const RETRY: Duration = Duration::from_millis(20);

/// Reachable but not readable: functions are run from below it. Secrets in it are 0600.
const ENTERED_BY_ALL: u32 = 0o711;
const OWN: u32 = 0o700;
/// Root's, for the platform to read.
const READ_BY_GROUP: u32 = 0o640;
const READ_BY_GROUP_DIR: u32 = 0o750;
const WORKER: &str = "run/worker";

#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// Whom the platform runs as, where that is not who started it.
    platform: Option<Runner>,
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
            None => default_path()?,
        };
        let cannot = |source| CliError::local(format!("the data directory {} cannot be used", path.display()), source);
        // Without a slash at its end, which would follow a link.
        let path: PathBuf = std::path::absolute(&path).map_err(cannot)?.components().collect();
        // Before it is made, so that a refusal leaves nothing; and after, when links are known.
        check_reachable(&path, identity)?;
        if identity.is_root() && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink()) {
            return Err(cannot(guarded::refused(&path, "is a symbolic link")));
        }
        fs::create_dir_all(&path).map_err(cannot)?;
        let path = path.canonicalize().map_err(cannot)?;
        check_reachable(&path, identity)?;
        match identity.platform {
            Some(user) => guarded::own_dir(&path, ENTERED_BY_ALL, 0, Some(user)),
            None => fs::set_permissions(&path, Permissions::from_mode(OWN)),
        }
        .map_err(cannot)?;
        let lock = lock(&path, identity.platform)?;
        let data = Self { path, platform: identity.platform, _lock: lock };
        data.make_all().map_err(cannot)?;
        Ok(data)
    }

    fn make_all(&self) -> io::Result<()> {
        let Some(user) = self.platform else {
            let all = [
                "run",
                WORKER,
                "certs",
                "db",
                "keys",
                "nats",
                "artifacts",
                "agent",
                "launcher",
                "containers",
                "microvms",
            ];
            return all.iter().try_for_each(|dir| {
                let dir = self.path.join(dir);
                fs::create_dir_all(&dir)?;
                fs::set_permissions(&dir, Permissions::from_mode(OWN))
            });
        };
        guarded::own_dir(&self.path.join("run"), READ_BY_GROUP_DIR, user.gid, Some(user))?;
        // Never the user's: what root removes is in it.
        guarded::own_dir(&self.launcher_dir(), ENTERED_BY_ALL, 0, None)?;
        guarded::own_dir(&self.containers_dir(), OWN, 0, None)?;
        guarded::own_dir(&self.microvms_dir(), OWN, 0, None)?;
        for (dir, mode) in [
            (WORKER, OWN),
            ("certs", OWN),
            ("db", OWN),
            ("keys", OWN),
            ("nats", OWN),
            ("artifacts", OWN),
            ("agent", ENTERED_BY_ALL),
        ] {
            guarded::given_dir(&self.path.join(dir), mode, user)?;
        }
        Ok(())
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

    pub(super) fn worker(&self, file: &str) -> PathBuf {
        self.path.join(WORKER).join(file)
    }

    pub(super) fn launcher_dir(&self) -> PathBuf {
        self.path.join("launcher")
    }

    /// The container driver's.
    pub(super) fn containers_dir(&self) -> PathBuf {
        self.path.join("containers")
    }

    /// That of the driver of microVMs.
    pub(super) fn microvms_dir(&self) -> PathBuf {
        self.path.join("microvms")
    }

    /// The file that says that the user was told that everything is ready: not there yet.
    pub(super) fn unsaid(&self) -> Result<PathBuf, CliError> {
        let path = self.worker("ready");
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
            .and_then(|text| self.write_shared(&path, &text))
            .map_err(|source| CliError::local(format!("{} cannot be written", path.display()), source))?;
        Ok(WrittenSettings { path, settings })
    }

    /// What is in one of its files, if it is there.
    pub(super) fn read(&self, path: &Path) -> io::Result<Option<String>> {
        if self.platform.is_some() {
            return guarded::read(path, self.platform);
        }
        match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Writes a file that the worker and `nats-server` read, and nobody else.
    pub(super) fn write_shared(&self, path: &Path, text: &str) -> io::Result<()> {
        match self.platform {
            Some(user) => keys::replace(path, text, READ_BY_GROUP, Some(user.gid)),
            None => keys::replace(path, text, keys::SECRET, None),
        }
    }
}

/// The one that is given, or that `flux up` of this user has.
pub(super) fn path(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let path = given.map_or_else(default_path, Ok)?;
    std::path::absolute(&path).map_err(|source| CliError::local(format!("{} cannot be used", path.display()), source))
}

fn default_path() -> Result<PathBuf, CliError> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok(SYSTEM.into());
    }
    let home = || env("HOME").map(|home| Path::new(&home).join(".local/share"));
    let data = env("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
    let data = data.ok_or_else(|| CliError::problem("there is no home to keep data in", "say where: --data-dir"))?;
    Ok(data.join("flux"))
}

/// One `flux up` per directory: two would share a database and a queue.
fn lock(dir: &Path, platform: Option<Runner>) -> Result<File, CliError> {
    let path = dir.join("lock");
    let cannot = |source| CliError::local(format!("{} cannot be locked", path.display()), source);
    let mut file = open_lock(&path, platform).map_err(cannot)?;
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

fn open_lock(path: &Path, platform: Option<Runner>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(keys::SECRET);
    if platform.is_none() {
        return options.create(true).truncate(false).open(path);
    }
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => guarded::open_file(path, &mut options, platform),
        made => made,
    }
}

/// Can the platform's user enter every directory above, and replace none?
fn check_reachable(dir: &Path, identity: &Identity) -> Result<(), CliError> {
    let Some(user) = identity.platform else { return Ok(()) };
    let remedy = || format!("choose another --data-dir, such as {SYSTEM}, or run `flux up` as an ordinary user");
    if let Some(closed) = first_closed(dir, user) {
        return Err(CliError::problem(
            format!("the user flux cannot enter {}, so it cannot reach {}", closed.display(), dir.display()),
            remedy(),
        ));
    }
    if let Some(open) = guarded::first_replaceable(dir, user) {
        return Err(CliError::problem(
            format!("the user flux can write to {}, so root cannot rely on {}", open.display(), dir.display()),
            remedy(),
        ));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use nix::unistd::Uid;

    use super::*;

    const FLUX: Runner = Runner { uid: 61234, gid: 61234 };

    fn open(path: &Path) -> Result<DataDir, CliError> {
        DataDir::open(Some(path.to_owned()), &Identity { platform: Some(FLUX), runner: None })
    }

    fn passable() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("its mode");
        dir
    }

    fn is_root() -> bool {
        let root = Uid::effective().is_root();
        if !root {
            eprintln!("not run: only root can give directories to another user");
        }
        root
    }

    fn owner(path: &Path) -> (u32, u32, u32) {
        let meta = fs::symlink_metadata(path).expect("it is there");
        (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777)
    }

    /// `D` as the user flux may leave it: its own, with `link` in it to a file that is root's.
    fn planted(dir: &Path, link: &str) -> (PathBuf, PathBuf) {
        let (data, target) = (dir.join("data"), dir.join("target"));
        fs::write(&target, "root's").expect("a file");
        fs::set_permissions(&target, Permissions::from_mode(0o600)).expect("its mode");
        let link = data.join(link);
        fs::create_dir_all(link.parent().expect("a parent")).expect("a directory");
        symlink(&target, &link).expect("a link");
        for path in [&data, &data.join("run"), &link] {
            let _ = lchown(path, Some(FLUX.uid), Some(FLUX.gid));
        }
        (data, target)
    }

    fn assert_untouched(target: &Path) {
        assert_eq!(fs::read_to_string(target).expect("a file"), "root's");
        assert_eq!(owner(target), (0, 0, 0o600));
    }

    #[test]
    fn root_gives_only_what_the_platform_writes_to() {
        if !is_root() {
            return;
        }
        let dir = passable();
        let path = dir.path().join("data");
        let check = |data: &DataDir| {
            data.write_shared(&data.run("settings.json"), "{}").expect("written");
            for (name, expected) in [
                ("", (0, 0, 0o711)),
                ("lock", (0, 0, 0o600)),
                ("run", (0, FLUX.gid, 0o750)),
                ("run/settings.json", (0, FLUX.gid, 0o640)),
                ("launcher", (0, 0, 0o711)),
                ("run/worker", (FLUX.uid, FLUX.gid, 0o700)),
                ("certs", (FLUX.uid, FLUX.gid, 0o700)),
                ("db", (FLUX.uid, FLUX.gid, 0o700)),
                ("keys", (FLUX.uid, FLUX.gid, 0o700)),
                ("nats", (FLUX.uid, FLUX.gid, 0o700)),
                ("artifacts", (FLUX.uid, FLUX.gid, 0o700)),
                ("agent", (FLUX.uid, FLUX.gid, 0o711)),
            ] {
                assert_eq!(owner(&path.join(name)), expected, "{name}");
            }
        };
        check(&open(&path).expect("made"));
        check(&open(&path).expect("used again"));
        // As an earlier run left it.
        for name in ["", "lock", "run", "run/settings.json"] {
            lchown(path.join(name), Some(FLUX.uid), Some(FLUX.gid)).expect("given");
        }
        check(&open(&path).expect("taken back"));
    }

    #[test]
    fn root_follows_no_link_that_was_planted() {
        if !is_root() {
            return;
        }
        let dir = passable();
        for link in ["lock", "run/worker", "launcher", "db", "keys", "nats", "artifacts", "agent"] {
            let _ = fs::remove_dir_all(dir.path().join("data"));
            let (data, target) = planted(dir.path(), link);
            let error = open(&data).expect_err(link);
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(cause.contains("is a symbolic link"), "{link}: {error}: {cause}");
            assert_untouched(&target);
        }
        let _ = fs::remove_dir_all(dir.path().join("data"));
        let (path, target) = planted(dir.path(), "api-key");
        let data = open(&path).expect("the key is not opened yet");
        assert!(super::super::api_key::resolve(None, &data).is_err(), "the key is a link");
        assert_untouched(&target);
        drop(data);

        for file in ["run/nats.conf", "run/settings.json", "run/queue-port"] {
            let _ = fs::remove_dir_all(dir.path().join("data"));
            let (path, target) = planted(dir.path(), file);
            let data = open(&path).expect("it is replaced");
            assert!(data.read(&path.join(file)).is_err(), "{file}");
            data.write_shared(&path.join(file), "new").expect("written");
            assert!(fs::symlink_metadata(path.join(file)).expect("it is there").is_file(), "{file}");
            assert_untouched(&target);
        }

        let link = dir.path().join("link");
        symlink(&path, &link).expect("a link");
        assert!(open(&link).is_err(), "D is a link");
        assert!(open(&link.join("")).is_err(), "D is a link");
        fs::create_dir(dir.path().join("other")).expect("a directory");
        lchown(dir.path().join("other"), Some(61235), Some(61235)).expect("given");
        assert!(open(&dir.path().join("other")).is_err(), "D is somebody else's");
        // A launcher of the user's own making.
        lchown(path.join("launcher"), Some(FLUX.uid), Some(FLUX.gid)).expect("given");
        assert!(open(&path).is_err(), "the launcher's directory is the user's");
    }
}
