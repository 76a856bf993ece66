//! What happens between `fork` and `exec` for the platform's own processes: children of the tree, and launchers.
//!
//! These start once in a while, so `std::process::Command` does the forking and the reporting of errors.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What is special about a child.
#[derive(Debug, Default)]
pub(crate) struct Preparation {
    /// Descriptors it inherits beside stdio; every other one is closed.
    pub(crate) keep: Vec<RawFd>,
    /// Uid and gid to change to, without supplementary groups.
    pub(crate) user: Option<(u32, u32)>,
    /// Die with the parent: the reading and the writing end of a pipe whose writing end only the parent holds.
    pub(crate) die_with: Option<(RawFd, RawFd)>,
}

/// Gives the command a process group of its own and `preparation`.
pub(crate) fn prepare(command: &mut Command, preparation: Preparation) {
    command.process_group(0);
    // SAFETY: the closure runs in the forked child and makes system calls only: no allocation, no lock. Its vector
    // was made by the parent.
    unsafe {
        command.pre_exec(move || run(&preparation));
    }
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn run(preparation: &Preparation) -> io::Result<()> {
    // SAFETY: in a forked, single-threaded child; the calls touch no memory but the initialised `set` and `poll`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()))?;
        if let Some((uid, gid)) = preparation.user {
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setresgid(gid, gid, gid))?;
            check(libc::setresuid(uid, uid, uid))?;
        }
        if let Some((reading, writing)) = preparation.die_with {
            // After the change of uid, which clears it. Then the check for a parent that died before it: by a pipe,
            // since the parent's pid proves nothing once it is gone.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            libc::close(writing);
            let mut poll = libc::pollfd { fd: reading, events: 0, revents: 0 };
            if libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLHUP != 0 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        // Not closed at once: std reports a failed exec through a descriptor of its own.
        if libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        for &fd in &preparation.keep {
            if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}
