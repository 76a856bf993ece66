//! One Firecracker: its process, its folder, its API.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, fchown},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::Instant,
};

use crate::{
    api::{
        Action, Api, BootSource, Drive, MachineConfig, MemoryBackend, MemoryBackendType, SnapshotCreate, SnapshotLoad,
    },
    api::{SnapshotType, VmState, Vsock},
    error::DriverError,
    jail::{self, Jail, Size},
    owner,
    settings::Settings,
    snapshots::Files,
    vsock,
};

/// Between two looks for the API socket of a Firecracker that starts.
const PAUSE: Duration = Duration::from_millis(1);
/// Of a log that is told when something went wrong.
const LOG_BYTES: u64 = 2048;
const LOG: &str = "log";
const STDERR: &str = "stderr";
/// Every guest may have the same: each has a Unix socket of its own.
const GUEST_CID: u32 = 3;
/// No serial line, which a guest could fill the host's disk by; the guest ends when its kernel panics or its agent says so.
const BOOT_ARGS: &str = "reboot=k panic=-1 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd quiet loglevel=1 \
                         random.trust_cpu=on rdinit=/init flux.root=/dev/vda flux.code=/dev/vdb";

/// Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    pub(crate) api: Api,
    jail: Jail,
    uid: Option<u32>,
    /// What it says, as it was opened before it ran: what is at their names afterwards is its to choose.
    log: fs::File,
    stderr: fs::File,
}

impl Machine {
    /// Starts a Firecracker that nothing was told yet, in a folder of its own.
    pub(crate) async fn start(
        settings: &Settings,
        id: &str,
        uid: Option<u32>,
        size: Size,
    ) -> Result<Self, DriverError> {
        let folder = |source| DriverError::Folder { what: "a guest's folder cannot be made", source };
        let jail = Jail::make(settings, id, uid).map_err(folder)?;
        let create =
            |name| fs::File::options().read(true).write(true).create_new(true).mode(0o600).open(jail.path(name));
        let log = create(LOG).map_err(folder)?;
        fchown(&log, uid, uid).map_err(folder)?;
        let stderr = create(STDERR).map_err(folder)?;
        let their_stderr = stderr.try_clone().map_err(folder)?;
        let (program, args) = jail.command(settings, size);
        let child = Command::new(&program)
            .args(args)
            .args(["--log-path", LOG, "--level", "Warn"])
            .current_dir(&jail.root)
            .env_clear()
            .stdin(Stdio::null())
            // The guest's serial line, should it find one.
            .stdout(Stdio::null())
            .stderr(their_stderr)
            .kill_on_drop(true)
            .process_group(0)
            .spawn()
            .map_err(|source| DriverError::Run { program, source })?;
        let api = Api::new(jail.path(jail::API_SOCKET), settings.api_within);
        let mut machine = Self { child, api, jail, uid, log, stderr };
        if let Some(pid) = machine.child.id()
            && owner::note(&machine.jail.owner(), pid).is_err()
        {
            return Err(machine.why_ended("it started").await);
        }
        machine.until_it_listens(settings.api_within).await?;
        Ok(machine)
    }

