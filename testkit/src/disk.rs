//! A file system of a test's own, that can be filled to the last byte.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

const BLOCK: usize = 1024 * 1024;
const PAGE: usize = 4096;

/// A small disk in memory. Dropping it unmounts it, with all that is on it.
#[derive(Debug)]
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// `None`: whoever runs the test may not mount.
    pub fn mount(mib: usize) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("flux-disk-").tempdir().expect("cannot make a temporary directory");
        let options = format!("size={mib}m,mode=0755");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str())).ok()?;
        Some(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes what room is left.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file on the test's own disk");
        let zeros = vec![0; BLOCK];
        for size in [BLOCK, PAGE] {
            loop {
                match file.write(&zeros[..size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("cannot fill the test's own disk: {error}"),
                }
            }
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the filler is there");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is still open on it goes with its process.
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}
