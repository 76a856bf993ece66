//! What a launcher is told at its start, by whoever holds the privileges already: the tree, never the agent.
//!
//! It travels as JSON in the launcher's own argument list, so that `ps` shows it to an administrator; it holds no
//! secret. The numbers of the two inherited sockets come before it: `__launcher <spawn> <control> <json>`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// The size of each slot's private `/tmp`.
    pub tmp_bytes: u64,
    /// What functions see read-only beside `/usr` and its like: where interpreters really are.
    pub extra_paths: Vec<PathBuf>,
    /// `false`: run without slots even where they could be made.
    pub slots: bool,
}

impl LauncherConfig {
    /// Settings for `tasks` executions at a time, everything else as usual.
    pub fn new(work_dir: impl Into<PathBuf>, tasks: u32) -> Self {
        LauncherConfig {
            work_dir: work_dir.into(),
            tasks,
            max_slots: tasks.saturating_mul(3).max(16),
            runner: None,
            tmp_bytes: 64 << 20,
            extra_paths: Vec::new(),
            slots: true,
        }
    }
}
