//! A slot's holder: PID 1 of its namespaces, a fork of the launcher that never executes another program.
//!
//! It is forked from a many-threaded process, so a lock may be held forever by a thread that does not exist here: no
//! allocation, no formatting, system calls only. What it does is prepared by the parent as a list of [`Step`]s.
//!
//! After `Ready` it serves commands of one byte: `R` ends every other process of the slot and makes `/tmp` and
//! `/dev/shm` empty again, and is answered; `C` does the same but for the process whose number in the slot follows; `K` only ends
//! the processes, and is not answered. The end of its socket, or its
//! parent thread's, is its own end, and the kernel then kills everything in the PID namespace.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::RawFd;

/// The command to reset the slot.
pub(crate) const RESET: u8 = b'R';
/// The command to reset the slot around one of its processes, whose number there follows.
pub(crate) const CLEAR: u8 = b'C';
/// The command to kill everything in the slot.
pub(crate) const KILL_ALL: u8 = b'K';

/// How long all but one process of a slot are killed before those that fork have won. Nobody else's slot is cleared meanwhile.
const CLEAR_TAKES_AT_MOST_MS: i64 = 200;
/// In so many looks, one after another, nobody is found.
const QUIET_LOOKS: u32 = 2;

/// The holder's stack, in its own copy of the memory.
const STACK_BYTES: usize = 64 << 10;
/// The holder's end of its socket, once it has closed everything else.
const LINK: RawFd = 3;

/// One step of building the root view; all paths are absolute.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Directory {
        path: CString,
        mode: u32,
    },
    File {
        path: CString,
        content: Vec<u8>,
    },
    Symlink {
        target: CString,
        path: CString,
    },
    Mount {
        source: CString,
        target: CString,
        kind: Option<CString>,
        flags: libc::c_ulong,
        options: Option<CString>,
    },
    /// Sets attributes on a mount and everything mounted below it.
    Attributes {
        target: CString,
        set: u64,
    },
}

impl Step {
    /// For the message about its failure.
    pub(crate) fn describe(&self) -> String {
        match self {
            Step::Directory { path, .. } => format!("making directory {}", path.to_string_lossy()),
            Step::File { path, .. } => format!("making file {}", path.to_string_lossy()),
            Step::Symlink { path, .. } => format!("making link {}", path.to_string_lossy()),
            Step::Mount { source, target, .. } => {
                format!("mounting {} on {}", source.to_string_lossy(), target.to_string_lossy())
            }
            Step::Attributes { target, .. } => format!("making {} read-only", target.to_string_lossy()),
        }
    }
}

/// Everything a holder does before it is ready.
#[derive(Debug)]
pub(crate) struct HolderPlan<'a> {
    pub(crate) link: RawFd,
    pub(crate) steps: &'a [Step],
    /// Where the steps build the new root.
    pub(crate) root: &'a CStr,
    /// Mount options of `/tmp` and `/dev/shm`, which are mounted again after each execution that wrote there.
    pub(crate) tmp_options: &'a CStr,
    pub(crate) empty_network: bool,
    /// The launcher's argument strings (address, length), to show none of them in the slot's `/proc/1/cmdline`.
    pub(crate) arguments: Option<(usize, usize)>,
}

/// What a holder says first: 0, or one more than the index of the step that failed (past the list: see
/// [`late_step`]), then `errno`.
pub(crate) type Ready = [u32; 2];

/// Names of what follows the listed steps.
pub(crate) fn late_step(index: usize) -> &'static str {
    match index {
        0 => "preparing the holder",
        1 => "making mounts private",
        2 => "changing the root",
        3 => "setting the host name",
        4 => "bringing up lo",
        _ => "mounting /tmp",
    }
}

/// Every set of namespaces that a launcher's thread or its vfork child joins.
pub(crate) const JOINED: [libc::c_int; 3] = [libc::CLONE_NEWPID, namespaces(false), namespaces(true)];

struct Fork<'a> {
    plan: &'a HolderPlan<'a>,
}

/// The namespaces that a slot has of its own, beside the PID namespace.
pub(crate) const fn namespaces(empty_network: bool) -> libc::c_int {
    let network = if empty_network { libc::CLONE_NEWNET } else { 0 };
    libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | network
}

