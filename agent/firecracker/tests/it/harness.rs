//! A driver with a stand-in of Firecracker, in a folder of its own.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use flux_driver_link::OpenCode;
use flux_firecracker::{Driver, Guest, Settings, Size, Wish};
use flux_testkit::firecracker::{Fault, StandIn};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::UnixStream,
};

pub(crate) const SIZE: Size = Size { vcpus: 1, memory_mib: 128, cpu_millicores: 500 };
/// Length, kind, time, random bytes.
pub(crate) const WAKE: usize = 4 + 1 + 8 + flux_shim::frame::SEED;

pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) settings: Settings,
    pub(crate) code: OpenCode,
}

impl Place {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let program = StandIn::make(path, faults, None).program;
        for name in ["kernel", "initramfs", "rootfs"] {
            fs::write(path.join(name), name).unwrap();
        }
        let code = path.join("code");
        fs::create_dir(&code).unwrap();
        fs::write(code.join("main.py"), "x = 1\n").unwrap();
        if nix::unistd::geteuid().is_root() {
            // As whoever unpacks code: not root.
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(&code, Some(65534), Some(65534)).unwrap();
        }
        let [kernel, initramfs, rootfs] = ["kernel", "initramfs", "rootfs"].map(|name| path.join(name));
        let mut settings = Settings::new(program, kernel, initramfs, rootfs, path.join("driver"));
        settings.api_within = Duration::from_secs(5);
        settings.boots_within = Duration::from_secs(5);
        Self { folder, settings, code: OpenCode::known(&code).unwrap() }
    }

    pub(crate) async fn driver(&self) -> Driver {
        Driver::try_new(self.settings.clone()).await.unwrap()
    }

    pub(crate) fn wish(&self) -> Wish<'_> {
        Wish { function: "f@1", code: &self.code, code_digest: "c1", size: SIZE, snapshot: true }
    }

    /// The folders of guests that are there.
    pub(crate) fn guests(&self) -> Vec<PathBuf> {
        let guests = self.settings.directory.join("guests/firecracker");
        fs::read_dir(guests).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// What the stand-in's guest says of itself, and the first frame that it was sent.
pub(crate) struct Met {
    pub(crate) stream: BufReader<UnixStream>,
    /// `booted` or `restored`.
    pub(crate) how: String,
    /// What only this boot and its clones know.
    pub(crate) boot: String,
    pub(crate) wake: [u8; WAKE],
}

pub(crate) async fn meet(guest: &mut Guest, within: Duration) -> Met {
    let mut stream = BufReader::new(guest.connect(within).await.unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let (how, boot) = line.trim().split_once(' ').unwrap();
    let mut wake = [0; WAKE];
    stream.read_exact(&mut wake).await.unwrap();
    Met { how: how.to_owned(), boot: boot.to_owned(), wake, stream }
}