    async fn until_it_listens(&mut self, within: Duration) -> Result<(), DriverError> {
        let deadline = Instant::now() + within;
        loop {
            if let Ok(Some(_)) = self.child.try_wait() {
                return Err(self.why_ended("it listened").await);
            }
            match UnixStream::connect(self.api.socket()).await {
                Ok(_) => return Ok(()),
                Err(source) if Instant::now() > deadline => return Err(DriverError::Mute { within, source }),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Boots a guest with these files.
    pub(crate) async fn boot(
        &self,
        settings: &Settings,
        code: &std::path::Path,
        size: Size,
    ) -> Result<(), DriverError> {
        for (file, name) in [
            (settings.kernel.as_path(), jail::KERNEL),
            (&settings.initramfs, jail::INITRAMFS),
            (&settings.rootfs, jail::ROOTFS),
            (code, jail::CODE),
        ] {
            self.jail.has(file, name).map_err(|source| DriverError::Folder { what: "a guest's files", source })?;
        }
        let api = &self.api;
        api.machine_config(MachineConfig { vcpu_count: size.vcpus, mem_size_mib: size.memory_mib }).await?;
        let source = BootSource { kernel_image_path: jail::KERNEL, initrd_path: jail::INITRAMFS, boot_args: BOOT_ARGS };
        api.boot_source(&source).await?;
        // In the order in which the guest names them: vda, vdb.
        for name in [jail::ROOTFS, jail::CODE] {
            let drive = Drive { drive_id: name, path_on_host: name, is_root_device: false, is_read_only: true };
            api.drive(&drive).await?;
        }
        api.vsock(&Vsock { guest_cid: GUEST_CID, uds_path: jail::VSOCK_SOCKET }).await?;
        api.entropy().await?;
        api.action(Action::InstanceStart).await?;
        Ok(())
    }

    /// Stops the guest, has its memory written into the folder, and has it go on.
    pub(crate) async fn snapshot(&self) -> Result<Files, DriverError> {
        self.api.set_state(VmState::Paused).await?;
        let create = SnapshotCreate {
            snapshot_type: SnapshotType::Full,
            snapshot_path: jail::SNAPSHOT_STATE,
            mem_file_path: jail::SNAPSHOT_MEMORY,
        };
        let created = self.api.create_snapshot(&create).await;
        // Whatever came of it, the guest is of use.
        self.api.set_state(VmState::Resumed).await?;
        created?;
        Ok(Files { state: self.jail.path(jail::SNAPSHOT_STATE), memory: self.jail.path(jail::SNAPSHOT_MEMORY) })
    }

    /// Goes on where the guest of the snapshot was.
    pub(crate) async fn restore(
        &self,
        settings: &Settings,
        files: &Files,
        code: &std::path::Path,
    ) -> Result<(), DriverError> {
        for (file, name) in [
            (files.state.as_path(), jail::SNAPSHOT_STATE),
            (&files.memory, jail::SNAPSHOT_MEMORY),
            (&settings.rootfs, jail::ROOTFS),
            (code, jail::CODE),
        ] {
            self.jail.has(file, name).map_err(|source| DriverError::Folder { what: "a guest's files", source })?;
        }
        let load = SnapshotLoad {
            snapshot_path: jail::SNAPSHOT_STATE,
            mem_backend: MemoryBackend { backend_type: MemoryBackendType::File, backend_path: jail::SNAPSHOT_MEMORY },
            resume_vm: true,
        };
        self.api.load_snapshot(&load).await?;
        Ok(())
    }

    /// A connection to `port` in the guest. Tells of an end that comes instead.
    pub(crate) async fn connect(&mut self, port: u32, within: Duration) -> Result<UnixStream, DriverError> {
        let socket = self.jail.path(jail::VSOCK_SOCKET);
        tokio::select! {
            connected = vsock::connect(&socket, port, within) => Ok(connected?),
            _ = self.child.wait() => Err(self.why_ended("its guest answered").await),
        }
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends it, and waits until it has.
    pub(crate) async fn end(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "a Firecracker could not be ended");
        }
    }

    async fn why_ended(&mut self, before: &'static str) -> DriverError {
        let status = self.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        let mut log = tail(&self.log);
        log.push_str(&tail(&self.stderr));
        DriverError::Ended { before, status, log: log.trim().to_owned() }
    }

    pub(crate) fn uid(&self) -> Option<u32> {
        self.uid
    }
}

/// The end of a file, as text.
fn tail(file: &fs::File) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let from = file.metadata()?.len().saturating_sub(LOG_BYTES);
        let mut bytes = vec![0; usize::try_from(LOG_BYTES).unwrap_or(0)];
        let count = file.read_at(&mut bytes, from)?;
        bytes.truncate(count);
        Ok(bytes)
    };
    read().map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}
