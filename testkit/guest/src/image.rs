//! The image that guests boot: made once, and kept beside what cargo builds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::fcntl::{Flock, FlockArg};

/// What tests run in a guest: handlers in Python, and what the launcher's own tests start.
const PACKAGES: [&str; 8] = ["bash", "coreutils", "dash", "grep", "mount", "perl", "python3", "util-linux"];

/// An image in a folder.
#[derive(Debug)]
pub struct Image(PathBuf);

impl Image {
    /// The tests' image, made now if it is not there or another build's.
    ///
    /// # Panics
    /// It cannot be made: a tool or a package is missing.
    pub fn of_tests() -> Self {
        let executable = std::env::current_exe().expect("the path of the running test is unknown");
        // …/debug/deps/it-0123456789abcdef
        let target = executable.ancestors().nth(2).expect("a folder above");
        let folder = target.join("guest-image");
        fs::create_dir_all(&folder).expect("a folder");
        // Tests run as processes at the same time; one makes it.
        let lock = fs::File::create(folder.join("lock")).expect("a lock");
        let _locked = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("the lock");
        let packages = PACKAGES.map(str::to_owned);
        if !flux_guest_image::is_current(&folder, &packages) {
            flux_guest_image::build(&folder, &packages, &mut |said| eprintln!("guest image: {said}"))
                .unwrap_or_else(|error| panic!("the guests' image cannot be made: {error}"));
        }
        Self(folder)
    }

    pub fn kernel(&self) -> PathBuf {
        self.0.join(flux_guest_image::KERNEL)
    }

    pub fn initramfs(&self) -> PathBuf {
        self.0.join(flux_guest_image::INITRAMFS)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.0.join(flux_guest_image::ROOTFS)
    }
}

/// Makes a disk of a folder.
///
/// # Panics
/// mke2fs fails.
pub fn code_disk(folder: &Path, to: &Path) {
    let bytes: u64 =
        fs::read_dir(folder).expect("a folder").flatten().map(|e| e.metadata().map_or(0, |m| m.len())).sum();
    let mebibytes = bytes / (1 << 20) * 11 / 10 + 4;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(folder)
        .arg(to)
        .arg(format!("{mebibytes}M"));
    let output = mke2fs.output().expect("mke2fs runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