/// Forks the holder. Its parent is the calling thread, whose end ends it.
pub(crate) fn start(plan: &HolderPlan<'_>) -> io::Result<i32> {
    let mut stack = vec![0u128; STACK_BYTES / 16];
    let mut fork = Fork { plan };
    let flags = libc::SIGCHLD | libc::CLONE_NEWPID | namespaces(plan.empty_network);
    // SAFETY: without CLONE_VM the child has its own copy of the stack, of `fork` and of all that the plan points at.
    let pid = unsafe { libc::clone(holder, stack.as_mut_ptr_range().end.cast(), flags, (&raw mut fork).cast()) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

extern "C" fn holder(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: our copy of the parent's `Fork`.
    let fork = unsafe { &*argument.cast::<Fork<'_>>() };
    // SAFETY: in the forked child, which this call never leaves.
    unsafe {
        let failed = set_up(fork.plan);
        let ready: Ready = match failed {
            None => [0, 0],
            Some(step) => [u32::try_from(step + 1).unwrap_or(u32::MAX), errno().unsigned_abs()],
        };
        // Before the launcher hears that it is ready: an execution could have written there by the time we look.
        let fresh = [free(c"/tmp"), free(c"/dev/shm")];
        libc::send(LINK, (&raw const ready).cast(), 8, libc::MSG_NOSIGNAL);
        if failed.is_none() {
            serve(fork.plan, fresh);
        }
        libc::_exit(0)
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Returns the index of the step that failed, listed ones first.
///
/// # Safety
/// In the forked child only.
unsafe fn set_up(plan: &HolderPlan<'_>) -> Option<usize> {
    let late = plan.steps.len();
    // SAFETY: system calls on the plan's strings, which live in this process's own memory; the argument strings are the
    // kernel's copy on the writable stack of the main thread, which does not exist here.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for number in 0..3 {
            libc::dup2(null, number);
        }
        if plan.link != LINK && libc::dup2(plan.link, LINK) < 0 {
            return Some(late);
        }
        if libc::syscall(libc::SYS_close_range, LINK + 1, u32::MAX, 0) != 0
            || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0
        {
            return Some(late);
        }
        libc::setsid();
        // So that ended processes vanish without anyone waiting for them.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::prctl(libc::PR_SET_NAME, c"flux-slot".as_ptr());
        if let Some((start, length)) = plan.arguments {
            // In this process's own copy, where nothing reads them any more.
            std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(start), 0, length);
        }
        let none = c"none".as_ptr();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        if libc::mount(none, c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()) != 0 {
            return Some(late + 1);
        }
        for (index, step) in plan.steps.iter().enumerate() {
            if !apply(step) {
                return Some(index);
            }
        }
        // Onto itself: the old root then lies on top of the new one and is taken off.
        if libc::chdir(plan.root.as_ptr()) != 0
            || libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) != 0
            || libc::umount2(c".".as_ptr(), libc::MNT_DETACH) != 0
            || libc::chdir(c"/".as_ptr()) != 0
        {
            return Some(late + 2);
        }
        let name = c"flux";
        if libc::sethostname(name.as_ptr(), name.count_bytes()) != 0 {
            return Some(late + 3);
        }
        if plan.empty_network && !bring_up_loopback() {
            return Some(late + 4);
        }
        if !mount_tmp(c"/tmp", plan.tmp_options) || !mount_tmp(c"/dev/shm", plan.tmp_options) {
            return Some(late + 5);
        }
        None
    }
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// # Safety
/// In the forked child only.
unsafe fn apply(step: &Step) -> bool {
    // SAFETY: system calls on the step's strings.
    unsafe {
        match step {
            Step::Directory { path, mode } => libc::mkdir(path.as_ptr(), *mode) == 0 || errno() == libc::EEXIST,
            Step::File { path, content } => {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC;
                let fd = libc::open(path.as_ptr(), flags, 0o644);
                let written = libc::write(fd, content.as_ptr().cast(), content.len());
                fd >= 0 && usize::try_from(written) == Ok(content.len()) && libc::close(fd) == 0
            }
            Step::Symlink { target, path } => libc::symlink(target.as_ptr(), path.as_ptr()) == 0,
            Step::Mount { source, target, kind, flags, options } => {
                let pointer = |s: &Option<CString>| s.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
                libc::mount(source.as_ptr(), target.as_ptr(), pointer(kind), *flags, pointer(options).cast()) == 0
            }
            Step::Attributes { target, set } => {
                let attributes = MountAttributes { set: *set, clear: 0, propagation: 0, userns: 0 };
                libc::syscall(
                    libc::SYS_mount_setattr,
                    libc::AT_FDCWD,
                    target.as_ptr(),
                    libc::AT_RECURSIVE,
                    &raw const attributes,
                    size_of::<MountAttributes>(),
                ) == 0
            }
        }
    }
}

/// # Safety
/// In the forked child only.
unsafe fn mount_tmp(path: &CStr, options: &CStr) -> bool {
    // SAFETY: system calls on static and the plan's strings.
    unsafe {
        let kind = c"tmpfs".as_ptr();
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        libc::mount(kind, path.as_ptr(), kind, flags, options.as_ptr().cast()) == 0
    }
}

/// # Safety
/// In the forked child only.
unsafe fn bring_up_loopback() -> bool {
    // SAFETY: `request` is initialised before the ioctl reads it; the union's flags are the member that the ioctl uses.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        #[allow(clippy::cast_possible_truncation)] // IFF_UP | IFF_RUNNING is 0x41
        let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        request.ifr_ifru.ifru_flags = flags;
        let up = socket >= 0 && libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) == 0;
        libc::close(socket);
        up
    }
}

