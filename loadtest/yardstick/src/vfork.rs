//! The cheapest way in which Linux starts a program: `clone(CLONE_VM | CLONE_VFORK)` and `execve` in the child,
//! which borrows the parent's memory until then, on a stack of its own.

#![allow(unsafe_code, reason = "clone and what a child may do before execve have no safe form")]

use std::{
    ffi::{CString, c_char, c_int, c_void},
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    path::Path,
};

use nix::{sys::wait::waitpid, unistd::Pid};

const STACK_BYTES: usize = 64 * 1024;

/// A program with its arguments, ready to be started any number of times by one thread.
pub(crate) struct Starter {
    /// Its path first.
    argv: Vec<CString>,
    stack: Vec<u8>,
}

/// What the child needs, on the parent's stack: the parent is suspended until the child has called `execve`.
struct Child {
    path: *const c_char,
    argv: *const *const c_char,
    envp: [*const c_char; 1],
    /// What becomes its descriptors 0, 1 and 2.
    fds: [RawFd; 3],
}

impl Starter {
    pub(crate) fn new(program: &Path, arguments: &[String]) -> io::Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let all = std::iter::once(program.as_os_str().as_bytes()).chain(arguments.iter().map(String::as_bytes));
        let argv = all.map(CString::new).collect::<Result<_, _>>()?;
        Ok(Self { argv, stack: vec![0; STACK_BYTES] })
    }

    /// Starts it with an empty environment and these descriptors, which must be above 2.
    pub(crate) fn start(&mut self, fds: [BorrowedFd<'_>; 3]) -> io::Result<Pid> {
        let argv: Vec<_> = self.argv.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let mut child =
            Child { path: argv[0], argv: argv.as_ptr(), envp: [std::ptr::null()], fds: fds.map(|fd| fd.as_raw_fd()) };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the stack is ours and grows down from its end, which is aligned to 16 bytes below; `child` and `argv`
        // outlive the call, which returns only once the child has left this memory by execve or _exit.
        let pid = unsafe {
            let end = self.stack.as_mut_ptr().add(STACK_BYTES);
            let top = end.sub(end as usize % 16);
            libc::clone(exec, top.cast(), flags, (&raw mut child).cast::<c_void>())
        };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(Pid::from_raw(pid)) }
    }
}

extern "C" fn exec(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Child` of `start`, whose frame waits for us. Only system calls follow: nothing is
    // allocated, locked or unwound in the memory that is shared with the parent.
    unsafe {
        let child = &*argument.cast::<Child>();
        for (to, from) in (0..).zip(child.fds) {
            libc::dup2(from, to);
        }
        libc::execve(child.path, child.argv, child.envp.as_ptr());
        libc::_exit(127)
    }
}

/// Waits for its end. An error unless it exited with 0.
pub(crate) fn wait(pid: Pid) -> anyhow::Result<()> {
    match waitpid(pid, None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(()),
        other => anyhow::bail!("the program ended with {other:?}"),
    }
}
