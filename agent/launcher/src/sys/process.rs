//! Waiting, signalling, and what a launcher sets once for itself and for each of its threads.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::wire::ExitStatus;

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn clock_us(clock: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is writable.
    unsafe { libc::clock_gettime(clock, &raw mut ts) };
    ts.tv_sec.cast_unsigned() * 1_000_000 + ts.tv_nsec.cast_unsigned() / 1000
}

/// `CLOCK_REALTIME` in microseconds.
pub(crate) fn now_us() -> u64 {
    clock_us(libc::CLOCK_REALTIME)
}

/// What the kernel knows of an ended process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waited {
    pub(crate) status: ExitStatus,
    pub(crate) cpu_us: u64,
    pub(crate) max_rss_bytes: u64,
}

/// Blocks until `pid` has ended and leaves it a zombie, so that its number is not given to another process yet.
pub(crate) fn wait_without_reaping(pid: i32) -> io::Result<()> {
    loop {
        // SAFETY: an all-zero siginfo_t is valid, and writable for the call.
        let rc = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if rc == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits for the end of a child for at most `time`; whether it has ended. It is not reaped.
pub(crate) fn ends_within(pid: i32, time: std::time::Duration) -> io::Result<bool> {
    let pidfd = pidfd(pid)?;
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: one pollfd and one timespec of this frame.
    let ready = unsafe { libc::ppoll(&raw mut poll, 1, &raw const limit, std::ptr::null()) };
    if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(ready > 0) }
}

/// Whether this process has any child, ended ones included.
pub(crate) fn has_children() -> bool {
    // SAFETY: an all-zero siginfo_t is valid, and writable for the call.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT | libc::WNOHANG) == 0
    }
}

/// Blocks until `pid` has ended, and reaps it.
pub(crate) fn reap(pid: i32) -> io::Result<Waited> {
    reap_flags(pid, 0)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
}

/// Reaps `pid` if it has ended.
pub(crate) fn try_reap(pid: i32) -> io::Result<Option<Waited>> {
    reap_flags(pid, libc::WNOHANG)
}

fn reap_flags(pid: i32, flags: libc::c_int) -> io::Result<Option<Waited>> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: `status` and `usage` are writable for the call.
        let rc = unsafe { libc::wait4(pid, &raw mut status, flags, &raw mut usage) };
        if rc == pid {
            break;
        }
        if rc == 0 {
            return Ok(None);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let micros = |t: libc::timeval| t.tv_sec.cast_unsigned() * 1_000_000 + t.tv_usec.cast_unsigned();
    Ok(Some(Waited {
        status: if libc::WIFSIGNALED(status) {
            ExitStatus::Signaled(libc::WTERMSIG(status))
        } else {
            ExitStatus::Exited(libc::WEXITSTATUS(status))
        },
        cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime),
        max_rss_bytes: usage.ru_maxrss.cast_unsigned() * 1024,
    }))
}

/// Sends `signal` to a process.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is touched.
    check(unsafe { libc::kill(pid, signal) })
}

/// Sends `signal` to a process group.
pub(crate) fn kill_group(pgid: i32, signal: i32) -> io::Result<()> {
    // Group 0 and 1 would be the launcher's own and everyone: never meant.
    if pgid <= 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    kill(-pgid, signal)
}

/// A descriptor for whoever has this number now: a certain process only where it is a child that was not reaped yet.
pub(crate) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is touched; the result is a new descriptor (always close-on-exec) or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number that the process of a pidfd is known by in `/proc`; none once it was waited for.
pub(crate) fn number_of(pidfd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let said = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    Ok(said.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()).filter(|pid| *pid > 0))
}

/// Points the calling thread's children at the PID namespace of `namespace` (a pidfd, or `/proc/self/ns/pid`).
pub(crate) fn children_into_pid_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is touched; CLONE_NEWPID changes only where this thread's next children are made.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) })
}

/// Puts the calling thread into the network of `namespace` (a pidfd, or a thread's `ns/net`).
pub(crate) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is touched; CLONE_NEWNET changes this thread's own network alone.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Whether the effective uid is 0.
pub(crate) fn is_root() -> bool {
    // SAFETY: always succeeds, touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// Puts the whole process into the state that every function should inherit, before any thread exists: default
/// signal dispositions, `umask 022`, no controlling surprises.
///
/// INT, TERM and HUP are blocked rather than ignored: a service manager that signals a whole control group must not
/// end the launcher before its agent has drained (its end is the control socket's), and a blocked signal's default
/// disposition is what a child gets once it clears its mask. PIPE likewise: writing to a closed stderr must not kill.
pub(crate) fn prepare_process() {
    // SAFETY: single-threaded here. The default needs no handler; the calls that fail (KILL, STOP) have no effect;
    // `set` is initialised by sigemptyset before use.
    unsafe {
        // Raw, since glibc keeps two numbers for itself and would leave them as they were inherited. All zero is the
        // default disposition, and the array is larger than the kernel's structure.
        let default = [0u64; 8];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, std::ptr::null_mut::<u64>(), 8);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::umask(0o022);
        libc::prctl(libc::PR_SET_NAME, c"flux-launcher".as_ptr());
    }
}

/// Orphans of functions become this process's children, so that they can be found and ended.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: no memory is touched.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })
}

/// Gives up what a thread's children should not have and the thread itself does not need.
///
/// Credentials are per thread, so doing it here once saves each child some 45 system calls. The bounding set and
/// `no_new_privs` only limit what `execve` can gain, so the thread keeps its rights for making slots.
pub(crate) fn prepare_thread(root: bool) -> io::Result<()> {
    // SAFETY: none of these touches memory. The raw call is on purpose: glibc's setgroups would change all threads.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        if root {
            for capability in 0..64 {
                // Fails with EINVAL past the last one that this kernel has.
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                    break;
                }
            }
            if libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Where this process's argument strings are: address and length.
pub(crate) fn argument_strings() -> Option<(usize, usize)> {
    // Fields 48 and 49 of the line; the first after the name's closing bracket is the third.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(45);
    let (start, end): (usize, usize) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((start, end.checked_sub(start)?))
}

/// The limits on open files that this process was started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenFiles {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Raises the soft limit on open files to the hard one, and returns what they were.
pub(crate) fn raise_open_files() -> io::Result<OpenFiles> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the first call and readable for the second.
    unsafe {
        check(libc::getrlimit64(libc::RLIMIT_NOFILE, &raw mut limit))?;
        let before = OpenFiles { soft: limit.rlim_cur, hard: limit.rlim_max };
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit64(libc::RLIMIT_NOFILE, &raw const limit))?;
        Ok(before)
    }
}