/// What a fresh tmpfs has free; anything else afterwards means that it was written to.
#[derive(Clone, Copy, PartialEq)]
struct Free(u64, u64);

/// # Safety
/// In the forked child only.
unsafe fn free(path: &CStr) -> Free {
    // SAFETY: an all-zero statfs is valid, and written by the call.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        libc::statfs(path.as_ptr(), &raw mut stat);
        Free(stat.f_bfree, stat.f_ffree)
    }
}

/// # Safety
/// In the forked child only.
unsafe fn serve(plan: &HolderPlan<'_>, fresh: [Free; 2]) {
    // SAFETY: `command` and `answer` are this frame's; the rest are system calls.
    unsafe {
        loop {
            let mut packet = [0u8; 5];
            let got = libc::recv(LINK, packet.as_mut_ptr().cast(), packet.len(), 0);
            if got < 0 && errno() == libc::EINTR {
                continue;
            }
            if got < 1 {
                return;
            }
            let [command, spared @ ..] = packet;
            if command == KILL_ALL {
                libc::kill(-1, libc::SIGKILL);
                continue;
            }
            let alone = match command {
                CLEAR => kill_all_but(i32::from_ne_bytes(spared)),
                _ => kill_until_alone(),
            };
            let clean = alone
                && no_ipc_objects()
                && empty_again(c"/tmp", fresh[0], plan.tmp_options)
                && empty_again(c"/dev/shm", fresh[1], plan.tmp_options);
            let answer = u8::from(clean);
            libc::send(LINK, (&raw const answer).cast(), 1, libc::MSG_NOSIGNAL);
        }
    }
}

/// `kill(-1)` is atomic against `fork`, so one is enough to doom everything; the rest is waiting.
///
/// # Safety
/// In the forked child only.
unsafe fn kill_until_alone() -> bool {
    // SAFETY: system calls that touch no memory but `pause`.
    unsafe {
        for round in 0..4000 {
            if libc::kill(-1, libc::SIGKILL) != 0 {
                return errno() == libc::ESRCH;
            }
            if round < 4 {
                libc::sched_yield();
            } else {
                let pause = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
                libc::nanosleep(&raw const pause, std::ptr::null_mut());
            }
        }
        false
    }
}

/// No call kills all but one. Whoever forks faster than it is killed is still there at the end, and the slot is not used again.
///
/// # Safety
/// In the forked child only.
unsafe fn kill_all_but(spared: i32) -> bool {
    // SAFETY: system calls that touch no memory but `pause`.
    unsafe {
        let deadline = now_ms() + CLEAR_TAKES_AT_MOST_MS;
        let (mut round, mut quiet) = (0, 0);
        while now_ms() < deadline {
            match kill_listed(spared) {
                None => return false,
                // Who forks while the list is read may be behind the place that it is read at.
                Some(0) => {
                    quiet += 1;
                    if quiet == QUIET_LOOKS {
                        return true;
                    }
                }
                Some(_) => {
                    quiet = 0;
                    if round < 4 {
                        libc::sched_yield();
                    } else {
                        let pause = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
                        libc::nanosleep(&raw const pause, std::ptr::null_mut());
                    }
                    round += 1;
                }
            }
        }
        false
    }
}

