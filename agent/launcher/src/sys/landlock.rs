//! Landlock: rulesets that a child puts itself under, for ever, with all that it starts.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `LANDLOCK_CREATE_RULESET_VERSION`: asks for the interface's version instead of making a ruleset.
const VERSION: libc::c_long = 1;
const RULE_PATH_BENEATH: libc::c_int = 1;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`, since version 6.
const SCOPES: u64 = 0b11;

/// What can be done with a file, and with a directory beside; bits of `LANDLOCK_ACCESS_FS_*`.
pub(crate) mod access {
    pub(crate) const EXECUTE: u64 = 1 << 0;
    pub(crate) const WRITE_FILE: u64 = 1 << 1;
    pub(crate) const READ_FILE: u64 = 1 << 2;
    pub(crate) const READ_DIR: u64 = 1 << 3;
    pub(crate) const TRUNCATE: u64 = 1 << 14;
    const IOCTL_DEV: u64 = 1 << 15;
    /// Of a file; a rule for one may name no others.
    pub(crate) const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

    /// All that this version of the interface knows.
    pub(super) fn all(version: u32) -> u64 {
        match version {
            0 => 0,
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        }
    }
}

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The interface's version; an error where the kernel has none.
pub(crate) fn version() -> io::Result<u32> {
    // SAFETY: asking for the version takes no memory.
    let version = unsafe {
        let null = std::ptr::null::<RulesetAttributes>();
        libc::syscall(libc::SYS_landlock_create_ruleset, null, 0, VERSION)
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}

/// A ruleset of this version with scopes, where that has them, and with `files` one that forbids all files. (Without, it
/// handles none: then it forbids no mounts, and costs no `open` anything.)
pub(crate) fn ruleset(version: u32, files: bool) -> io::Result<OwnedFd> {
    let handled_access_fs = if files { access::all(version) } else { 0 };
    let scoped = if version >= 6 { SCOPES } else { 0 };
    let attributes = RulesetAttributes { handled_access_fs, handled_access_net: 0, scoped };
    // Older kernels take a longer structure whose unknown end is 0.
    let size = size_of::<RulesetAttributes>();
    // SAFETY: the attributes are alive for the call, and only read.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0) };
    match i32::try_from(fd) {
        // SAFETY: a fresh descriptor (always close-on-exec) that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Allows `allowed`, as far as the version knows it, to a file or to everything beneath a directory.
pub(crate) fn allow(ruleset: BorrowedFd<'_>, version: u32, path: BorrowedFd<'_>, allowed: u64) -> io::Result<()> {
    let rule = PathBeneath { allowed: allowed & access::all(version), parent: path.as_raw_fd() };
    // SAFETY: the rule is alive for the call, and only read.
    let rc = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
