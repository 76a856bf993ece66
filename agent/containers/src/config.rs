//! What a driver is told at its start, by whoever holds the privileges already: the tree, never the agent.

use std::{net::SocketAddr, path::PathBuf};

use flux_launcher::{Runner, tree::DriverSpec};
use flux_runtime::settings::Pull;
use serde::{Deserialize, Serialize};

/// What the agent asks the tree for.
pub const DRIVER: &str = "containers";
/// The hidden first argument that turns any Flux binary into a driver.
pub const DRIVER_ARGUMENT: &str = "__containers";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverConfig {
    /// A directory of the driver's own, made when missing: the shim, the sockets, and the name of whose containers these are.
    pub work_dir: PathBuf,
    /// Docker's socket.
    pub socket: PathBuf,
    pub pull: Pull,
    /// Code comes from below this directory, and from nowhere else.
    pub code_dir: PathBuf,
    /// The user in containers; `None` is `nobody`.
    pub user: Option<Runner>,
    /// The size of each container's `/tmp`.
    pub tmp_bytes: u64,
    /// Flux's own servers, which functions must not reach; one at a loopback address is meant at all of this machine's.
    pub servers: Vec<SocketAddr>,
    /// Those of them whose addresses are not known, and why.
    pub unknown_servers: Vec<String>,
    /// Refuse what a missing layer does not hold in.
    pub isolation_required: bool,
}

impl DriverConfig {
    /// For the tree.
    pub fn spec(&self) -> DriverSpec {
        DriverSpec {
            name: DRIVER.to_owned(),
            argument: DRIVER_ARGUMENT.to_owned(),
            // Paths that are no text are refused by the driver, which then cannot read this.
            config: serde_json::to_string(self).unwrap_or_default(),
        }
    }
}
