//! Landlock, for what is no file: abstract sockets and signals.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::descriptor;

/// `LANDLOCK_CREATE_RULESET_VERSION`: asks for the interface's version instead of making a ruleset.
const VERSION: libc::c_long = 1;
/// The version that knows scopes (Linux 6.12).
const WITH_SCOPES: libc::c_long = 6;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`.
const SCOPES: u64 = 0b11;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// A ruleset that only has scopes: whoever is put under it connects to abstract sockets of, and signals, nobody but who is
/// under it as well by descent. It handles no files, so it forbids no mounts and costs no `open` anything.
pub(crate) fn scopes() -> io::Result<OwnedFd> {
    // SAFETY: asking for the version takes no memory; the attributes are alive for the second call and only read.
    unsafe {
        let null = std::ptr::null::<RulesetAttributes>();
        let version = libc::syscall(libc::SYS_landlock_create_ruleset, null, 0, VERSION);
        if version < 0 {
            return Err(io::Error::last_os_error());
        }
        if version < WITH_SCOPES {
            let message = format!("this kernel's Landlock is of version {version}; scopes need 6 (Linux 6.12)");
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let attributes = RulesetAttributes { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPES };
        let size = size_of::<RulesetAttributes>();
        let fd = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0);
        match i32::try_from(fd) {
            // A fresh descriptor (always close-on-exec) that nobody else owns.
            Ok(fd) if fd >= 0 => Ok(descriptor::keep(OwnedFd::from_raw_fd(fd))),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
