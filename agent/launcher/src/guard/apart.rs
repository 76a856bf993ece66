//! The same for processes in network namespaces that others start: containers.
//!
//! Such a process is guarded at the cgroup that it has to itself ([`Adopted`]), from when [`NetworkGuard::hold`] returns: sockets that it
//! has by then are not. So it is held before it does anything of its own, and the addresses of this machine are those of that moment.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::{GuardError, Rules, own_addresses, put};
use crate::cgroup::{self, Adopted, Adopter, CgroupError};
use crate::sys::bpf::Hook;

/// Why a process is not guarded.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct NotGuarded(Why);

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Guard(#[from] GuardError),
}

impl From<CgroupError> for NotGuarded {
    fn from(error: CgroupError) -> Self {
        Self(error.into())
    }
}

impl From<GuardError> for NotGuarded {
    fn from(error: GuardError) -> Self {
        Self(error.into())
    }
}

/// Keeps containers from the cloud's metadata and from Flux's own servers.
#[derive(Debug)]
pub struct NetworkGuard {
    adopter: Adopter,
    servers: Vec<SocketAddr>,
}

impl NetworkGuard {
    /// Finds out whether this machine can, and removes what an earlier guard of the same name left. `servers` are Flux's own; those on
    /// this machine at all of its addresses.
    ///
    /// # Errors
    /// There is no cgroup hierarchy of version 2, or the kernel takes no program: it needs root's rights, among others.
    pub fn try_new(name: &str, servers: Vec<SocketAddr>) -> Result<Self, NotGuarded> {
        let guard = Self { adopter: Adopter::prepare(name)?, servers };
        let trial = guard.adopter.trial()?;
        let tried = guard.put_on(&trial);
        trial.remove();
        tried.map(|()| guard)
    }

    /// Finds out whether what `pid` starts can be held, by where that is itself.
    ///
    /// # Errors
    /// Its cgroup is not below what is mounted here: this process is in a cgroup namespace of its own, as a rule. Or it has ended.
    pub fn reaches(&self, pid: u32) -> Result<(), NotGuarded> {
        Ok(cgroup::sees(pid)?)
    }

    /// Guards a process, and all that it starts from now on. `id` is in the name of its cgroup, where it has one to itself.
    ///
    /// # Errors
    /// It has ended, or no cgroup of its own has the id in its name.
    pub fn hold(&self, pid: u32, id: &str) -> Result<Held, NotGuarded> {
        let cgroup = self.adopter.of(pid, id)?;
        let held = self.put_on(&cgroup).and_then(|()| cgroup.enter().map_err(NotGuarded::from));
        if held.is_err() {
            cgroup.remove();
        }
        held.map(|()| Held(cgroup))
    }

    fn put_on(&self, cgroup: &Adopted) -> Result<(), NotGuarded> {
        let own = own_addresses().map_err(GuardError::Addresses)?;
        let rules = Rules::from_apart(&self.servers, &own);
        for hook in [Hook::Connect4, Hook::Connect6, Hook::Send4, Hook::Send6] {
            put(hook, &rules, cgroup.as_fd())?;
        }
        Ok(())
    }

    /// Removes what nothing runs in any more.
    pub fn sweep(&self) {
        self.adopter.sweep();
    }
}

/// Guarded until all of its processes have ended.
#[derive(Debug)]
pub struct Held(Adopted);

impl Held {
    /// Removes what was made for it; `false` while something of it still runs.
    pub fn release(&self) -> bool {
        self.0.remove()
    }
}
