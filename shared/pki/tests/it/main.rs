//! The directory of certificates, as processes use it.

mod directory;
mod joining;
mod tls;

use flux_pki::Certs;
use flux_protocol::AgentId;

/// A directory with everything that `init` makes.
fn certs() -> (tempfile::TempDir, Certs) {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::at(dir.path().join("certs"));
    certs.init(&[]).expect("made");
    (dir, certs)
}

fn agent(id: &str) -> AgentId {
    AgentId::parse(id).expect("an id")
}
