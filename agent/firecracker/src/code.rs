//! Images of functions' code: an ext4 file system for each digest, made once, and given to guests as a read-only disk.

use std::{
    fs, io,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::PathBuf,
};

use flux_driver_link::OpenCode;
use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use tokio::{process::Command, sync::Mutex};

/// Images that are kept; the oldest goes first. A guest that has one keeps it by its own link.
const MOST: usize = 256;
const BLOCK: u64 = 4096;
/// For what a file system needs beside the files.
const SPARE: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    #[error("the code of {digest} cannot be read")]
    Read {
        digest: String,
        #[source]
        source: io::Error,
    },
    #[error("the code of {0} belongs to root: an image of it could hold what only root may read")]
    Roots(String),
    #[error("mke2fs or debugfs cannot be run; Debian's package e2fsprogs has them")]
    NoTool(#[source] io::Error),
    #[error("mke2fs failed: {0}")]
    Failed(String),
}

/// The images of a driver.
#[derive(Debug)]
pub(crate) struct Images {
    folder: PathBuf,
    /// One at a time: an image is made once, and soon.
    making: Mutex<()>,
}

impl Images {
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            // Half made.
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { folder, making: Mutex::new(()) })
    }

    /// The image of this folder, whose content has this digest.
    pub(crate) async fn of(&self, code: &OpenCode, digest: &str) -> Result<PathBuf, CodeError> {
        let path = self.folder.join(digest);
        let _one = self.making.lock().await;
        if path.exists() {
            return Ok(path);
        }
        let read = |source| CodeError::Read { digest: digest.to_owned(), source };
        // It is made as who unpacked the code: whatever that names, what only root can read is not in the image.
        if nix::unistd::geteuid().is_root() && code.uid() == 0 {
            return Err(CodeError::Roots(digest.to_owned()));
        }
        let (bytes, files) = size(code.folder()).map_err(read)?;
        let new = self.folder.join(format!("{digest}.new"));
        let mut command = tool("mke2fs");
        let arguments = ["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-O", "^has_journal,^resize_inode"];
        command.args(arguments).args(["-E", "root_owner=0:0", "-N", &(files + 16).to_string(), "-d"]);
        // An inode takes 256 bytes of a table.
        let blocks = (bytes + bytes / 16 + files * 256 + SPARE) / BLOCK;
        // It is told an open file's name: the folder is closed to who it runs as.
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&new);
        let file = file.map_err(CodeError::NoTool)?;
        // Its directory is the open folder: whatever is put at its path meanwhile is not what is read.
        command.current_dir(code.path()).args([".", "/dev/stdin", &blocks.to_string()]);
        // Else a function would see a directory that is not its own.
        let mut tidy = tool("debugfs");
        tidy.args(["-w", "-R", "rmdir lost+found", "/dev/stdin"]);
        tidy.stdin(file.try_clone().map_err(CodeError::NoTool)?);
        if nix::unistd::geteuid().is_root() {
            nix::unistd::fchown(&file, Some(code.uid().into()), Some(code.gid().into()))
                .map_err(|error| CodeError::NoTool(error.into()))?;
            for command in [&mut command, &mut tidy] {
                command.uid(code.uid()).gid(code.gid());
            }
        }
        command.stdin(file);
        let output = command.output().await.map_err(CodeError::NoTool)?;
        if !output.status.success() {
            return Err(CodeError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        tidy.output().await.map_err(CodeError::NoTool)?;
        let closed = nix::unistd::chown(&new, Some(nix::unistd::geteuid()), None).map_err(io::Error::from);
        let closed = closed.and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o444)));
        closed.and_then(|()| fs::rename(&new, &path)).map_err(CodeError::NoTool)?;
        self.drop_oldest().map_err(CodeError::NoTool)?;
        Ok(path)
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            images.push((entry.metadata()?.modified()?, entry.path()));
        }
        images.sort();
        let spare = images.len().saturating_sub(MOST);
        images.into_iter().take(spare).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    // A driver has no environment of its own.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").kill_on_drop(true);
    command
}

/// Bytes in whole blocks, and the number of entries.
fn size(folder: &fs::File) -> io::Result<(u64, u64)> {
    let (mut bytes, mut files) = (BLOCK, 1);
    for entry in fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let (more_bytes, more_files) = if metadata.is_dir() {
            // Through no link, should it have become one.
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            size(&openat(folder, entry.file_name().as_os_str(), flags, Mode::empty())?.into())?
        } else {
            (metadata.len().next_multiple_of(BLOCK), 1)
        };
        bytes += more_bytes;
        files += more_files;
    }
    Ok((bytes, files))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, path::Path};

    use super::*;

    fn opened(path: &Path) -> OpenCode {
        OpenCode::known(path).expect("opened")
    }

    /// As what unpacks archives does: not root's.
    fn code() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("sub")).expect("made");
        fs::write(folder.path().join("main.py"), "x = 1\n").expect("written");
        fs::write(folder.path().join("sub/large"), vec![7; 3_000_000]).expect("written");
        if nix::unistd::geteuid().is_root() {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("changed");
            std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).expect("given");
        }
        folder
    }

    #[tokio::test]
    async fn an_image_is_made_once_and_holds_the_files() {
        let (code, images) = (code(), tempfile::tempdir().expect("a folder"));
        let made = Images::open(images.path().to_owned()).expect("opened");
        let image = made.of(&opened(code.path()), "d1").await.expect("made");
        let shown = std::process::Command::new("debugfs").args(["-R", "cat /main.py"]).arg(&image).output();
        assert_eq!(String::from_utf8_lossy(&shown.expect("run").stdout), "x = 1\n");
        let first = fs::metadata(&image).expect("there").ino();
        let again = made.of(&opened(code.path()), "d1").await.expect("there");
        assert_eq!(fs::metadata(again).expect("there").ino(), first);
        assert_eq!(fs::metadata(&image).expect("there").mode() & 0o777, 0o444);
    }

    #[tokio::test]
    async fn a_folder_that_was_swapped_is_not_in_the_image() {
        let (code, images) = (code(), tempfile::tempdir().expect("a folder"));
        let made = Images::open(images.path().to_owned()).expect("opened");
        let (open, aside) = (opened(code.path()), code.path().with_extension("aside"));
        fs::rename(code.path(), &aside).expect("moved");
        fs::create_dir(code.path()).expect("made");
        fs::write(code.path().join("secret"), "alice's").expect("written");
        let image = made.of(&open, "d1").await;
        fs::remove_dir_all(aside).expect("removed");
        let shown = std::process::Command::new("debugfs").args(["-R", "ls -p /"]).arg(image.expect("made")).output();
        let shown = String::from_utf8_lossy(&shown.expect("run").stdout).into_owned();
        assert!(shown.contains("/main.py/") && !shown.contains("secret"), "{shown}");
        assert!(!shown.contains("lost+found"), "{shown}");
    }

    #[tokio::test]
    async fn roots_own_folders_are_not_made_into_images() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let images = tempfile::tempdir().expect("a folder");
        let made = Images::open(images.path().to_owned()).expect("opened");
        let refused = made.of(&opened(Path::new("/etc")), "d1").await;
        assert!(matches!(refused, Err(CodeError::Roots(_))), "{refused:?}");
        assert_eq!(fs::read_dir(images.path()).expect("read").count(), 0);
    }
}
