//! A gateway as a process of its own, on a queue and in a directory that are the test's.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use tempfile::TempDir;

use crate::{FluxCommand, FluxProcess};

/// A directory that the user `flux` can enter and write to, where the tests are root.
pub fn passable_dir(prefix: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("its mode");
    dir
}

/// `flux-gateway` on a queue that asks for no certificates, with its store, archives and configuration in `dir`; not ready yet.
pub fn start_gateway(queue_url: &str, dir: &Path, listen: &str, key: &str) -> FluxProcess {
    start_gateway_on(&format!("sqlite://{}", dir.join("flux.db").display()), queue_url, dir, listen, key)
}

/// The same with its store elsewhere, which another may share.
pub fn start_gateway_on(store: &str, queue_url: &str, dir: &Path, listen: &str, key: &str) -> FluxProcess {
    let config = dir.join("gateway.yaml");
    let text = format!(
        "disable_mtls: true\nqueue: {{ url: \"{}\" }}\nstore: {{ url: \"{store}\" }}\nartifacts: {{ dir: {:?} }}\n\
         gateway: {{ listen: \"{listen}\", api_key: {key} }}\n",
        queue_url,
        dir.join("artifacts"),
    );
    std::fs::write(&config, text).expect("a file");
    FluxCommand::new("flux-gateway").arg("--config").arg(&config).spawn()
}
