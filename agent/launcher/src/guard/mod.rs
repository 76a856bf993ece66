//! What a function with the machine's network may not reach: the cloud's metadata service, which hands out the machine's own
//! rights, and Flux's own servers.
//!
//! Programs on `connect`, `sendmsg` and `bind` are attached to one version 2 cgroup that all functions of this launcher are in
//! ([`SharedCgroup`]); the kernel asks them for each new connection, so neither a start nor a packet costs more. They go
//! away with the cgroup, also after a kill. Sockets keep their cgroup, and none is handed into a slot.
//!
//! The list is made at the launcher's start: an address that the machine gets later is not known to be its own.

mod apart;
mod program;
mod rules;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::cgroup::SharedCgroup;
use crate::sys::bpf::{self, Hook};
pub use apart::{Held, NetworkGuard, NotGuarded};
pub(crate) use rules::{Rules, worker_address};

/// Why the network is not guarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    #[error("reading this machine's addresses failed: {0}")]
    Addresses(#[source] io::Error),
    #[error("the kernel did not take the program for {hook:?}: {source}; it needs CONFIG_CGROUP_BPF and root's rights")]
    Load {
        hook: Hook,
        #[source]
        source: io::Error,
    },
    #[error("attaching the program for {hook:?} to the functions' cgroup failed: {source}")]
    Attach {
        hook: Hook,
        #[source]
        source: io::Error,
    },
}

/// Guards everything in `cgroup` from now on. `servers` are Flux's own; those on this machine at all of its addresses. Each user
/// from `first_uid` on reaches the one [`worker_address`] that is its own.
pub(crate) fn attach(
    cgroup: &SharedCgroup,
    servers: &[SocketAddr],
    listeners: &[SocketAddr],
    first_uid: Option<u32>,
) -> Result<(), GuardError> {
    let rules = Rules::new(servers, listeners, &own_addresses().map_err(GuardError::Addresses)?, first_uid);
    Hook::ALL.into_iter().try_for_each(|hook| put(hook, &rules, cgroup.as_fd()))
}

fn put(hook: Hook, rules: &Rules, cgroup: BorrowedFd<'_>) -> Result<(), GuardError> {
    let program = program::of(hook, rules);
    let loaded: OwnedFd = bpf::load(hook, &program).map_err(|source| GuardError::Load { hook, source })?;
    bpf::attach(hook, loaded.as_fd(), cgroup).map_err(|source| GuardError::Attach { hook, source })
}

fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let found = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    Ok(found.collect())
}
