//! Whose machine answers.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use flux_protocol::limits;
use flux_provider::{ErrorKind, Fingerprint, NodeId, SharedProvider};
use tokio::time::{Instant, sleep};

use crate::steps::Reason;

/// What is known of a machine's host key before it is spoken to.
#[derive(Clone)]
pub enum HostKeys {
    /// One of these.
    Pinned(BTreeSet<Fingerprint>),
    /// What the machine writes to its console, which the provider shows and nobody between us and the machine can change.
    Console { provider: SharedProvider, node: NodeId },
    /// The one that it shows first, which is written down before anything is told to it.
    FirstUse { known: KnownHosts, node: NodeId },
}

impl fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned(keys) => f.debug_tuple("Pinned").field(keys).finish(),
            Self::Console { node, .. } => f.debug_tuple("Console").field(node).finish(),
            Self::FirstUse { node, .. } => f.debug_tuple("FirstUse").field(node).finish(),
        }
    }
}

/// Host keys that were seen first: a directory with a file for each machine.
#[derive(Debug, Clone)]
pub struct KnownHosts {
    dir: PathBuf,
}

impl KnownHosts {
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Ids of providers may have any visible character; a file's name may not.
    fn path(&self, node: &NodeId) -> PathBuf {
        let safe = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let name: String = node
            .as_str()
            .bytes()
            .map(|b| if safe(b) { char::from(b).to_string() } else { format!("%{b:02x}") })
            .collect();
        self.dir.join(name)
    }

    fn read(&self, node: &NodeId) -> io::Result<Option<Fingerprint>> {
        let path = self.path(node);
        match fs::read_to_string(&path) {
            Ok(text) => Fingerprint::parse(text.trim())
                .map(Some)
                .ok_or_else(|| io::Error::other(format!("{} is damaged", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first that was seen of a machine, which is `seen` if there was none before.
    fn first(&self, node: &NodeId, seen: &Fingerprint) -> io::Result<Fingerprint> {
        fs::create_dir_all(&self.dir)?;
        if let Some(known) = self.read(node)? {
            return Ok(known);
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        io::Write::write_all(&mut file, seen.as_str().as_bytes())?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(self.path(node)) {
            Ok(_) => Ok(seen.clone()),
            // Another was first.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                self.read(node)?.ok_or_else(|| io::Error::other("it was removed meanwhile"))
            }
            Err(error) => Err(error.error),
        }
    }

    /// Forgets a machine that is gone.
    ///
    /// # Errors
    /// Its file cannot be removed.
    pub fn forget(&self, node: &NodeId) -> io::Result<()> {
        match fs::remove_file(self.path(node)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What a host key is held against, once it is known what that is.
#[derive(Debug, Clone)]
pub(crate) enum Expected {
    OneOf(BTreeSet<Fingerprint>),
    FirstUse(KnownHosts, NodeId),
}

impl HostKeys {
    pub(crate) async fn expected(&self, within: Duration) -> Result<Expected, Reason> {
        match self {
            Self::Pinned(keys) => Ok(Expected::OneOf(keys.clone())),
            Self::FirstUse { known, node } => Ok(Expected::FirstUse(known.clone(), node.clone())),
            Self::Console { provider, node } => console(provider, node, Instant::now() + within)
                .await?
                .map(Expected::OneOf)
                .ok_or(Reason::NoHostKey { within }),
        }
    }
}

async fn console(
    provider: &SharedProvider,
    node: &NodeId,
    deadline: Instant,
) -> Result<Option<BTreeSet<Fingerprint>>, Reason> {
    let mut pause = limits::BOOTSTRAP_PAUSE;
    loop {
        match provider.console_output(node).await {
            Ok(console) if !console.host_keys.is_empty() => return Ok(Some(console.host_keys)),
            Ok(_) => {}
            // A list that lags does not show a machine that was launched just now; one that is gone stays away.
            Err(error) if error.is_retryable() || error.kind() == ErrorKind::NotFound => {
                tracing::debug!(%node, %error, "the console cannot be read yet");
            }
            Err(error) => return Err(Reason::NoConsole { why: error.to_string() }),
        }
        if Instant::now() + pause >= deadline {
            return Ok(None);
        }
        sleep(pause).await;
        pause = (pause * 2).min(limits::BOOTSTRAP_PAUSE_MOST);
    }
}

impl Expected {
    pub(crate) fn check(&self, seen: &Fingerprint) -> Result<(), Reason> {
        let expected = match self {
            Self::OneOf(keys) => keys.iter().cloned().collect::<Vec<_>>(),
            Self::FirstUse(known, node) => {
                let first = known.first(node, seen);
                vec![first.map_err(|error| Reason::Ours { why: format!("host keys cannot be kept: {error}") })?]
            }
        };
        if expected.contains(seen) { Ok(()) } else { Err(Reason::WrongHostKey { seen: seen.clone(), expected }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_of_a_machine_is_the_only_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let known = KnownHosts::at(dir.path().join("hosts"));
        let [node, other] = ["i-1", "a/../b"].map(|id| NodeId::parse(id).expect("an id"));
        let [key, another] = [b"one", b"two"].map(|key| Fingerprint::of_key(key));
        let of = |node: &NodeId| Expected::FirstUse(known.clone(), node.clone());
        of(&node).check(&key).expect("the first");
        of(&node).check(&key).expect("the same");
        let wrong = of(&node).check(&another).expect_err("another");
        assert_eq!(wrong, Reason::WrongHostKey { seen: another.clone(), expected: vec![key] });
        of(&other).check(&another).expect("of another machine");
        known.forget(&node).expect("forgotten");
        known.forget(&node).expect("forgotten already");
        of(&node).check(&another).expect("a machine made anew");
        let names = fs::read_dir(known.dir()).expect("a directory").count();
        assert_eq!(names, 2, "each has its file in the directory itself");
    }

    #[test]
    fn a_damaged_record_is_no_first_use() {
        let dir = tempfile::tempdir().expect("a directory");
        let known = KnownHosts::at(dir.path());
        fs::write(dir.path().join("i-1"), "SHA256:abc").expect("written");
        let node = NodeId::parse("i-1").expect("an id");
        let damaged = Expected::FirstUse(known, node).check(&Fingerprint::of_key(b"one")).expect_err("damaged");
        assert!(matches!(damaged, Reason::Ours { .. }), "{damaged}");
    }
}
