//! What root opens below the data directory: never through a link, and nothing that somebody else made.
//!
//! **Architecture Invariant:** as root, every path that is opened here has a parent that only root writes to; so its
//! last component alone could be a link, and what was checked is what is used.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown},
    path::{Path, PathBuf},
};

use flux_launcher::Runner;
use nix::fcntl::OFlag;

use crate::keys;

const ROOT: Runner = Runner { uid: 0, gid: 0 };
const PRIVATE: u32 = 0o700;

/// A directory that nobody but root writes to, made if it is not there. One that `former` has is taken back.
pub(super) fn own_dir(path: &Path, mode: u32, gid: u32, former: Option<Runner>) -> io::Result<()> {
    let dir = open_dir(path, former)?;
    fchown(&dir, Some(ROOT.uid), Some(gid))?;
    dir.set_permissions(Permissions::from_mode(mode))
}

/// A directory of `user`'s, made if it is not there. One that is root's, such as a restored one, is given with all
/// that is in it; what is `user`'s already is not walked.
pub(super) fn given_dir(path: &Path, mode: u32, user: Runner) -> io::Result<()> {
    let dir = open_dir(path, Some(user))?;
    if dir.metadata()?.uid() != user.uid {
        // Nobody enters it while it is walked.
        dir.set_permissions(Permissions::from_mode(PRIVATE))?;
        for entry in walkdir::WalkDir::new(path).min_depth(1) {
            let entry = entry.map_err(io::Error::from)?;
            let meta = fs::symlink_metadata(entry.path())?;
            if meta.uid() == user.uid || meta.is_symlink() {
                continue;
            }
            if !meta.is_dir() && meta.nlink() > 1 {
                return Err(refused(entry.path(), "is a second name of another file"));
            }
            lchown(entry.path(), Some(user.uid), Some(user.gid))?;
        }
    }
    // The mode first: it is root's until it is ready.
    dir.set_permissions(Permissions::from_mode(mode))?;
    fchown(&dir, Some(user.uid), Some(user.gid))
}

fn open_dir(path: &Path, other: Option<Runner>) -> io::Result<File> {
    match fs::DirBuilder::new().mode(PRIVATE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let linked = fs::symlink_metadata(path)?;
    if linked.is_symlink() {
        return Err(refused(path, "is a symbolic link"));
    }
    if !linked.is_dir() {
        return Err(refused(path, "is not a directory"));
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY;
    let dir = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    check_owner(path, &dir.metadata()?, other)?;
    Ok(dir)
}

/// An existing file of root's. One that `former` has is taken back, unless it may be somebody else's as well.
pub(super) fn open_file(path: &Path, options: &mut OpenOptions, former: Option<Runner>) -> io::Result<File> {
    if fs::symlink_metadata(path)?.is_symlink() {
        return Err(refused(path, "is a symbolic link"));
    }
    // Opening a pipe that was put there does not wait.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = options.custom_flags(flags.bits()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(refused(path, "is not a file"));
    }
    if meta.nlink() > 1 {
        return Err(refused(path, "is a second name of another file"));
    }
    check_owner(path, &meta, former)?;
    if meta.uid() != ROOT.uid {
        fchown(&file, Some(ROOT.uid), Some(ROOT.gid))?;
        file.set_permissions(Permissions::from_mode(keys::SECRET))?;
    }
    Ok(file)
}

/// What is in it, if it is there.
pub(super) fn read(path: &Path, former: Option<Runner>) -> io::Result<Option<String>> {
    match open_file(path, OpenOptions::new().read(true), former) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text).map(|_| Some(text))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_owner(path: &Path, meta: &fs::Metadata, other: Option<Runner>) -> io::Result<()> {
    if meta.uid() == ROOT.uid || other.is_some_and(|user| meta.uid() == user.uid) {
        return Ok(());
    }
    Err(refused(path, &format!("belongs to the user {}, not to root", meta.uid())))
}

pub(super) fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {why}; as root, Flux does not use it", path.display()))
}

/// The first directory above `path` in which `user` could put something else in its place.
pub(super) fn first_replaceable(path: &Path, user: Runner) -> Option<PathBuf> {
    let open = |dir: &&Path| {
        fs::metadata(dir).is_ok_and(|meta| {
            let mode = meta.permissions().mode();
            let others = mode & 0o002 != 0 || (meta.gid() == user.gid && mode & 0o020 != 0);
            meta.uid() == user.uid || (others && mode & 0o1000 == 0)
        })
    };
    path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).find(open).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::unistd::Uid;

    use super::*;

    /// Who runs the tests, as the user that things may belong to.
    fn me() -> Runner {
        Runner { uid: Uid::effective().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    #[test]
    fn links_are_not_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "kept").expect("a file");
        symlink(&target, &link).expect("a link");
        let error = read(&link, Some(me())).expect_err("a link");
        assert!(error.to_string().contains("is a symbolic link"), "{error}");
        let error = open_dir(&link, Some(me())).expect_err("a link");
        assert!(error.to_string().contains("is a symbolic link"), "{error}");
        symlink(dir.path(), dir.path().join("dir")).expect("a link");
        open_dir(&dir.path().join("dir"), Some(me())).expect_err("a link to a directory");
        assert_eq!(fs::read_to_string(&target).expect("a file"), "kept");
    }

    #[test]
    fn second_names_pipes_and_directories_are_not_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "").expect("a file");
        fs::hard_link(path("a"), path("b")).expect("a link");
        let error = read(&path("b"), Some(me())).expect_err("a second name");
        assert!(error.to_string().contains("second name"), "{error}");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        read(&path("pipe"), Some(me())).expect_err("a pipe");
        read(dir.path(), Some(me())).expect_err("a directory");
        assert!(read(&path("none"), Some(me())).expect("nothing").is_none());
    }

    #[test]
    fn what_others_own_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let meta = fs::metadata(dir.path()).expect("it is there");
        check_owner(dir.path(), &meta, Some(me())).expect("mine");
        if !Uid::effective().is_root() {
            let error = check_owner(dir.path(), &meta, None).expect_err("not root's");
            assert!(error.to_string().contains("belongs to the user"), "{error}");
        }
    }

    #[test]
    fn a_directory_that_the_user_writes_to_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let other = Runner { uid: 12345, gid: 12345 };
        let set = |mode| fs::set_permissions(dir.path(), Permissions::from_mode(mode)).expect("its mode");
        assert_eq!(
            first_replaceable(&data, Runner { uid: fs::metadata(dir.path()).expect("it is there").uid(), gid: 1 })
                .as_deref(),
            Some(dir.path())
        );
        set(0o755);
        assert_ne!(first_replaceable(&data, other).as_deref(), Some(dir.path()));
        set(0o777);
        assert_eq!(first_replaceable(&data, other).as_deref(), Some(dir.path()));
        set(0o1777);
        assert_ne!(first_replaceable(&data, other).as_deref(), Some(dir.path()));
    }
}
