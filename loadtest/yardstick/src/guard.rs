//! A program that cannot outlive who started it, however that ends: what knows nothing of closed inputs gets a parent
//! that does.

use std::{os::unix::process::ExitStatusExt as _, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{process::Command, signal::unix};

use crate::listen::end_of_input;

/// Between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    program: Vec<String>,
}

/// Runs the program in a process group of its own. When it ends by itself, that is how this ends; when told to stop,
/// the whole group is.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (program, arguments) = args.program.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
    let group = Pid::from_raw(i32::try_from(child.id().context("it has no id")?)?);
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    tokio::select! {
        ended = child.wait() => {
            let status = ended?;
            let _ = killpg(group, Signal::SIGKILL);
            if status.success() {
                return Ok(());
            }
            bail!("{program} ended by itself: {}", status.code().map_or_else(|| format!("signal {:?}", status.signal()), |code| format!("status {code}")));
        }
        () = end_of_input() => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    let _ = killpg(group, Signal::SIGTERM);
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
    // What it left behind in its group, or all of it.
    let _ = killpg(group, Signal::SIGKILL);
    if ended.is_err() {
        child.wait().await?;
    }
    Ok(())
}
