//! The bodies that Firecracker 1.16 takes, as strict as it is: what it knows and is not used here is known here too.
#![allow(dead_code, reason = "fields are there so that they parse, or do not")]

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u8,
    pub(super) mem_size_mib: usize,
    #[serde(default)]
    pub(super) smt: bool,
    #[serde(default)]
    pub(super) cpu_template: Option<String>,
    #[serde(default)]
    pub(super) track_dirty_pages: bool,
    #[serde(default)]
    pub(super) huge_pages: Option<HugePages>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum HugePages {
    None,
    #[serde(rename = "2M")]
    TwoMebibytes,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: String,
    pub(super) initrd_path: Option<String>,
    pub(super) boot_args: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) partuuid: Option<String>,
    pub(super) is_root_device: bool,
    #[serde(default)]
    pub(super) cache_type: Option<String>,
    pub(super) is_read_only: Option<bool>,
    pub(super) path_on_host: Option<String>,
    pub(super) rate_limiter: Option<Value>,
    pub(super) io_engine: Option<String>,
    pub(super) socket: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vsock {
    #[serde(default)]
    pub(super) vsock_id: Option<String>,
    pub(super) guest_cid: u32,
    pub(super) uds_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entropy {
    pub(super) rate_limiter: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Actions {
    pub(super) action_type: ActionType,
}

#[derive(Debug, Deserialize)]
pub(super) enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmPatch {
    pub(super) state: VmState,
}

#[derive(Debug, Deserialize)]
pub(super) enum VmState {
    Paused,
    Resumed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotCreate {
    #[serde(default)]
    pub(super) snapshot_type: Option<SnapshotType>,
    pub(super) snapshot_path: String,
    pub(super) mem_file_path: String,
}

#[derive(Debug, Deserialize)]
pub(super) enum SnapshotType {
    Diff,
    Full,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotLoad {
    pub(super) snapshot_path: String,
    pub(super) mem_file_path: Option<String>,
    pub(super) mem_backend: Option<MemoryBackend>,
    #[serde(default)]
    pub(super) enable_diff_snapshots: bool,
    #[serde(default)]
    pub(super) track_dirty_pages: bool,
    #[serde(default)]
    pub(super) resume_vm: bool,
    #[serde(default)]
    pub(super) network_overrides: Vec<Value>,
    pub(super) vsock_override: Option<VsockOverride>,
    #[serde(default)]
    pub(super) clock_realtime: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryBackend {
    pub(super) backend_path: String,
    pub(super) backend_type: MemoryBackendType,
}

#[derive(Debug, Deserialize)]
pub(super) enum MemoryBackendType {
    File,
    Uffd,
}

#[derive(Debug, Deserialize)]
pub(super) struct VsockOverride {
    pub(super) uds_path: String,
}
