//! What a function may open where it has no slot, and so no view of its own: the same allow-list, by Landlock.
//!
//! It hides what matters most there: the agent's own data, its keys, the user's home and other functions' code, all of
//! which the function's user could read. It is weaker than a view. Names are still seen by `stat`; sockets in the file
//! system can be connected to; `/dev/shm` is everybody's, since interpreters need it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::slot::seen;
use crate::sys::landlock::{self, access};

const READ: u64 = access::READ_FILE | access::READ_DIR;
const RUN: u64 = READ | access::EXECUTE;
const DEVICE: u64 = access::READ_FILE | access::WRITE_FILE | access::TRUNCATE;
const EVERYTHING: u64 = u64::MAX;
/// In a slot these are made up.
const NAMES: [&str; 3] = ["passwd", "group", "hostname"];

/// What all functions may open, kept open itself.
#[derive(Debug)]
pub(crate) struct AllowedFiles {
    version: u32,
    common: Vec<(File, u64)>,
}

impl AllowedFiles {
    /// Looks at the machine once, and makes one ruleset.
    pub(crate) fn survey(extra: &[impl AsRef<Path>]) -> io::Result<Self> {
        let mut files = AllowedFiles { version: landlock::version()?, common: Vec::new() };
        let root = Path::new("/");
        for name in seen::SYSTEM {
            files.add(&root.join(name), RUN);
        }
        for path in extra {
            files.add(path.as_ref(), RUN);
        }
        let nested = seen::ETC_NESTED.iter().flat_map(|(_, children)| *children);
        for name in seen::ETC.iter().chain(&NAMES).chain(nested) {
            files.add(&root.join("etc").join(name), READ);
        }
        for name in seen::DEVICES {
            files.add(&root.join("dev").join(name), DEVICE);
        }
        files.add(&root.join("dev/shm"), EVERYTHING);
        // Of other processes than its own, a process under Landlock reads nothing that tracing would show.
        files.add(&root.join("proc"), READ);
        files.ruleset(root, root).map(|_tried| files)
    }

    /// What is not there is not allowed.
    fn add(&mut self, path: &Path, allowed: u64) {
        if let Ok(opened) = open(path) {
            let opened = crate::sys::descriptor::keep(OwnedFd::from(opened));
            self.common.push((opened.into(), allowed));
        }
    }

    /// The ruleset of one execution: its code to run, its own directory to do anything with.
    pub(crate) fn ruleset(&self, code: &Path, scratch: &Path) -> io::Result<OwnedFd> {
        let ruleset = landlock::ruleset(self.version, true)?;
        let allow = |file: &File, allowed: u64| {
            let allowed = if file.metadata()?.is_dir() { allowed } else { allowed & access::OF_FILES };
            landlock::allow(ruleset.as_fd(), self.version, file.as_fd(), allowed)
        };
        for (file, allowed) in &self.common {
            allow(file, *allowed)?;
        }
        allow(&open(code)?, RUN)?;
        allow(&open(scratch)?, EVERYTHING)?;
        Ok(ruleset)
    }
}

/// A place in the file system; nothing of it is read.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}
