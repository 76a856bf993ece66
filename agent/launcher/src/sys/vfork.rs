//! One process by `clone(CLONE_VM | CLONE_VFORK)`.
//!
//! The child borrows the launcher's memory until it calls `execve` or ends, and the calling thread stands still
//! meanwhile. That is what makes it fast (no page table is copied) and makes reporting a failure a plain store: the
//! child writes the step and `errno` where its parent will look. It is also why nothing here may allocate, take a
//! lock or call into libc beyond the thinnest wrapper: other threads of the launcher go on running.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;

use super::{descriptor, process};

/// The descriptors are shared as well: the child takes copies of those few that it needs ([`descriptors_of_its_own`]), and
/// not of all that the launcher holds for its slots, which would cost more with every slot there is.
const FLAGS: libc::c_int = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;

/// Enough for the child's few frames, in debug builds too.
const STACK_BYTES: usize = 32 << 10;

/// The child's own stack; made once per thread.
#[derive(Debug)]
pub(crate) struct ChildStack(Vec<u128>);

impl ChildStack {
    pub(crate) fn new() -> Self {
        ChildStack(vec![0; STACK_BYTES / 16])
    }
}

/// Everything the child does before `execve`, made ready by the parent.
#[derive(Debug)]
pub(crate) struct ChildPlan<'a> {
    /// Open `tasks` (v1) or `cgroup.procs` (v2) files; the child writes itself into each.
    pub(crate) cgroups: &'a [RawFd],
    /// A pidfd and the namespaces of that process to join.
    pub(crate) join: Option<(RawFd, libc::c_int)>,
    /// A Landlock ruleset to be put under: of its own, so that no two executions share one.
    pub(crate) scopes: Option<RawFd>,
    /// The same, with an allow-list of files.
    pub(crate) files: Option<RawFd>,
    /// The launcher's own score is not 0 and must not be the function's.
    pub(crate) reset_oom_score: bool,
    /// Resource and value, set as both soft and hard limit.
    pub(crate) rlimits: &'a [(u32, u64)],
    /// Its descriptors from 0 on: stdin, stdout, stderr, and a worker's channel.
    pub(crate) stdio: &'a [RawFd],
    /// Uid and gid to change to.
    pub(crate) user: Option<(u32, u32)>,
    /// The launcher's pid where the child can see it: its death between `clone` and the parent-death signal is
    /// noticed by this. 0 where it cannot (another PID namespace, whose holder's end ends the child as well).
    pub(crate) parent: i32,
    pub(crate) directory: &'a CStr,
    pub(crate) program: &'a CStr,
    /// Null-terminated arrays.
    pub(crate) argv: &'a [*const libc::c_char],
    pub(crate) envp: &'a [*const libc::c_char],
}

/// Where a child stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildFailure {
    pub(crate) step: &'static str,
    pub(crate) errno: i32,
}

struct Shared<'a> {
    plan: &'a ChildPlan<'a>,
    failure: Option<ChildFailure>,
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Starts the process and returns its pid once it runs the new program.
pub(crate) fn spawn(plan: &ChildPlan<'_>, stack: &mut ChildStack) -> Result<i32, ChildFailure> {
    debug_assert!(plan.argv.last() == Some(&std::ptr::null()));
    debug_assert!(plan.envp.last() == Some(&std::ptr::null()));
    let mut shared = Shared { plan, failure: None };
    let top = stack.0.as_mut_ptr_range().end;
    // SAFETY: `top` is the 16-byte aligned end of a buffer that outlives the child's use of it, because CLONE_VFORK
    // holds this thread until the child called execve or ended; `shared` lives on this held frame for the same time.
    let pid = unsafe { libc::clone(child, top.cast(), FLAGS, (&raw mut shared).cast()) };
    if pid < 0 {
        return Err(ChildFailure { step: "clone", errno: errno() });
    }
    // SAFETY: `shared` is ours; volatile, since the compiler did not see the child write it.
    if let Some(failure) = unsafe { std::ptr::read_volatile(&raw const shared.failure) } {
        let _ = process::reap(pid);
        return Err(failure);
    }
    Ok(pid)
}

