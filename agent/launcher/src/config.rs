//! What a launcher is told at its start, by whoever holds the privileges already: the tree, never the agent.
//!
//! It travels as JSON in the launcher's own argument list, so that `ps` shows it to an administrator; it holds no
//! secret. The numbers of the two inherited sockets come before it: `__launcher <spawn> <control> <json>`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::uids::UidRange;

/// The hidden first argument that turns any Flux binary into a launcher.
pub const LAUNCHER_ARGUMENT: &str = "__launcher";
/// What functions run as where no user was made for them: `nobody`, which other services may share.
pub const NOBODY: Runner = Runner { uid: 65534, gid: 65534 };

/// The user that functions run as. Only a launcher with root's rights can change to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    pub uid: u32,
    pub gid: u32,
}

/// A launcher's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LauncherConfig {
    /// A directory of the launcher's own, made when missing; it also names the data directory whose dead launchers'
    /// leftovers this one ends. Not shared between two live launchers' parents.
    pub work_dir: PathBuf,
    /// How many executions can run at the same time: the agent's task budget. As many workers may wait beside them.
    pub tasks: u32,
    /// How many slots may exist at the same time, idle ones included; never fewer than `tasks`.
    pub max_slots: u32,
    /// The user that functions run as; `None` is `nobody`, said as a missing layer. Ignored when not root.
    pub runner: Option<Runner>,
    /// Numbers of which each slot has one of its own; `None`: all have `runner`'s. At least twice `tasks`, for workers that
    /// wait beside executions, and two more. Needs a `runner`, whose group they have.
    pub runner_uids: Option<UidRange>,
    /// The size of each slot's private `/tmp`.
    pub tmp_bytes: u64,
    /// What functions see read-only beside `/usr` and its like: where interpreters really are.
    pub extra_paths: Vec<PathBuf>,
    /// `false`: run without slots even where they could be made.
    pub slots: bool,
    /// Flux's own servers, which functions must not reach; one at a loopback address is meant at all of this machine's.
    pub servers: Vec<SocketAddr>,
    /// Those of them whose addresses are not known, and why: nobody can be kept from them.
    pub unknown_servers: Vec<String>,
    /// What functions may connect to, but not listen in the place of: the gateway.
    pub listeners: Vec<SocketAddr>,
    /// Refuse to run functions that a missing layer does not hold in.
    pub isolation_required: bool,
    /// Layers that are left out though they could be had; said as missing. For tests and measurements.
    pub without: Vec<Layer>,
}

/// A layer that can be left out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    Seccomp,
    NetworkGuard,
    Landlock,
}

impl LauncherConfig {
    /// Settings for `tasks` executions at a time, everything else as usual.
    pub fn new(work_dir: impl Into<PathBuf>, tasks: u32) -> Self {
        LauncherConfig {
            work_dir: work_dir.into(),
            tasks,
            max_slots: tasks.saturating_mul(3).max(16),
            runner: None,
            runner_uids: None,
            tmp_bytes: 64 << 20,
            extra_paths: Vec::new(),
            slots: true,
            servers: Vec::new(),
            unknown_servers: Vec::new(),
            listeners: Vec::new(),
            isolation_required: false,
            without: Vec::new(),
        }
    }
}
