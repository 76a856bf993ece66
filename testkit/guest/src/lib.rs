//! A real Linux guest for tests: the image that `flux microvm build` makes, booted by QEMU without KVM.
//!
//! What it shows is that the initramfs, the root file system and the guest's agent work on a real kernel; the vsock's host side
//! is `vhost-device-vsock`, which speaks Firecracker's `CONNECT` at a Unix socket. What it does not show is Firecracker.
//!
//! Everything here panics with what to do when it cannot do its work: it is called by tests alone.

mod image;
mod line;
mod python;

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub use image::{Image, code_disk};
pub use line::{Finished, Line};
pub use python::{Python, function};

/// Under a load of other tests a guest without KVM takes ten times as long as on an idle machine (2 s).
const BOOTS_WITHIN: Duration = Duration::from_secs(60);

/// A guest that runs. Dropped, it is ended; if the test panics its console is shown.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    vsock: Child,
    folder: tempfile::TempDir,
}

impl Guest {
    /// Boots one with this folder's content as the function's code.
    ///
    /// # Panics
    /// QEMU or vhost-device-vsock is missing.
    pub fn boot(image: &Image, code: &Path, vcpus: u8, memory_mib: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        code_disk(code, &path("code"));
        let vm = format!("guest-cid=3,uds-path={},socket={}", path("v.sock").display(), path("vhost.sock").display());
        let mut vsock = Command::new(tool("vhost-device-vsock"));
        vsock.args(["--vm", &vm]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log(&path("vsock.log")));
        let vsock = vsock.spawn().expect("vhost-device-vsock runs");
        wait_for(&path("vhost.sock"));
        let mut qemu = Command::new(tool("qemu-system-x86_64"));
        let disk = |id: &str, file: &Path| {
            let drive = format!("if=none,id={id},file={},format=raw,readonly=on", file.display());
            ["-drive".to_owned(), drive, "-device".to_owned(), format!("virtio-blk-pci,drive={id}")]
        };
        let memory = format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on");
        let vsock_device = format!("socket,id=vsock,path={}", path("vhost.sock").display());
        qemu.args(["-M", "q35", "-accel", "tcg", "-smp", &vcpus.to_string(), "-m", &memory_mib.to_string()])
            .args(["-object", &memory, "-numa", "node,memdev=memory", "-nodefaults", "-no-reboot", "-nographic"])
            .args(["-serial", "stdio", "-chardev", &vsock_device, "-device", "vhost-user-vsock-pci,chardev=vsock"])
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initramfs())
            .args([
                "-append",
                "console=ttyS0 panic=-1 rdinit=/init flux.root=/dev/vda flux.code=/dev/vdb flux.lonely_s=10",
            ])
            .args(disk("root", &image.rootfs()))
            .args(disk("code", &path("code")))
            .stdin(Stdio::null())
            .stdout(log(&path("console")))
            .stderr(log(&path("qemu.log")));
        let qemu = qemu.spawn().expect("QEMU runs");
        Self { qemu, vsock, folder }
    }

    /// The host's side of its vsock.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("v.sock")
    }

    /// A connection to the guest's agent, woken and greeted.
    ///
    /// # Panics
    /// The guest does not listen, or ended.
    pub fn connect(&mut self) -> Line {
        let deadline = Instant::now() + BOOTS_WITHIN;
        loop {
            if let Some(line) = UnixStream::connect(self.socket()).ok().and_then(Line::open) {
                return line;
            }
            let ended = self.qemu.try_wait().expect("its state");
            assert!(ended.is_none(), "the guest ended: {ended:?}");
            assert!(Instant::now() < deadline, "the guest does not listen after {BOOTS_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// It does not within the time.
    pub fn ends_within(&mut self, within: Duration) {
        let deadline = Instant::now() + within;
        while self.qemu.try_wait().expect("its state").is_none() {
            assert!(Instant::now() < deadline, "the guest has not ended after {within:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.vsock] {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in ["console", "qemu.log", "vsock.log"] {
                let text = fs::read(self.folder.path().join(name)).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {name}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
        }
    }
}

fn log(path: &Path) -> Stdio {
    fs::File::create(path).expect("a log").into()
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + BOOTS_WITHIN;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// On `PATH`, or where cargo installs programs.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let folders = std::env::split_paths(&path).chain(home.map(|home| home.join("bin")));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no `{name}`: run `scripts/setup.sh test`, which installs it"))
}
