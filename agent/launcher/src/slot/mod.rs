//! Slots: what is dear to make, made ahead.
//!
//! A slot is a holder process in its own PID, mount, IPC and UTS namespaces, with a root view, a `/tmp`, and a cgroup.
//! Making one takes about a millisecond, entering one almost nothing. It serves the executions of one function's one
//! version, one after another, and is reset in between; if anything about the reset fails it is thrown away, since a
//! slot that may not be clean is worth less than the millisecond.
//!
//! ```text
//!            make                 enter                 main process ended
//!   (none) ───────► idle ────────────────► in use ──────────────────────────► being reset
//!                    ▲ │ evicted (least recently used)                          │    │ failed
//!                    │ └────────────────► (destroyed) ◄─────────────────────────┼────┘
//!                    └──────────────────────────────────────────────────────────┘ ok
//! ```

mod makers;
mod pool;
mod root;
pub(crate) mod seen;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cgroup::{CgroupError, SlotCgroup};
use crate::config::Runner;
use crate::sys::holder::{self, HolderPlan, Ready};
use crate::sys::{descriptor, process, socket};
use crate::wire::{Limits, Network, SpawnRequest};
pub(crate) use makers::Makers;
pub(crate) use pool::{Runners, SlotPool};
pub(crate) use root::{CODE_DIR, RootView};

/// How long a holder may take to be ready, or to reset. Longer means that something resists `SIGKILL`.
const HOLDER_TIMEOUT_S: u32 = 5;

/// Why there is no slot for an execution.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("making a slot's namespaces failed: {0}")]
    Clone(#[source] io::Error),
    #[error("building a slot's root view failed at {step}: {source}")]
    Build {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("a slot's holder did not answer: {0}")]
    Holder(#[source] io::Error),
    #[error("every number of the functions' range is taken by another slot")]
    NoUid,
    #[error("{0}")]
    Cgroup(#[from] CgroupError),
}

impl SlotError {
    pub(crate) fn errno(&self) -> i32 {
        match self {
            SlotError::Clone(e) | SlotError::Holder(e) | SlotError::Build { source: e, .. } => e.raw_os_error(),
            SlotError::Cgroup(e) => e.errno(),
            SlotError::NoUid => Some(libc::EAGAIN),
        }
        .unwrap_or(0)
    }

    pub(crate) fn step(&self) -> &'static str {
        match self {
            SlotError::Cgroup(_) => "cgroup",
            _ => "slot",
        }
    }
}

/// What may share a slot, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotKey {
    function: String,
    code_dir: PathBuf,
    network: Network,
}

impl SlotKey {
    fn of(request: &SpawnRequest) -> Self {
        SlotKey { function: request.slot_key.clone(), code_dir: request.code_dir.clone(), network: request.network }
    }

    fn matches(&self, request: &SpawnRequest) -> bool {
        self.function == request.slot_key && self.code_dir == request.code_dir && self.network == request.network
    }
}

/// The launcher's end of a holder. Dropped, it ends the holder and with it everything in the slot.
#[derive(Debug)]
pub(crate) struct HolderLink {
    pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
    /// Held from a command to its answer, so that each hears its own.
    asking: Mutex<()>,
}

impl HolderLink {
    /// Starts a holder and waits until its slot is ready.
    ///
    /// The calling thread must never end: the kernel would take its end for the launcher's.
    fn start(
        view: &RootView,
        key: &SlotKey,
        user: Runner,
        tmp_options: &CString,
        own_namespace: BorrowedFd<'_>,
    ) -> Result<Self, SlotError> {
        let (socket, its_end) = socket::pair().map_err(SlotError::Holder)?;
        socket::set_receive_timeout(socket.as_fd(), HOLDER_TIMEOUT_S).map_err(SlotError::Holder)?;
        let steps = view.steps(&key.code_dir, user);
        let root = view.root();
        let plan = HolderPlan {
            link: its_end.as_raw_fd(),
            steps: &steps,
            root: &root,
            tmp_options,
            empty_network: key.network == Network::None,
            arguments: process::argument_strings(),
        };
        // This thread's children may still point at the last slot's PID namespace; a holder's is not nested in it.
        process::children_into_pid_namespace(own_namespace).map_err(SlotError::Clone)?;
        let pid = holder::start(&plan).map_err(SlotError::Clone)?;
        drop(its_end);
        let link = match process::pidfd(pid) {
            Ok(pidfd) => HolderLink {
                pid,
                pidfd: descriptor::keep(pidfd),
                socket: descriptor::keep(socket),
                asking: Mutex::default(),
            },
            Err(error) => {
                let _ = process::kill(pid, libc::SIGKILL);
                let _ = process::reap(pid);
                return Err(SlotError::Holder(error));
            }
        };
        let [failed, errno] = link.ready().map_err(SlotError::Holder)?;
        if let Some(index) = (failed as usize).checked_sub(1) {
            let late = || holder::late_step(index - steps.len()).to_owned();
            return Err(SlotError::Build {
                step: steps.get(index).map_or_else(late, |s| s.describe()),
                source: io::Error::from_raw_os_error(errno.cast_signed()),
            });
        }
        Ok(link)
    }

