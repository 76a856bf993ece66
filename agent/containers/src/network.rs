//! What containers with a network may not reach, and whether it can be kept from them here.
//!
//! The launcher's guard is put on each such container between its shim's connection and its function's start. A container that it
//! cannot be put on does not run, where it was said that it can.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use bollard::models::SystemInfo;
use flux_launcher::{Held, NetworkGuard};

use crate::config::DriverConfig;

/// What is dead leaves its cgroup a little later.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);
const OPEN: &str = "containers with a network reach the cloud's metadata and Flux's own servers unless the machine's firewall keeps them from it";

#[derive(Debug)]
pub(crate) struct Networks {
    guard: Result<NetworkGuard, String>,
    unknown_servers: String,
}

/// What is kept from containers of one Docker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guarding {
    /// Each container is guarded, or does not run.
    pub(crate) is_there: bool,
    /// Why that is not all.
    pub(crate) lacks: Option<String>,
}

impl Networks {
    /// Ends and removes what an earlier driver of this owner guarded.
    pub(crate) fn prepare(config: &DriverConfig, owner: &str) -> Self {
        let guard = if nix::unistd::geteuid().is_root() {
            NetworkGuard::try_new(&format!("flux-containers-{owner}"), config.servers.clone())
                .map_err(|error| error.to_string())
        } else {
            Err("not started as root".to_owned())
        };
        Self { guard, unknown_servers: config.unknown_servers.join(", ") }
    }

    pub(crate) async fn guarding(&self, socket: &Path, docker: &SystemInfo) -> Guarding {
        let cannot = match &self.guard {
            Err(error) => Some(error.clone()),
            Ok(_) if is_rootless(docker) => Some("Docker is rootless, with networks of its own".to_owned()),
            Ok(guard) => match is_here(socket).await {
                Ok(docker) => {
                    guard.reaches(docker).err().map(|error| format!("Docker's containers are not seen: {error}"))
                }
                Err(error) => Some(error),
            },
        };
        let lacks = match &cannot {
            Some(error) => Some(format!("{error}: {OPEN}")),
            None if self.unknown_servers.is_empty() => None,
            None => Some(format!(
                "no address was found for {} when Flux started: containers with a network reach that server",
                self.unknown_servers
            )),
        };
        Guarding { is_there: cannot.is_none(), lacks }
    }

    /// Guards the container whose first process has not started anything yet.
    pub(crate) fn hold(&self, pid: Option<i32>, container: &str) -> Result<Held, String> {
        let guard = self.guard.as_ref().map_err(Clone::clone)?;
        let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let pid = pid.ok_or("its first process is not seen from here")?;
        guard.hold(pid, container).map_err(|error| error.to_string())
    }

    pub(crate) fn sweep(&self) {
        if let Ok(guard) = &self.guard {
            guard.sweep();
        }
    }
}

/// What is left then is removed when Docker is there again, or by the next driver.
pub(crate) async fn release(held: Held) {
    let until = Instant::now() + RELEASED_WITHIN;
    while !held.release() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_rootless(docker: &SystemInfo) -> bool {
    docker.security_options.iter().flatten().any(|option| option == "name=rootless")
}

/// Docker's process, which is on this machine's network: it is this machine's addresses that its containers are kept from.
async fn is_here(socket: &Path) -> Result<u32, String> {
    let failed = |error: std::io::Error| format!("Docker's process could not be looked at ({error})");
    let peer = tokio::net::UnixStream::connect(socket).await.and_then(|stream| stream.peer_cred()).map_err(failed)?;
    let Some(pid) = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0) else {
        return Err("Docker's processes are not seen from where Flux runs".to_owned());
    };
    let network = |process: &str| fs::metadata(format!("/proc/{process}/ns/net")).map(|net| (net.dev(), net.ino()));
    if network(&pid.to_string()).map_err(failed)? == network("self").map_err(failed)? {
        Ok(pid)
    } else {
        Err("Docker is not on the network that Flux is on".to_owned())
    }
}
