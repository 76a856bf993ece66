//! A bare machine, its key, and how it is set up here.

use std::{
    fs,
    ops::{Deref, DerefMut},
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use flux_bootstrap::{HostKeys, Install, KnownHosts, Machine, Recipe, Timing};
use flux_pki::Certs;
use flux_provider::{Fingerprint, NodeId};
use flux_testkit::BareMachine;

/// Generous: a loaded machine takes its time.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    machine: BareMachine,
    certs: tempfile::TempDir,
    pub(crate) id: NodeId,
}

impl Deref for Node {
    type Target = BareMachine;

    fn deref(&self) -> &BareMachine {
        &self.machine
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut BareMachine {
        &mut self.machine
    }
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With a script that changes the machine, in its root directory, before sshd is started.
    pub(crate) async fn start_with(further: &str) -> Self {
        let certs = tempfile::tempdir().expect("a directory");
        Certs::at(certs.path()).init(&[]).expect("a key");
        let [_, public] = Certs::at(certs.path()).ssh_files();
        let machine = BareMachine::start(&public, further).await;
        Self { machine, certs, id: NodeId::parse("i-0test").expect("an id") }
    }

    pub(crate) fn certs(&self) -> Certs {
        Certs::at(self.certs.path())
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let key = russh::keys::PublicKey::from_openssh(&self.host_key()).expect("a key");
        Fingerprint::of_key(&key.to_bytes().expect("a key"))
    }

    pub(crate) fn pinned(&self) -> Machine {
        self.machine(HostKeys::Pinned([self.fingerprint()].into()))
    }

    pub(crate) fn machine(&self, host_keys: HostKeys) -> Machine {
        Machine { address: self.address(), host_keys }
    }

    pub(crate) fn known_hosts(&self) -> KnownHosts {
        KnownHosts::at(self.path("known"))
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

    /// Nothing is installed: that the image has an agent is said by a command.
    pub(crate) fn recipe(&self) -> Recipe {
        let [private, _] = self.certs().ssh_files();
        let mut recipe = Recipe::new("root", private, Install::Present);
        recipe.timing = Timing { ssh: SOON, step: SOON, pause: Duration::from_millis(50), ..Timing::default() };
        recipe
    }
}
