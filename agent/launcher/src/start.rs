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

/// A driver's process and the agent's end of its socket.
#[derive(Debug)]
pub struct StartedDriver {
    pub socket: OwnedFd,
    /// To be waited for once `socket` is at its end.
    pub child: Child,
}

/// Runs `program` as a driver: `<argument> <descriptor> <config>`, with an empty environment and nothing else open.
pub fn start_driver(program: &Path, argument: &str, config: &str) -> io::Result<StartedDriver> {
    let (socket, its_socket) = socket::pair()?;
    let mut command = Command::new(program);
    command.arg(argument).arg(its_socket.as_raw_fd().to_string()).arg(config);
    command.env_clear().env("LANG", "C").stdin(Stdio::null()).stdout(Stdio::null());
    let keep = vec![its_socket.as_raw_fd()];
    program::prepare(&mut command, program::Preparation { keep, ..program::Preparation::default() });
    Ok(StartedDriver { socket, child: command.spawn()? })
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
