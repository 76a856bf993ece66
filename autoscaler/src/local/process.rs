//! The agent's process: started apart from the autoscaler's own, found by its configuration's path.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User},
};
use tokio::time::Instant;

const PLATFORM_USER: &str = "flux";
const AGENT: &str = "flux-agent";
/// Nothing else of the autoscaler's environment is the agent's, and of what it runs: a key of the provider, say.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

pub(super) fn config_of(dir: &Path) -> PathBuf {
    dir.join("agent.yaml")
}

/// The root of the agent's processes, while it lives.
pub(super) fn of(dir: &Path) -> Option<Pid> {
    let config = config_of(dir);
    let config = config.as_os_str().as_bytes();
    let mut all: Vec<(i32, i32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that has ended and was not waited for has no arguments any more.
        let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
        if runs(&arguments, config) {
            all.push((pid, parent(pid).unwrap_or(0)));
        }
    }
    // Its children have the same arguments.
    let root = all.iter().find(|(_, parent)| all.iter().all(|(pid, _)| pid != parent));
    root.map(|(pid, _)| Pid::from_raw(*pid))
}

/// Whether it is an agent with that configuration: an editor that has the file open, or a `tail`, is none.
fn runs(arguments: &[u8], config: &[u8]) -> bool {
    let mut arguments = arguments.split(|byte| *byte == 0);
    let program = arguments.next().map(|program| program.rsplit(|byte| *byte == b'/').next().unwrap_or_default());
    // Its children are started as `/proc/self/exe`.
    let is_agent = program.is_some_and(|program| program == AGENT.as_bytes() || program == b"exe");
    is_agent && arguments.next() == Some(b"--config") && arguments.next() == Some(config)
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may have anything in it: the state, and then the parent.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Starts it in a session of its own: what is sent to the autoscaler's terminal is not for it.
pub(super) fn start(agent: &Path, dir: &Path) -> io::Result<()> {
    let log = File::options().create(true).append(true).open(dir.join("agent.log"))?;
    let mut command = Command::new(agent);
    command.arg("--config").arg(config_of(dir));
    command.env_clear().envs(inherited(std::env::vars_os()));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut child = command.spawn()?;
    // Somebody has to wait for it, or it stays as a zombie. A thread, which costs less than it is worth saving.
    std::thread::Builder::new().name("agent-ends".to_owned()).spawn(move || child.wait()).map(|_| ())
}

fn inherited(all: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = (OsString, OsString)> {
    all.filter(|(name, _)| INHERITED.iter().any(|one| name == one))
}

/// Asks it to go, and kills it when it does not: with the root goes all of it.
pub(super) async fn end(dir: &Path, within: Duration, look_again: Duration) -> io::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let Some(root) = of(dir) else { return Ok(()) };
        // Gone meanwhile is fine.
        let _ = kill(root, signal);
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if of(dir).is_none() {
                return Ok(());
            }
            tokio::time::sleep(look_again).await;
        }
    }
    Err(io::Error::other("its processes do not end"))
}

/// As root the agent drops to the user `flux`, who has to read its certificates and write beside them.
pub(super) fn give(dir: &Path) -> io::Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let Some(user) = User::from_name(PLATFORM_USER).map_err(io::Error::from)? else { return Ok(()) };
    give_all(dir, user.uid.as_raw(), user.gid.as_raw())
}

fn give_all(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_all(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

pub(super) fn memory_mb() -> u32 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    u32::try_from(kib / 1024).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_inherits_no_secret() {
        let all = ["PATH", "AWS_SECRET_ACCESS_KEY", "FLUX_AUTOSCALER__API_KEY", "HOME", "PATHS"];
        let kept = inherited(all.iter().map(|name| (OsString::from(name), OsString::from("x"))));
        assert_eq!(kept.map(|(name, _)| name).collect::<Vec<_>>(), ["PATH", "HOME"]);
    }

    #[test]
    fn who_reads_a_configuration_is_no_agent() {
        let config = b"/nodes/a/agent.yaml".as_slice();
        assert!(runs(b"/usr/bin/flux-agent\0--config\0/nodes/a/agent.yaml\0", config));
        assert!(runs(b"flux-agent\0--config\0/nodes/a/agent.yaml\0", config));
        assert!(!runs(b"vi\0/nodes/a/agent.yaml\0", config));
        assert!(!runs(b"other\0--config\0/nodes/a/agent.yaml\0", config));
        assert!(!runs(b"flux-agent\0--config\0/nodes/b/agent.yaml\0", config));
        assert!(!runs(b"", config));
    }
}
