//! Where descriptors lie that are kept for long: high, so that a child can leave them behind in one step.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Above what is open for a moment: three for each execution that is being started, and the launcher's own few.
pub(crate) const KEPT_FROM: RawFd = 1024;

/// The same, with a high number; or as it was, where the limit on open files is below that.
pub(crate) fn keep(fd: OwnedFd) -> OwnedFd {
    // SAFETY: no memory is touched; the result is a new descriptor or -1.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, KEPT_FROM) };
    if high < 0 {
        return fd;
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(high) }
}

/// Takes what is free of the numbers that a child's stdin, stdout, stderr and channel will have, for good: whatever else is
/// opened lies above, and is not overwritten before it is used.
pub(crate) fn hold_lowest() -> io::Result<()> {
    const CHANNEL: RawFd = 3;
    loop {
        let opened = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
        if opened.as_raw_fd() > CHANNEL {
            return Ok(());
        }
        let _held = opened.into_raw_fd();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn what_is_kept_lies_high_and_is_the_same_file() {
        crate::sys::process::raise_open_files().expect("a limit");
        let mut file = tempfile();
        let mut kept = std::fs::File::from(keep(file.try_clone().expect("a copy").into()));
        assert!(kept.as_raw_fd() >= KEPT_FROM);
        file.write_all(b"here").expect("write");
        kept.rewind().expect("the start");
        let mut read = String::new();
        kept.read_to_string(&mut read).expect("read");
        assert_eq!(read, "here");
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("flux-descriptor-{}", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let _ = std::fs::remove_file(&path);
        file.expect("a file")
    }
}
