//! What one request after another makes of a microVM: Firecracker's rules of order, apart from any socket.
//!
//! ```text
//!   not started ── InstanceStart ──► running ◄── Resumed / Paused ──► paused ── snapshot/create
//!        └──────── snapshot/load (nothing that boots was configured) ──► paused, or running with resume_vm
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::shapes::{
    ActionType, Actions, BootSource, Drive, Entropy, MachineConfig, SnapshotCreate, SnapshotLoad, VmPatch, VmState,
    Vsock,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NotStarted,
    Running,
    Paused,
}

/// What the process has to do beside answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// Listen at this path.
    Listen(String),
    /// A guest begins.
    Boot,
    /// The guest goes on; after a load it is the one of the snapshot.
    Resume,
    Pause,
    /// Connections to the guest end, and its state is in the files.
    Save {
        state: String,
        memory: String,
    },
    /// The guest of the files is there, paused or not; its vsock is at this path.
    Load {
        memory: String,
        uds_path: Option<String>,
        resumed: bool,
    },
    /// It is of no use any more, and ends after its answer.
    Exit,
}

/// An answer: a status, and `fault_message` or the body.
pub(super) type Answer = Result<(Option<String>, Effect), (String, Effect)>;

/// What a snapshot's first file says here.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Saved {
    version: String,
    drives: Vec<Drive>,
    vsock: Option<Vsock>,
}

#[derive(Debug)]
pub(super) struct Vm {
    id: String,
    state: State,
    boot_source: Option<BootSource>,
    drives: Vec<Drive>,
    vsock: Option<Vsock>,
    /// Something that only a boot needs was configured.
    configured: bool,
}

pub(super) const VERSION: &str = "1.16.1";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";
const BEFORE: &str = "The requested operation is not supported before starting the microVM.";

fn refuse(fault: impl Into<String>) -> Answer {
    Err((fault.into(), Effect::Nothing))
}