extern "C" fn child(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent passed a `Shared` that it keeps alive and untouched until this process is gone.
    let shared = unsafe { &mut *argument.cast::<Shared<'_>>() };
    // SAFETY: called in the vfork child only.
    let step = unsafe { run(shared.plan) };
    let failure = Some(ChildFailure { step, errno: errno() });
    // SAFETY: a valid place of ours; volatile, since this process ends without a return that would publish it.
    unsafe { std::ptr::write_volatile(&raw mut shared.failure, failure) };
    // SAFETY: ends this process alone, without running the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

/// Leaves the launcher's table of descriptors with copies of the lower ones.
///
/// # Safety
/// In a vfork child with `CLONE_FILES`. On failure the table is the launcher's still, and must not be changed.
unsafe fn descriptors_of_its_own(stdio: &[RawFd], files: Option<RawFd>) -> bool {
    let above = stdio.iter().chain(&files).fold(descriptor::KEPT_FROM, |above, fd| above.max(fd + 1));
    // SAFETY: no memory is touched. The flag makes the copy first, and closes nothing in the shared table.
    unsafe { libc::syscall(libc::SYS_close_range, above, u32::MAX, libc::CLOSE_RANGE_UNSHARE) == 0 }
}

/// Returns only on failure, with the step that failed; `errno` says why.
///
/// # Safety
/// In a vfork child: system calls only. libc's own wrappers for uid and gid signal every thread of the *parent's*
/// memory, so those are raw.
unsafe fn run(plan: &ChildPlan<'_>) -> &'static str {
    // SAFETY: every pointer is into `plan`, which the parent keeps alive; the calls have no other memory effects.
    unsafe {
        // First of all, so that whatever follows is already accounted for.
        for &cgroup in plan.cgroups {
            if libc::write(cgroup, c"0".as_ptr().cast(), 1) != 1 {
                return "cgroup";
            }
        }
        if let Some((pidfd, namespaces)) = plan.join
            && libc::setns(pidfd, namespaces) != 0
        {
            return "setns";
        }
        // The thread has `no_new_privs`, which this asks for.
        if let Some(ruleset) = plan.scopes
            && libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) != 0
        {
            return "landlock";
        }
        // Until here they were the launcher's own.
        if !descriptors_of_its_own(plan.stdio, plan.files) {
            return "close_range";
        }
        libc::setsid();
        if plan.reset_oom_score {
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 || libc::write(fd, c"0".as_ptr().cast(), 1) != 1 {
                return "oom_score_adj";
            }
        }
        for &(resource, value) in plan.rlimits {
            let limit = libc::rlimit64 { rlim_cur: value, rlim_max: value };
            let rc = libc::syscall(
                libc::SYS_prlimit64,
                0,
                resource,
                &raw const limit,
                std::ptr::null_mut::<libc::rlimit64>(),
            );
            if rc != 0 {
                return "rlimit";
            }
        }
        // All of these lie above what they become (`descriptor::hold_lowest`), so none is overwritten before it is copied.
        for (number, &fd) in (0..).zip(plan.stdio) {
            if libc::dup2(fd, number) < 0 {
                return "stdio";
            }
        }
        // When nothing is left to be opened but the program.
        if let Some(ruleset) = plan.files
            && libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) != 0
        {
            return "landlock";
        }
        if libc::syscall(libc::SYS_close_range, plan.stdio.len(), u32::MAX, 0) != 0 {
            return "close_range";
        }
        if let Some((uid, gid)) = plan.user
            && (libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0)
        {
            return "user";
        }
        // After the change of uid, which clears it.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
            return "pdeathsig";
        }
        if plan.parent != 0 && libc::getppid() != plan.parent {
            libc::_exit(127);
        }
        if libc::chdir(plan.directory.as_ptr()) != 0 {
            return "chdir";
        }
        let no_signals: u64 = 0;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const no_signals,
            std::ptr::null_mut::<u64>(),
            8,
        );
        libc::execve(plan.program.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr());
        "exec"
    }
}
