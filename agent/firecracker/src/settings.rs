//! What a driver is told at its start, by whoever holds the privileges already; never by the agent.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// A driver's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Firecracker itself.
    pub firecracker: PathBuf,
    /// Firecracker's jailer, and what it is told; without it (a driver that is not root) guests are processes of the driver's user.
    pub jailer: Option<Jailer>,
    /// An uncompressed kernel (`vmlinux`), our initramfs, and the root file system: what `flux microvm build` makes.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub rootfs: PathBuf,
    /// A directory of the driver's own: guests' folders, snapshots, images of code. One file system with `kernel`,
    /// `initramfs` and `rootfs` saves copying them for each guest.
    pub directory: PathBuf,
    /// Snapshots that are kept; the one not used for longest goes first.
    pub snapshots: usize,
    /// Of a request to Firecracker's API. Writing a snapshot takes as long as writing the guest's memory to the disk.
    pub api_within: Duration,
    /// Until a guest that was started listens.
    pub boots_within: Duration,
}

/// How guests are jailed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jailer {
    pub program: PathBuf,
    /// Numbers that guests run as, uid and gid alike: one for each function's version.
    pub first_uid: u32,
    pub uids: u32,
    pub cgroups: Option<JailCgroups>,
}

/// Where the guests' cgroups are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailCgroups {
    /// 1 or 2.
    pub version: u8,
    /// Below the hierarchy's root.
    pub parent: String,
}

impl Settings {
    /// The times and limits as usual.
    pub fn new(
        firecracker: impl Into<PathBuf>,
        kernel: impl Into<PathBuf>,
        initramfs: impl Into<PathBuf>,
        rootfs: impl Into<PathBuf>,
        directory: impl Into<PathBuf>,
    ) -> Self {
        use flux_protocol::limits;
        Self {
            firecracker: firecracker.into(),
            jailer: None,
            kernel: kernel.into(),
            initramfs: initramfs.into(),
            rootfs: rootfs.into(),
            directory: directory.into(),
            snapshots: limits::MICROVM_SNAPSHOTS,
            api_within: limits::MICROVM_API,
            boots_within: limits::MICROVM_BOOT,
        }
    }
}