    fn ready(&self) -> io::Result<Ready> {
        let mut buffer = [0; 8];
        let packet = socket::recv(self.socket.as_fd(), &mut buffer)?;
        if packet.len != buffer.len() {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        let half = |i: usize| u32::from_ne_bytes([buffer[i], buffer[i + 1], buffer[i + 2], buffer[i + 3]]);
        Ok([half(0), half(4)])
    }

    /// PID 1 of the slot, as the launcher sees it.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// What a child joins by `setns`.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Ends everything in the slot but its holder. Commands are served in order, so this cannot hit an execution
    /// that is started after the slot's next reset.
    pub(crate) fn kill_all(&self) {
        if socket::try_send(self.socket.as_fd(), &[holder::KILL_ALL], &[]).is_err() {
            // It cannot hear: the whole slot ends.
            self.end();
        }
    }

    /// Ends the holder, and by that everything in the slot.
    pub(crate) fn end(&self) {
        let _ = process::kill(self.pid, libc::SIGKILL);
    }

    fn reset(&self) -> io::Result<bool> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.ask(&[holder::RESET])
    }

    /// Makes the slot as new around one process, which `spared` gives the number of in the slot. It is asked once nobody else can
    /// reset the slot, so that it sees whether its execution still has it.
    pub(crate) fn clear(&self, spared: impl FnOnce() -> Option<i32>) -> io::Result<bool> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(spared) = spared() else { return Ok(false) };
        let [a, b, c, d] = spared.to_ne_bytes();
        self.ask(&[holder::CLEAR, a, b, c, d])
    }

    fn ask(&self, command: &[u8]) -> io::Result<bool> {
        socket::send(self.socket.as_fd(), command, &[])?;
        let mut answer = [0];
        let packet = socket::recv(self.socket.as_fd(), &mut answer)?;
        Ok(packet.len == 1 && answer == [1])
    }
}

impl Drop for HolderLink {
    fn drop(&mut self) {
        self.end();
        // Not reaped before here, so `pid` meant the holder in every signal above.
        let _ = process::reap(self.pid);
    }
}

/// Makes a slot and destroys it: what a kernel or container refuses, it refuses here.
pub(crate) fn try_out(view: &RootView, user: Runner, code_dir: &Path, network: Network) -> Result<(), SlotError> {
    let key = SlotKey { function: String::new(), code_dir: code_dir.to_owned(), network };
    let own_namespace = pool::own_namespace().map_err(SlotError::Clone)?;
    HolderLink::start(view, &key, user, &pool::tmp_options(1 << 20), own_namespace.as_fd()).map(drop)
}

/// One slot, owned by whoever runs an execution in it, or by the pool.
#[derive(Debug)]
pub(crate) struct Slot {
    key: SlotKey,
    /// Whom its functions run as.
    pub(crate) user: Runner,
    pub(crate) holder: Arc<HolderLink>,
    pub(crate) cgroup: Option<SlotCgroup>,
}

impl Slot {
    /// The namespaces to join beside the PID namespace.
    pub(crate) fn namespaces(&self) -> libc::c_int {
        holder::namespaces(self.key.network == Network::None)
    }

    /// Points the calling thread's next children at the slot's PID namespace; fails for a slot whose holder died.
    pub(crate) fn enter(&self) -> Result<(), SlotError> {
        process::children_into_pid_namespace(self.holder.pidfd().as_fd()).map_err(SlotError::Holder)
    }

    fn set_limits(&mut self, limits: &Limits) -> Result<(), SlotError> {
        match &mut self.cgroup {
            Some(cgroup) => Ok(cgroup.set_limits(limits)?),
            None => Ok(()),
        }
    }

    /// Makes it as new; `false` if it must not be used again.
    fn reset(&mut self) -> bool {
        match self.holder.reset() {
            Ok(true) => {
                if let Some(cgroup) = &mut self.cgroup {
                    cgroup.reset_peak();
                }
                true
            }
            // Left SysV objects, or a process that does not die in time.
            Ok(false) | Err(_) => false,
        }
    }
}
