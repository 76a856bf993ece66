//! A bare machine: the host's own files under an overlay, so that what is done to it is done to nothing else, with its own process
//! ids, and Debian's sshd as its first process. It shares the test's network namespace, in which every port is free.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    process::{FluxCommand, FluxProcess},
    process_tree::Process,
    wait::eventually,
};

/// Generous: a loaded machine takes its time.
const SOON: Duration = Duration::from_secs(60);
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

/// Gone, with all that runs on it, when it is dropped.
#[derive(Debug)]
pub struct BareMachine {
    process: FluxProcess,
    dir: TempDir,
}

/// Runs a test in a network of its own, with nothing but loopback in it. Everything that it starts is of this thread, and so in the same
/// network. Needs root's rights, and is skipped without them, but in CI.
pub fn in_own_network(test: impl Future<Output = ()>) {
    if !nix::unistd::geteuid().is_root() {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("SKIPPED: this test makes a machine of namespaces and an overlay, and needs to be run as root");
        }
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must run this test as root");
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip: `scripts/setup.sh test`");
    assert!(up.success(), "loopback cannot be set up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

impl BareMachine {
    /// Lets root in with the private key of that public one, and answers. `further` is a script that changes the machine, in its root
    /// directory, before sshd is started.
    pub async fn start(public_key: &Path, further: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("flux-node-").tempdir().expect("a directory");
        fs::create_dir(dir.path().join("mnt")).expect("a mount point");
        fs::copy(public_key, dir.path().join("authorized_keys")).expect("copied");
        fs::write(dir.path().join("further"), further).expect("written");
        let machine = Self { process: Self::boot(dir.path()), dir };
        machine.answers().await;
        machine
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
    pub async fn made_anew(&mut self) {
        self.process.kill9();
        self.process = Self::boot(self.dir.path());
        self.answers().await;
    }

    /// It is gone, and nothing answers.
    pub fn end(&mut self) {
        self.process.kill9();
    }

    async fn answers(&self) {
        let what = format!("sshd to listen:\n{}", self.log());
        eventually(SOON, what, || async { tokio::net::TcpStream::connect(self.address()).await.is_ok() }).await;
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], PORT).into()
    }

    /// What sshd says.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its host key as OpenSSH writes it: algorithm, key, comment.
    pub fn host_key(&self) -> String {
        fs::read_to_string(self.dir.path().join("host_key.pub")).expect("its host key")
    }

    /// A path beside the machine, which goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its root directory, as its first process sees it.
    pub fn root(&self) -> PathBuf {
        let sshd = self.processes().into_iter().find(|process| process.command.contains("sshd: /usr/sbin/sshd"));
        PathBuf::from(format!("/proc/{}/root", sshd.expect("sshd runs").pid))
    }

    pub fn processes(&self) -> Vec<Process> {
        self.process.descendants()
    }

    /// Who may come is written now.
    pub fn let_in(&self) {
        fs::copy(self.path("authorized_keys"), self.root().join("root/.ssh/authorized_keys")).expect("written");
    }
}
