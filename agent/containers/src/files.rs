//! The driver's own directory: the shim for containers, a folder with a socket for each, and whose containers these are.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use flux_driver_link::OpenCode;
use nix::{
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
};

const OWNER: &str = "owner";
const SHIM: &str = "flux-shim";
const SOCKETS: &str = "run";
const CODE: &str = "code";
/// In a container's folder.
pub(crate) const SOCKET: &str = "agent";

#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
    /// A word that is this directory's alone.
    pub(crate) owner: String,
}

impl Files {
    /// Nobody but the driver's user comes in: what is mounted into a container is reached there, not here.
    pub(crate) fn prepare(dir: &Path) -> io::Result<Self> {
        own_dir(dir)?;
        clear_code(&dir.join(CODE))?;
        // Of containers that are gone, or are about to be.
        let _ = fs::remove_dir_all(dir.join(SOCKETS));
        DirBuilder::new().mode(0o700).create(dir.join(SOCKETS))?;
        DirBuilder::new().mode(0o700).recursive(true).create(dir.join(CODE))?;
        let files = Self { dir: dir.to_owned(), owner: owner(dir)? };
        let mut shim = tempfile::NamedTempFile::new_in(dir)?;
        shim.write_all(flux_shim_binary::SHIM)?;
        shim.as_file().set_permissions(Permissions::from_mode(0o755))?;
        // Another one each time: a container that still runs holds the old one.
        shim.persist(files.shim())?;
        Ok(files)
    }

    pub(crate) fn shim(&self) -> PathBuf {
        self.dir.join(SHIM)
    }

    /// What Docker is told of this folder, which was asked for by this path.
    pub(crate) fn code(&self, name: &str, open: &OpenCode, asked: &Path) -> io::Result<Mounted> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Mounted { path: asked.to_owned(), is_ours: false });
        }
        let path = self.dir.join(CODE).join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        let none = None::<&str>;
        let mounted = mount(Some(&open.path()), &path, none, MsFlags::MS_BIND, none);
        if let Err(error) = mounted {
            fs::remove_dir(&path)?;
            return Err(error.into());
        }
        Ok(Mounted { path, is_ours: true })
    }

    /// A folder with a socket that listens.
    pub(crate) fn socket(&self, name: &str) -> io::Result<Listening> {
        let path = self.dir.join(SOCKETS).join(name);
        DirBuilder::new().mode(0o755).create(&path)?;
        let mut dir = Listening { listener: None, path };
        fs::set_permissions(&dir.path, Permissions::from_mode(0o755))?;
        // A socket's path is 107 bytes at most, wherever the directory is.
        let open = File::open(&dir.path)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(SOCKET);
        let listener = UnixListener::bind(short)?;
        fs::set_permissions(dir.path.join(SOCKET), Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        dir.listener = Some(tokio::net::UnixListener::from_std(listener)?);
        Ok(dir)
    }
}

/// Removed when dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: Option<tokio::net::UnixListener>,
    pub(crate) path: PathBuf,
}

impl Listening {
    /// The one connection that is taken, after which nobody is listened to, and the process at its other end.
    pub(crate) async fn accept(&mut self) -> io::Result<(std::os::unix::net::UnixStream, Option<i32>)> {
        let Some(listener) = &self.listener else { return Err(io::ErrorKind::NotConnected.into()) };
        let (stream, _) = listener.accept().await?;
        self.listener = None;
        fs::remove_file(self.path.join(SOCKET))?;
        let pid = stream.peer_cred()?.pid();
        Ok((stream.into_std()?, pid))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A container's mount of it outlives its name.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Made once, and kept: whoever has this directory next removes what this one left.
fn owner(dir: &Path) -> io::Result<String> {
    let path = dir.join(OWNER);
    match fs::read_to_string(&path) {
        Ok(owner) if !owner.trim().is_empty() => return Ok(owner.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut random = [0; 12];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut random)?;
    let owner: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(owner.as_bytes())?;
    file.persist(&path)?;
    Ok(owner)
}

/// One that is there already is taken only if it is ours, and no link to another: who owns the directory that it is in could have put
/// it there.
fn own_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let open = File::options().read(true).custom_flags(flags.bits()).open(dir)?;
    if open.metadata()?.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to another user", dir.display())));
    }
    open.set_permissions(Permissions::from_mode(0o700))
}

/// Unmounts what an earlier driver left, and removes the places.
fn clear_code(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        // One that is none says EINVAL.
        let _ = umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        // Never with what is in it: that would be the agent's code.
        fs::remove_dir(&path)?;
    }
    Ok(())
}

