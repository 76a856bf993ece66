//! Loading a seccomp filter.
#![allow(unsafe_code)]

use std::io;

/// Loads it for the calling thread, which must have `no_new_privs` or root's rights.
pub(crate) fn load(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `length` instructions from the slice and changes nothing; `no_new_privs` takes no memory.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether this thread's `keyctl` is unknown to its kernel, or said to be.
pub(crate) fn keyctl_is_refused() -> bool {
    /// `KEYCTL_GET_KEYRING_ID` of the session's keyring, not to be made.
    const HARMLESS: [libc::c_long; 3] = [0, -3, 0];
    // SAFETY: the operation takes numbers only.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, HARMLESS[0], HARMLESS[1], HARMLESS[2]) };
    rc == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS)
}
