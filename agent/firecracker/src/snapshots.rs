//! Snapshots on the disk, each under the digest of everything that it depends on.
//!
//! What differs in anything is another key, so that nothing is ever loaded that does not fit. A snapshot holds a guest's memory:
//! its two files are readable for the number that its clones run as, and for no one else.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::OFlag;
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::numbers::{Number, Numbers};

/// Their mode.
const MODE: u32 = 0o600;
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// What a snapshot depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Parts<'a> {
    /// Vendor, family, model, stepping, microcode and flags.
    pub(crate) cpu: &'a str,
    pub(crate) host_kernel: &'a str,
    pub(crate) firecracker: &'a str,
    pub(crate) guest_kernel: &'a str,
    pub(crate) initramfs: &'a str,
    pub(crate) rootfs: &'a str,
    /// Name, version and configuration.
    pub(crate) function: &'a str,
    pub(crate) code: &'a str,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
}

impl Parts<'_> {
    /// The digest's text.
    pub(crate) fn key(&self) -> String {
        // Texts and numbers alone: JSON can say them.
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[derive(Debug)]
struct Kept {
    key: String,
    /// Its clones' number is not given to others for as long as the files have it.
    _number: Option<Arc<Number>>,
}

/// The snapshots of a driver.
#[derive(Debug)]
pub(crate) struct Snapshots {
    folder: PathBuf,
    most: usize,
    /// The one used last is last.
    kept: Mutex<Vec<Kept>>,
}

/// The two files of a snapshot.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) state: PathBuf,
    pub(crate) memory: PathBuf,
}

impl Files {
    fn below(folder: &Path) -> Self {
        Self { state: folder.join(STATE), memory: folder.join(MEMORY) }
    }
}

impl Snapshots {
    /// Takes over what an earlier driver left; what is not whole, or not as it should be, is removed.
    pub(crate) fn open(folder: PathBuf, most: usize, numbers: Option<&Numbers>) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            match path.file_name().and_then(|name| name.to_str()).and_then(|key| adopt(&path, key, numbers)) {
                Some((used, kept)) => found.push((used, kept)),
                None => fs::remove_dir_all(&path)?,
            }
        }
        found.sort_by_key(|(used, _)| *used);
        let kept = found.into_iter().map(|(_, kept)| kept).collect();
        Ok(Self { folder, most, kept: Mutex::new(kept) })
    }

    /// The files of this key, where it has a snapshot.
    pub(crate) fn find(&self, key: &str) -> Option<Files> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|kept| kept.key == key)?;
        let used = kept.remove(at);
        kept.push(used);
        Some(Files::below(&self.folder.join(key)))
    }

    /// Moves a guest's two files in. Another may have been quicker: then they are not needed.
    pub(crate) fn add(&self, key: &str, from: &Files, number: Option<Arc<Number>>) -> io::Result<()> {
        let mut kept = self.kept.lock();
        if kept.iter().any(|kept| kept.key == key) {
            return Ok(());
        }
        while kept.len() >= self.most.max(1) {
            let oldest = kept.remove(0);
            fs::remove_dir_all(self.folder.join(&oldest.key))?;
        }
        // A name that is no key is removed by the next driver, should this one end half-way.
        let (new, path) = (self.folder.join(format!("{key}.new")), self.folder.join(key));
        let to = Files::below(&new);
        fs::create_dir_all(&new)?;
        fs::rename(&from.state, &to.state)?;
        fs::rename(&from.memory, &to.memory)?;
        // Where the guest's VMM cannot change them any more: what it put at their names was its to choose until now.
        let uid = number.as_ref().map_or_else(|| nix::unistd::geteuid().as_raw(), |number| number.uid);
        if let Err(error) = [&to.state, &to.memory].into_iter().try_for_each(|file| close(file, uid)) {
            fs::remove_dir_all(&new)?;
            return Err(error);
        }
        fs::rename(&new, &path)?;
        kept.push(Kept { key: key.to_owned(), _number: number });
        Ok(())
    }

    /// Forgets one that could not be loaded.
    pub(crate) fn remove(&self, key: &str) {
        let mut kept = self.kept.lock();
        kept.retain(|kept| kept.key != key);
        if let Err(error) = fs::remove_dir_all(self.folder.join(key)) {
            tracing::warn!(key, %error, "a snapshot is left");
        }
    }

    /// For tests and for what a driver says of itself.
    pub(crate) fn count(&self) -> usize {
        self.kept.lock().len()
    }
}

/// Has a file of this user's closed to others; never what a link leads to, and nothing that is no file.
fn close(path: &Path, uid: u32) -> io::Result<()> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = fs::File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != uid {
        return Err(io::Error::other("it is not a file of the guest's own"));
    }
    file.set_permissions(fs::Permissions::from_mode(MODE))
}