/// A folder of code as Docker is told of it.
///
/// Docker resolves a path again, as root, so it is told none that the agent can change: where the driver is root, the open folder is
/// mounted in a directory of the driver's own. A driver that is not root can mount nothing, and passes on the agent's path: then the
/// agent is the same user as the driver, who has Docker anyway.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    /// Unmounted when dropped; a container's mount of it outlives its name.
    is_ours: bool,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_ours {
            let gone = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from);
            if let Err(error) = gone.and_then(|()| fs::remove_dir(&self.path)) {
                // The next driver removes it.
                eprintln!("flux containers: {} is left: {error}", self.path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_is_told_stays_what_was_asked_for() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not run: only root mounts");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (work, code) = (dir.path().join("work"), dir.path().join("code"));
        fs::create_dir_all(code.join("a")).expect("made");
        fs::write(code.join("a/main"), "mine").expect("written");
        let files = Files::prepare(&work).expect("prepared");
        let open = OpenCode::below(&code, &code.join("a")).expect("there");
        fs::rename(code.join("a"), code.join("old")).expect("moved");
        std::os::unix::fs::symlink("/etc", code.join("a")).expect("linked");
        let mounted = files.code("one", &open, &code.join("a")).expect("mounted");
        assert!(mounted.path.starts_with(&work), "{mounted:?}");
        assert_eq!(fs::read_to_string(mounted.path.join("main")).expect("read"), "mine");
        // A driver that was killed unmounts nothing; the next one does, and the code stays.
        std::mem::forget(mounted);
        let files = Files::prepare(&work).expect("prepared");
        assert_eq!(fs::read_dir(work.join(CODE)).expect("read").count(), 0);
        let mounted = files.code("one", &open, &code.join("a")).expect("mounted");
        drop(mounted);
        assert_eq!(fs::read_dir(work.join(CODE)).expect("read").count(), 0);
        assert_eq!(fs::read_to_string(code.join("old/main")).expect("read"), "mine");
    }

    #[test]
    fn a_directory_that_is_another_users_or_a_link_is_not_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).expect("linked");
        assert!(Files::prepare(&link).is_err(), "a link");
        if nix::unistd::geteuid().is_root() {
            let theirs = dir.path().join("theirs");
            fs::create_dir(&theirs).expect("made");
            std::os::unix::fs::chown(&theirs, Some(1000), None).expect("given");
            assert!(Files::prepare(&theirs).is_err(), "another's");
        }
    }

    #[tokio::test]
    async fn an_owner_stays_and_a_socket_is_for_one() {
        let dir = tempfile::tempdir().expect("a directory");
        // Longer than a socket's path can be.
        let long = dir.path().join("d".repeat(120));
        let files = Files::prepare(&long).expect("prepared");
        assert_eq!(Files::prepare(&long).expect("prepared").owner, files.owner);
        assert_ne!(Files::prepare(dir.path()).expect("prepared").owner, files.owner);
        let mut socket = files.socket("one").expect("it listens");
        let path = socket.path.clone();
        let open = File::open(&path).expect("there");
        let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(SOCKET);
        let _stream = std::os::unix::net::UnixStream::connect(&short).expect("connected");
        let (_, pid) = socket.accept().await.expect("accepted");
        assert_eq!(pid, i32::try_from(std::process::id()).ok());
        assert!(std::os::unix::net::UnixStream::connect(&short).is_err());
        drop(socket);
        assert!(!path.exists());
    }
}
