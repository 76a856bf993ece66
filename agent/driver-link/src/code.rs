//! Folders of code, held open: what was checked is what is used.
//!
//! The agent owns the directory that code is unpacked to. One that was taken over may put a link wherever a driver, which is root,
//! looks next: so a driver opens a folder once, through no link, and goes by its descriptor from there on.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An open folder of code.
#[derive(Debug)]
pub struct OpenCode {
    folder: File,
    name: String,
    uid: u32,
    gid: u32,
}

impl OpenCode {
    /// The folder that an agent asks for, if it is one below `code_dir` and of the same owner. That `code_dir` is where it was is up to
    /// who owns the directory that it is in: its own name alone is the agent's to change, and may not be a link.
    ///
    /// # Errors
    /// It is not, or a link is on the way.
    pub fn below(code_dir: &Path, asked: &Path) -> Result<Self, String> {
        let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        let no_folder = || format!("{} is no folder of code below {}", asked.display(), code_dir.display());
        let real = code_dir.canonicalize().map_err(|error| failed(code_dir, error))?;
        // The same text or not: nothing but names is taken of it.
        let names = asked.strip_prefix(code_dir).or_else(|_| asked.strip_prefix(&real)).map_err(|_| no_folder())?;
        let root = open(code_dir).map_err(|error| failed(code_dir, error))?;
        let owner = root.metadata().map_err(|error| failed(code_dir, error))?.uid();
        let mut folder = root;
        let mut first = None;
        for name in names.components() {
            let Component::Normal(name) = name else { return Err(no_folder()) };
            let next = openat(&folder, name, FOLDER, Mode::empty()).map_err(|error| failed(asked, error.into()))?;
            folder = next.into();
            first.get_or_insert(name);
        }
        let name = first.ok_or_else(no_folder)?.to_string_lossy().into_owned();
        let code = Self::of(folder, name).map_err(|error| failed(asked, error))?;
        if code.uid != owner {
            return Err(format!("{} does not belong to the owner of {}", asked.display(), code_dir.display()));
        }
        Ok(code)
    }

    /// A folder that is known to be what it should.
    ///
    /// # Errors
    /// It is a link, or no folder, or cannot be read.
    pub fn known(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::of(open(path)?, name)
    }

    fn of(folder: File, name: String) -> io::Result<Self> {
        let metadata = folder.metadata()?;
        Ok(Self { folder, name, uid: metadata.uid(), gid: metadata.gid() })
    }

    /// A path of it for this process, and for as long as this is held.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()))
    }

    /// The open folder.
    pub fn folder(&self) -> &File {
        &self.folder
    }

    /// The name of the folder right below the directory of code: the digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn uid(&self) -> u32 {
        self.uid
    }

    pub fn gid(&self) -> u32 {
        self.gid
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(FOLDER.bits()).open(path)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{chown, symlink},
    };

    use super::*;

    fn code() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let code = dir.path().join("code");
        fs::create_dir_all(code.join("a/code")).expect("made");
        fs::create_dir_all(dir.path().join("code-of-others")).expect("made");
        fs::write(code.join("a/code/main"), "mine").expect("written");
        fs::write(code.join("file"), "").expect("written");
        (dir, code)
    }

    #[test]
    fn code_comes_from_below_its_directory_and_through_no_link() {
        let (_dir, code) = code();
        symlink("/etc", code.join("link")).expect("linked");
        symlink("a", code.join("inside")).expect("linked");
        symlink("/etc", code.join("a/link")).expect("linked");
        for name in ["a", "a/code", "a/./code"] {
            assert_eq!(OpenCode::below(&code, &code.join(name)).expect(name).name(), "a");
        }
        for wrong in
            ["", ".", "link", "inside", "inside/code", "a/link", "file", "a/..", "../code-of-others", "nowhere", "/etc"]
        {
            assert!(OpenCode::below(&code, &code.join(wrong)).is_err(), "{wrong}");
        }
        let moved = code.with_file_name("moved");
        fs::rename(&code, &moved).expect("moved");
        symlink(&moved, &code).expect("linked");
        assert!(OpenCode::below(&code, &code.join("a")).is_err(), "the directory itself became a link");
    }

    #[test]
    fn what_is_swapped_afterwards_is_not_what_is_used() {
        let (_dir, code) = code();
        let open = OpenCode::below(&code, &code.join("a/code")).expect("there");
        fs::rename(code.join("a"), code.join("old")).expect("moved");
        symlink("/etc", code.join("a")).expect("linked");
        assert_eq!(fs::read_to_string(open.path().join("main")).expect("read"), "mine");
    }

    #[test]
    fn code_belongs_to_who_owns_its_directory() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not run: only root can give a folder to another user");
            return;
        }
        let (_dir, code) = code();
        chown(code.join("a/code"), Some(1000), None).expect("given");
        let refused = OpenCode::below(&code, &code.join("a/code")).expect_err("another's");
        assert!(refused.contains("does not belong"), "{refused}");
        chown(&code, Some(1000), None).expect("given");
        assert_eq!(OpenCode::below(&code, &code.join("a/code")).expect("theirs").uid(), 1000);
    }
}