/// When it was made, and that it is kept.
fn adopt(path: &Path, key: &str, numbers: Option<&Numbers>) -> Option<((i64, i64), Kept)> {
    const KEY_LENGTH: usize = 64;
    if key.len() != KEY_LENGTH {
        return None;
    }
    let Files { state, memory } = Files::below(path);
    let (state, memory) = (fs::symlink_metadata(state).ok()?, fs::symlink_metadata(memory).ok()?);
    let closed = [&state, &memory].iter().all(|file| file.is_file() && file.mode() & 0o777 == MODE);
    if !closed || state.uid() != memory.uid() {
        return None;
    }
    let number = match numbers {
        Some(numbers) => Some(numbers.take_this(key, state.uid())?),
        None if state.uid() == nix::unistd::geteuid().as_raw() => None,
        None => return None,
    };
    Some(((memory.mtime(), memory.mtime_nsec()), Kept { key: key.to_owned(), _number: number }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: Parts<'_> = Parts {
        cpu: "cpu",
        host_kernel: "6.1",
        firecracker: "1.16.1",
        guest_kernel: "k",
        initramfs: "i",
        rootfs: "r",
        function: "f@1",
        code: "c",
        vcpus: 1,
        memory_mib: 192,
    };

    #[test]
    fn whatever_differs_is_another_key() {
        let mut keys = vec![PARTS.key()];
        for differs in [
            Parts { cpu: "other", ..PARTS },
            Parts { host_kernel: "6.2", ..PARTS },
            Parts { firecracker: "1.16.2", ..PARTS },
            Parts { guest_kernel: "other", ..PARTS },
            Parts { initramfs: "other", ..PARTS },
            Parts { rootfs: "other", ..PARTS },
            Parts { function: "f@2", ..PARTS },
            Parts { code: "other", ..PARTS },
            Parts { vcpus: 2, ..PARTS },
            Parts { memory_mib: 193, ..PARTS },
        ] {
            keys.push(differs.key());
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
        assert!(keys.iter().all(|key| key.len() == 64));
    }

    fn files(folder: &Path, content: &str) -> Files {
        let files = Files { state: folder.join("s"), memory: folder.join("m") };
        fs::write(&files.state, content).expect("written");
        fs::write(&files.memory, content).expect("written");
        files
    }

    #[test]
    fn those_used_lately_stay_and_no_one_else_reads_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(folder.path().join("snapshots"), 2, None).expect("opened");
        let keys = ["a", "b", "c"].map(|letter| letter.repeat(64));
        for key in &keys[..2] {
            snapshots.add(key, &files(folder.path(), key), None).expect("added");
        }
        assert!(snapshots.find(&keys[0]).is_some(), "used after the other");
        snapshots.add(&keys[2], &files(folder.path(), "c"), None).expect("added");
        assert_eq!(keys.each_ref().map(|key| snapshots.find(key).is_some()), [true, false, true]);
        let kept = snapshots.find(&keys[0]).expect("kept");
        for file in [kept.state, kept.memory] {
            assert_eq!(fs::metadata(file).expect("there").mode() & 0o777, MODE);
        }
    }

    #[test]
    fn what_a_guest_put_in_place_of_its_files_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let (snapshots, key) = (folder.path().join("snapshots"), "a".repeat(64));
        let victim = folder.path().join("victim");
        fs::write(&victim, "root's").expect("written");
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).expect("changed");
        let kept = Snapshots::open(snapshots.clone(), 2, None).expect("opened");
        let plant = |how: &dyn Fn(&Path)| {
            let files = files(folder.path(), "s");
            fs::remove_file(&files.state).expect("removed");
            how(&files.state);
            files
        };
        let link = plant(&|at| std::os::unix::fs::symlink(&victim, at).expect("linked"));
        assert!(kept.add(&key, &link, None).is_err(), "a link");
        let pipe = plant(&|at| nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRWXU).expect("made"));
        assert!(kept.add(&key, &pipe, None).is_err(), "a pipe");
        if nix::unistd::geteuid().is_root() {
            let others = plant(&|at| {
                fs::write(at, "").expect("written");
                std::os::unix::fs::chown(at, Some(1000), None).expect("given");
            });
            assert!(kept.add(&key, &others, None).is_err(), "another's");
        }
        assert_eq!(fs::metadata(&victim).expect("there").mode() & 0o777, 0o644);
        assert_eq!((kept.count(), fs::read_dir(&snapshots).expect("read").count()), (0, 0));
        kept.add(&key, &files(folder.path(), "s"), None).expect("added");
    }

    #[test]
    fn the_next_driver_takes_over_what_is_whole_and_closed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("snapshots");
        let keys = ["a", "b", "c"].map(|letter| letter.repeat(64));
        let first = Snapshots::open(path.clone(), 9, None).expect("opened");
        for key in &keys {
            first.add(key, &files(folder.path(), key), None).expect("added");
        }
        // One that anybody could have read, and one that is not whole.
        fs::set_permissions(path.join(&keys[0]).join(MEMORY), fs::Permissions::from_mode(0o644)).expect("changed");
        fs::remove_file(path.join(&keys[1]).join(STATE)).expect("removed");
        fs::create_dir(path.join("d".repeat(64) + ".new")).expect("made");
        let second = Snapshots::open(path.clone(), 9, None).expect("opened");
        assert_eq!(keys.each_ref().map(|key| second.find(key).is_some()), [false, false, true]);
        assert_eq!(fs::read_dir(&path).expect("read").count(), 1, "the rest is removed");
    }
}
