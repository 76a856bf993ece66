//! A bare machine: the host's own files under an overlay, so that what is done to it is done to nothing else, with its own process
//! ids, and Debian's sshd as its first process. It shares the test's network namespace, in which every port is free.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flux_bootstrap::{HostKeys, Install, KnownHosts, Machine, Recipe, Timing};
use flux_provider::{Fingerprint, NodeId};
use flux_testkit::{FluxCommand, FluxProcess, eventually};

/// Generous: a loaded machine takes its time.
pub(crate) const SOON: Duration = Duration::from_secs(60);
const PORT: u16 = 22;

const START: &str = r#"
set -eu
dir=$1
mount -t tmpfs -o mode=755 node "$dir/mnt"
cd "$dir/mnt"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
# The launcher's cgroups are named after process ids, which are not the host's here.
mount -t tmpfs none sys/fs/cgroup
for d in tmp var/tmp run root; do mount -t tmpfs -o mode=755 node "$d"; done
chmod 1777 tmp var/tmp
mkdir -p run/sshd root/.ssh
rm -rf etc/flux var/lib/flux var/lib/flux-setup usr/bin/flux-agent usr/local/bin/flux-agent etc/sudoers.d
rm -f etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f etc/ssh/ssh_host_ed25519_key
cp etc/ssh/ssh_host_ed25519_key.pub "$dir/host_key.pub"
cp "$dir/authorized_keys" root/.ssh/authorized_keys
sh -eu "$dir/further" .
cat >etc/ssh/sshd_config <<'end'
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
Subsystem sftp internal-sftp
end
# A root of its own, and no chroot: the launcher of an agent makes namespaces below it.
pivot_root . mnt
umount -l /mnt
exec chroot . /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config -o ListenAddress=127.0.0.1
"#;

pub(crate) struct Node {
    process: FluxProcess,
    dir: tempfile::TempDir,
    pub(crate) id: NodeId,
}

/// Whether root's rights are there, and then a network of this test's own, with nothing but loopback in it.
pub(crate) fn apart() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: this test makes a machine of namespaces and an overlay, and needs to be run as root");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must run this test as root");
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip: `scripts/setup.sh test`");
    assert!(up.success(), "loopback cannot be set up");
    true
}

/// Runs a test in a network of its own. Everything that it starts is of this thread, and so in the same network.
pub(crate) fn in_own_network(test: impl Future<Output = ()>) {
    if apart() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test);
    }
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With a script that changes the machine, in its root directory, before sshd is started.
    pub(crate) async fn start_with(further: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("flux-node-").tempdir().expect("a directory");
        fs::create_dir(dir.path().join("mnt")).expect("a mount point");
        flux_pki::Certs::at(dir.path().join("pki")).init(&[]).expect("a key");
        let [_, public] = flux_pki::Certs::at(dir.path().join("pki")).ssh_files();
        fs::copy(public, dir.path().join("authorized_keys")).expect("copied");
        fs::write(dir.path().join("further"), further).expect("written");
        let process = Self::boot(dir.path());
        let node = Self { process, dir, id: NodeId::parse("i-0test").expect("an id") };
        node.answers().await;
        node
    }

    fn boot(dir: &Path) -> FluxProcess {
        let _ = fs::remove_file(dir.join("host_key.pub"));
        let namespaces = [
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--",
            "sh",
            "-c",
            START,
            "node",
        ];
        FluxCommand::of_program("/usr/bin/unshare").args(namespaces).arg(dir).spawn()
    }

    /// The machine is gone, and there is another at its address.
    pub(crate) async fn made_anew(&mut self) {
        self.process.kill9();
        self.process = Self::boot(self.dir.path());
        self.answers().await;
    }

    async fn answers(&self) {
        let what = format!("sshd to listen:\n{}", self.log());
        eventually(SOON, what, || async { tokio::net::TcpStream::connect(("127.0.0.1", PORT)).await.is_ok() }).await;
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    pub(crate) fn host_key(&self) -> Fingerprint {
        let line = fs::read_to_string(self.dir.path().join("host_key.pub")).expect("its host key");
        let key = russh::keys::PublicKey::from_openssh(&line).expect("a key");
        Fingerprint::of_key(&key.to_bytes().expect("a key"))
    }

    pub(crate) fn pinned(&self) -> Machine {
        self.machine(HostKeys::Pinned([self.host_key()].into()))
    }

    pub(crate) fn machine(&self, host_keys: HostKeys) -> Machine {
        Machine { address: ([127, 0, 0, 1], PORT).into(), host_keys }
    }

    pub(crate) fn known_hosts(&self) -> KnownHosts {
        KnownHosts::at(self.dir.path().join("known"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the machine.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root().join(path.trim_start_matches('/'))).ok()
    }

    pub(crate) fn mode(&self, path: &str) -> (u32, u32) {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::symlink_metadata(self.root().join(path.trim_start_matches('/'))).expect(path);
        (meta.permissions().mode() & 0o7777, meta.uid())
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.root().join(path.trim_start_matches('/')).exists()
    }

    /// As its first process sees it.
    fn root(&self) -> PathBuf {
        let sshd = self.processes().into_iter().find(|process| process.command.contains("sshd: /usr/sbin/sshd"));
        PathBuf::from(format!("/proc/{}/root", sshd.expect("sshd runs").pid))
    }

    pub(crate) fn processes(&self) -> Vec<flux_testkit::Process> {
        self.process.descendants()
    }

    /// Who may come is written now.
    pub(crate) fn let_in(&self) {
        let to = self.root().join("root/.ssh/authorized_keys");
        fs::copy(self.path("authorized_keys"), to).expect("written");
    }

    /// Nothing is installed: that the image has an agent is said by a command.
    pub(crate) fn recipe(&self) -> Recipe {
        let [private, _] = flux_pki::Certs::at(self.path("pki")).ssh_files();
        let mut recipe = Recipe::new("root", private, Install::Present);
        recipe.timing = Timing { ssh: SOON, step: SOON, pause: Duration::from_millis(50), ..Timing::default() };
        recipe
    }
}
