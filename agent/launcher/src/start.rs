//! Starting a launcher: the same for the tree, which has the privileges, and for a test that has none.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::config::{LAUNCHER_ARGUMENT, LauncherConfig};
use crate::sys::{program, socket};

/// A launcher's process and the agent's ends of its two sockets.
#[derive(Debug)]
pub struct StartedLauncher {
    pub spawn: OwnedFd,
    pub control: OwnedFd,
    /// To be waited for once `control` is at its end.
    pub child: Child,
}

/// Runs `program` (this binary itself, as a rule: `/proc/self/exe`) as a launcher.
///
/// It ends by itself when every copy of `control` is closed. It is the first thing on that socket to speak: wait for
/// its `Hello` before the first request.
pub fn start_launcher(program: &Path, config: &LauncherConfig) -> io::Result<StartedLauncher> {
    let (spawn, its_spawn) = socket::pair()?;
    let (control, its_control) = socket::pair()?;
    let json = serde_json::to_string(config)?;
    let mut command = Command::new(program);
    command
        .arg(LAUNCHER_ARGUMENT)
        .arg(its_spawn.as_raw_fd().to_string())
        .arg(its_control.as_raw_fd().to_string())
        .arg(json)
        .env_clear()
        // Not quite empty: an empty environment is how a process in the midst of `execve` looks (see `server::plain`).
        .env("LANG", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let kept = vec![its_spawn.as_raw_fd(), its_control.as_raw_fd()];
    program::prepare(&mut command, program::Preparation { keep: kept, ..program::Preparation::default() });
    let child = command.spawn()?;
    Ok(StartedLauncher { spawn, control, child })
}
