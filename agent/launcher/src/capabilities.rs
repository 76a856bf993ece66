//! What a launcher can give, found by doing it once at its start.
//!
//! A sysctl says what an administrator wished; only trying says what a kernel, a container or an LSM really allows.
//! A layer that is missing is named with the reason, so that the agent can say it aloud and in its heartbeat.

use serde::{Deserialize, Serialize};

use crate::wire::Network;

/// What this launcher holds a function in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The launcher has root's rights, and functions run as another user.
    pub root: bool,
    pub runner_uid: u32,
    pub runner_gid: u32,
    /// Each slot's functions run as a user that nobody else runs as.
    pub own_uids: bool,
    /// A function sees, and can signal, its own processes only; all end with its slot.
    pub pid_namespace: bool,
    /// A function sees an allow-list of the file system, its own `/tmp`, its code read-only.
    pub mount_namespace: bool,
    /// `network: none` can be given.
    pub net_namespace: bool,
    /// With the machine's network, the cloud's metadata and Flux's own servers are out of reach.
    pub network_guard: bool,
    pub no_new_privs: bool,
    /// Abstract sockets and signals stay within an execution.
    pub landlock_scopes: bool,
    /// Without a view of its own, a function opens an allow-list of files only.
    pub landlock_files: bool,
    /// System calls that functions have no use for are refused.
    pub seccomp: bool,
    pub cgroup: CgroupSupport,
    /// What is missing and why, worded for an administrator.
    pub missing: Vec<Missing>,
    /// Networks whose functions are not run, for a layer that they need is missing and all are required.
    pub refuses: Vec<Network>,
}

/// Layers that matter to functions with the machine's network only.
const OF_HOST_NETWORK: [&str; 2] = [NETWORK_GUARD, LANDLOCK_SCOPES];
/// The layer that only functions without a network ask for.
pub(crate) const NETWORK_NAMESPACE: &str = "network namespace";
pub(crate) const OWN_UID: &str = "uid of its own";
pub(crate) const NETWORK_GUARD: &str = "network guard";
pub(crate) const LANDLOCK_SCOPES: &str = "landlock scopes";

/// Which limits the kernel enforces on a function's processes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSupport {
    /// 1, 2, or 0 for none.
    pub version: u8,
    pub memory: bool,
    pub cpu: bool,
    pub pids: bool,
}

/// A layer that this launcher cannot give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub layer: String,
    pub reason: String,
}

impl Capabilities {
    /// What is missing of what holds in a function with this network. Without one there is no metadata service and no
    /// abstract socket to be kept from.
    pub fn missing_for(&self, network: Network) -> impl Iterator<Item = &Missing> {
        self.missing.iter().filter(move |missing| match network {
            Network::Host => missing.layer != NETWORK_NAMESPACE,
            Network::None => !OF_HOST_NETWORK.contains(&missing.layer.as_str()),
        })
    }

    /// Refuses to run what it cannot hold in with every layer.
    pub(crate) fn require_all(&mut self) {
        let lacking = |network: &Network| self.missing_for(*network).next().is_some();
        self.refuses = [Network::Host, Network::None].into_iter().filter(lacking).collect();
    }

    /// Records that `layer` is missing.
    pub fn lacks(&mut self, layer: &str, reason: impl Into<String>) {
        self.missing.push(Missing { layer: layer.to_owned(), reason: reason.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(layers: &[&str]) -> Vec<Network> {
        let mut capabilities = Capabilities::default();
        for layer in layers {
            capabilities.lacks(layer, "why");
        }
        capabilities.require_all();
        capabilities.refuses
    }

    #[test]
    fn a_missing_layer_refuses_those_who_need_it() {
        assert_eq!(refused(&[]), []);
        assert_eq!(refused(&["seccomp"]), [Network::Host, Network::None]);
        assert_eq!(refused(&[LANDLOCK_SCOPES]), [Network::Host]);
        assert_eq!(refused(&[NETWORK_GUARD, LANDLOCK_SCOPES]), [Network::Host]);
        assert_eq!(refused(&[NETWORK_NAMESPACE]), [Network::None]);
        assert_eq!(refused(&[NETWORK_GUARD, NETWORK_NAMESPACE]), [Network::Host, Network::None]);
    }
}