fn done(effect: Effect) -> Answer {
    Ok((None, effect))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, (String, Effect)> {
    serde_json::from_slice(body).map_err(|error| {
        let fault = format!("An error occurred when deserializing the json body of a request: {error}.");
        (fault, Effect::Nothing)
    })
}

fn opens(path: &str) -> Result<(), String> {
    std::fs::File::open(path).map(drop).map_err(|error| error.to_string())
}

impl Vm {
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            state: State::NotStarted,
            boot_source: None,
            drives: Vec::new(),
            vsock: None,
            configured: false,
        }
    }

    pub(super) fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut parts = path.trim_start_matches('/').split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next());
        match (method, first) {
            ("GET", _) if !body.is_empty() => refuse("GET request cannot have a body."),
            ("GET", "") => self.describe(),
            ("GET", "version") => Ok((Some(format!(r#"{{"firecracker_version":"{VERSION}"}}"#)), Effect::Nothing)),
            ("PUT", _) if body.is_empty() => refuse("Empty PUT request."),
            ("PATCH", _) if body.is_empty() => refuse("Empty PATCH request."),
            ("PUT", "machine-config") => self.machine_config(&parse(body)?),
            ("PUT", "boot-source") => self.boot_source(parse(body)?),
            ("PUT", "drives") => self.drive(second.unwrap_or_default(), parse(body)?),
            ("PUT", "vsock") => self.vsock(parse(body)?),
            ("PUT", "entropy") => parse::<Entropy>(body).and_then(|_| self.before(|_| done(Effect::Nothing))),
            ("PUT", "actions") => self.action(&parse::<Actions>(body)?.action_type),
            ("PATCH", "vm") => self.patch(&parse::<VmPatch>(body)?.state),
            ("PUT", "snapshot") => match second {
                Some("create") => self.create(parse(body)?),
                Some("load") => self.load(parse(body)?),
                Some(other) => refuse(format!("Invalid request method and/or path: PUT /snapshot/{other}.")),
                None => refuse("Missing snapshot operation type."),
            },
            (method, first) => refuse(format!("Invalid request method and/or path: {method} {first}.")),
        }
    }

    fn describe(&self) -> Answer {
        let state = match self.state {
            State::NotStarted => "Not started",
            State::Running => "Running",
            State::Paused => "Paused",
        };
        let id = &self.id;
        let text = format!(r#"{{"id":"{id}","state":"{state}","vmm_version":"{VERSION}","app_name":"Firecracker"}}"#);
        Ok((Some(text), Effect::Nothing))
    }

    fn before(&mut self, change: impl FnOnce(&mut Self) -> Answer) -> Answer {
        if self.state == State::NotStarted {
            self.configured = true;
            change(self)
        } else {
            refuse(AFTER)
        }
    }

    fn machine_config(&mut self, config: &MachineConfig) -> Answer {
        if self.state != State::NotStarted {
            return refuse(AFTER);
        }
        let MachineConfig { vcpu_count, mem_size_mib, .. } = *config;
        if vcpu_count == 0 || vcpu_count > 32 {
            return refuse(
                "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.",
            );
        }
        if mem_size_mib == 0 {
            return refuse(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.",
            );
        }
        self.configured = true;
        done(Effect::Nothing)
    }

    fn boot_source(&mut self, source: BootSource) -> Answer {
        self.before(|vm| {
            if let Err(error) = opens(&source.kernel_image_path) {
                return refuse(format!("Boot source error: The kernel file cannot be opened: {error}"));
            }
            if let Some(Err(error)) = source.initrd_path.as_deref().map(opens) {
                return refuse(format!(
                    "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. {error}"
                ));
            }
            vm.boot_source = Some(source);
            done(Effect::Nothing)
        })
    }

    fn drive(&mut self, id: &str, drive: Drive) -> Answer {
        if id.is_empty() {
            return refuse("The ID cannot be empty.");
        }
        if !id.chars().all(|c| c == '_' || c.is_alphanumeric()) {
            return refuse("API Resource IDs can only contain alphanumeric characters and underscores.");
        }
        if id != drive.drive_id {
            return refuse("The id from the path does not match the id from the body!");
        }
        if self.state != State::NotStarted {
            return refuse("PCI is not enabled");
        }
        self.configured = true;
        match drive.path_on_host.as_deref().map(opens) {
            None => return refuse("Drive config error: Unable to create the virtio block device"),
            Some(Err(error)) => return refuse(format!("Drive config error: {error}")),
            Some(Ok(())) => {}
        }
        self.drives.retain(|other| other.drive_id != drive.drive_id);
        self.drives.push(drive);
        done(Effect::Nothing)
    }

    fn vsock(&mut self, vsock: Vsock) -> Answer {
        self.before(|vm| {
            let path = vsock.uds_path.clone();
            if Path::new(&path).exists() {
                return refuse(
                    "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: Address in use (os error 98)",
                );
            }
            vm.vsock = Some(vsock);
            done(Effect::Listen(path))
        })
    }

    fn action(&mut self, action: &ActionType) -> Answer {
        match (action, self.state) {
            (ActionType::InstanceStart, State::NotStarted) if self.boot_source.is_none() => {
                refuse("Start microvm error: Cannot start microvm without kernel configuration.")
            }
            (ActionType::InstanceStart, State::NotStarted) => {
                self.state = State::Running;
                done(Effect::Boot)
            }
            (ActionType::InstanceStart, _) => refuse(AFTER),
            (_, State::NotStarted) => refuse(BEFORE),
            _ => done(Effect::Nothing),
        }
    }

    fn patch(&mut self, state: &VmState) -> Answer {
        if self.state == State::NotStarted {
            return refuse(BEFORE);
        }
        match state {
            VmState::Paused => {
                self.state = State::Paused;
                done(Effect::Pause)
            }
            VmState::Resumed => {
                self.state = State::Running;
                done(Effect::Resume)
            }
        }
    }

    fn create(&self, create: SnapshotCreate) -> Answer {
        match self.state {
            State::NotStarted => return refuse(BEFORE),
            State::Running => {
                return refuse(
                    "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running",
                );
            }
            State::Paused => {}
        }
        let saved = Saved { version: VERSION.to_owned(), drives: self.drives.clone(), vsock: self.vsock.clone() };
        let text = serde_json::to_vec(&saved).unwrap_or_default();
        match std::fs::write(&create.snapshot_path, text) {
            Ok(()) => done(Effect::Save { state: create.snapshot_path, memory: create.mem_file_path }),
            Err(error) => {
                refuse(format!("Create snapshot error: Cannot perform open on the snapshot backing file: {error}"))
            }
        }
    }

    fn load(&mut self, load: SnapshotLoad) -> Answer {
        let memory = match (load.mem_backend, load.mem_file_path) {
            (Some(_), Some(_)) => {
                return refuse(
                    "An error occurred when deserializing the json body of a request: too many fields: either `mem_backend` or `mem_file_path` exclusively is required.",
                );
            }
            (None, None) => {
                return refuse(
                    "An error occurred when deserializing the json body of a request: missing field: either `mem_backend` or `mem_file_path` is required.",
                );
            }
            (Some(backend), None) => backend.backend_path,
            (None, Some(path)) => path,
        };
        if self.state != State::NotStarted {
            return refuse(AFTER);
        }
        if self.configured {
            return refuse(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.",
            );
        }
        let failed = |why: String| -> Answer {
            Err((format!("Load snapshot error: Failed to restore from snapshot: {why}"), Effect::Exit))
        };
        let saved = match std::fs::read(&load.snapshot_path) {
            Ok(text) => text,
            Err(error) => {
                return failed(format!(
                    "Failed to get snapshot state from file: Failed to open snapshot file: {error}"
                ));
            }
        };
        let Ok(saved) = serde_json::from_slice::<Saved>(&saved) else {
            return failed(
                "Failed to get snapshot state from file: Failed to load snapshot state from file".to_owned(),
            );
        };
        let files = saved.drives.iter().filter_map(|drive| drive.path_on_host.as_deref());
        if let Some(Err(error)) = files.chain([memory.as_str()]).map(opens).find(Result::is_err) {
            return failed(error);
        }
        let resumed = load.resume_vm;
        self.state = if resumed { State::Running } else { State::Paused };
        let saved_path = saved.vsock.as_ref().map(|vsock| vsock.uds_path.clone());
        let uds_path = load.vsock_override.map(|vsock| vsock.uds_path).or(saved_path);
        if uds_path.as_deref().is_some_and(|path| Path::new(path).exists()) {
            return failed("Error binding to the host-side Unix socket: Address in use (os error 98)".to_owned());
        }
        (self.drives, self.vsock) = (saved.drives, saved.vsock);
        done(Effect::Load { memory, uds_path, resumed })
    }
}
