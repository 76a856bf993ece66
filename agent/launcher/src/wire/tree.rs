//! The link between the tree's root and a child that wants launchers and drivers: one question, one answer, a packet each.

use serde::{Deserialize, Serialize};

/// The environment variable that holds the link's descriptor number.
pub const TREE_FD: &str = "FLUX_TREE_FD";

/// "A launcher, please." The child may say how much it wants to run; nothing that has to do with privileges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LauncherWish {
    /// Instead of a launcher, the driver of this name: see [`crate::tree::DriverSpec`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Instead of the configured number of executions at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_slots: Option<u32>,
}

/// The answer; with `Started` come the launcher's spawn and control sockets, in this order, or a driver's one socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LauncherAnswer {
    Started { pid: u32 },
    Failed { message: String },
}
