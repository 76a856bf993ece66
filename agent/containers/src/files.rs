//! The driver's own directory: the shim for containers, a folder with a socket for each, and whose containers these are.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{DirBuilderExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

const OWNER: &str = "owner";
const SHIM: &str = "flux-shim";
const SOCKETS: &str = "run";
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
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        // Of containers that are gone, or are about to be.
        let _ = fs::remove_dir_all(dir.join(SOCKETS));
        DirBuilder::new().mode(0o700).create(dir.join(SOCKETS))?;
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
    /// The one connection that is taken: after it nobody is listened to.
    pub(crate) async fn accept(&mut self) -> io::Result<std::os::unix::net::UnixStream> {
        let Some(listener) = &self.listener else { return Err(io::ErrorKind::NotConnected.into()) };
        let (stream, _) = listener.accept().await?;
        self.listener = None;
        fs::remove_file(self.path.join(SOCKET))?;
        stream.into_std()
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

/// The directory of code that was asked for, if it is one below `code_dir`.
pub(crate) fn code_below(code_dir: &Path, asked: &Path) -> Result<PathBuf, String> {
    let real = |path: &Path| path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
    let (root, path) = (real(code_dir)?, real(asked)?);
    if path != root && path.starts_with(&root) && path.is_dir() {
        return Ok(path);
    }
    Err(format!("{} is no folder of code below {}", asked.display(), code_dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_from_below_its_directory_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let code = dir.path().join("code");
        fs::create_dir_all(code.join("a")).expect("made");
        fs::create_dir_all(dir.path().join("code-of-others")).expect("made");
        std::os::unix::fs::symlink("/etc", code.join("link")).expect("linked");
        fs::write(code.join("file"), "").expect("written");
        assert_eq!(code_below(&code, &code.join("a")), Ok(code.join("a").canonicalize().expect("there")));
        for wrong in ["", "link", "file", "a/..", "../code-of-others", "nowhere", "/etc"] {
            assert!(code_below(&code, &code.join(wrong)).is_err(), "{wrong}");
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
        socket.accept().await.expect("accepted");
        assert!(std::os::unix::net::UnixStream::connect(&short).is_err());
        drop(socket);
        assert!(!path.exists());
    }
}