/// # Safety
/// In the forked child only.
unsafe fn now_ms() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// How many processes are there beside the holder and `spared`; each is killed. One that nobody has waited for counts.
///
/// # Safety
/// In the forked child only.
unsafe fn kill_listed(spared: i32) -> Option<usize> {
    #[repr(C, align(8))]
    struct Entries([u8; 4096]);
    /// Of `linux_dirent64`: a number, an offset, the entry's size, its type, its name.
    const SIZE_AT: usize = 16;
    const NAME_AT: usize = 19;
    let mut entries = Entries([0; 4096]);
    let mut found = 0;
    // SAFETY: system calls on a static string and on `entries`, which has room for what the kernel is told.
    unsafe {
        let list = libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        if list < 0 {
            return None;
        }
        let listed = loop {
            let got = libc::syscall(libc::SYS_getdents64, list, entries.0.as_mut_ptr(), entries.0.len());
            let Ok(got) = usize::try_from(got) else { break None };
            if got == 0 {
                break Some(found);
            }
            let mut rest = entries.0.get(..got).unwrap_or_default();
            while let Some(&[low, high]) = rest.get(SIZE_AT..SIZE_AT + 2) {
                let size = usize::from(u16::from_ne_bytes([low, high])).max(NAME_AT);
                let entry = rest.get(NAME_AT..size).unwrap_or_default();
                if let Some(pid) = number(entry).filter(|pid| *pid != 1 && *pid != spared) {
                    found += 1;
                    libc::kill(pid, libc::SIGKILL);
                }
                rest = rest.get(size..).unwrap_or_default();
            }
        };
        libc::close(list);
        listed
    }
}

/// A process's name in `/proc`, which a NUL ends.
fn number(name: &[u8]) -> Option<i32> {
    let mut number = None;
    for byte in name.iter().take_while(|byte| **byte != 0) {
        let digit = i32::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
        number = Some(number.unwrap_or(0i32).checked_mul(10)?.checked_add(digit)?);
    }
    number
}

/// SysV objects outlive their processes: a slot that has some is not used again.
///
/// # Safety
/// In the forked child only.
unsafe fn no_ipc_objects() -> bool {
    /// `sys/shm.h`
    const SHM_INFO: libc::c_int = 14;
    let mut buffer = [0i32; 64];
    // SAFETY: `buffer` is larger than any of the three structures that the kernel writes: shm_info, whose first field
    // is the number of segments, seminfo, whose eighth is that of semaphore sets, msginfo, whose first is that of
    // queues. (POSIX message queues are ruled out by a resource limit.)
    unsafe {
        let to = buffer.as_mut_ptr();
        if libc::shmctl(0, SHM_INFO, to.cast()) < 0 || buffer[0] != 0 {
            return false;
        }
        if libc::semctl(0, 0, libc::SEM_INFO, to) < 0 || buffer[7] != 0 {
            return false;
        }
        libc::msgctl(0, libc::MSG_INFO, to.cast()) >= 0 && buffer[0] == 0
    }
}

/// # Safety
/// In the forked child only.
unsafe fn empty_again(path: &CStr, fresh: Free, options: &CStr) -> bool {
    // SAFETY: system calls on static and the plan's strings.
    unsafe { free(path) == fresh || (libc::umount2(path.as_ptr(), libc::MNT_DETACH) == 0 && mount_tmp(path, options)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_processes() {
        for (name, expected) in [
            (&b"1\0"[..], Some(1)),
            (b"4194304\0x", Some(4_194_304)),
            (b"self\0", None),
            (b"12a\0", None),
            (b"99999999999\0", None),
            (b"\0", None),
            (b"", None),
        ] {
            assert_eq!(number(name), expected, "{name:?}");
        }
    }
}
