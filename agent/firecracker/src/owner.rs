//! Who runs in a guest's folder, so that a driver that starts can end what its predecessor left.
//!
//! A number of a process comes again after a while; with its start time it does not.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    jail::{self, OWNER},
    settings::Settings,
};

/// How long a killed Firecracker may take to go.
const GOES_WITHIN: Duration = Duration::from_secs(5);

/// Ticks since the machine's start at which the process started; `None` where it has ended.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Writes down that `pid` runs in the folder.
pub(crate) fn note(path: &Path, pid: u32) -> io::Result<()> {
    let started = started(pid).ok_or_else(|| io::Error::other("it ended at once"))?;
    fs::write(path, format!("{pid} {started}"))
}

fn read(path: &Path) -> Option<(u32, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, started) = text.split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// Ends every guest of drivers before this one, and removes their folders. The number of guests that were.
///
/// # Errors
/// The folder of the guests cannot be read.
pub(crate) fn end_leftovers(settings: &Settings) -> io::Result<u32> {
    let guests = jail::guests(settings);
    fs::create_dir_all(&guests)?;
    let mut count = 0;
    for entry in fs::read_dir(&guests)? {
        let base = entry?.path();
        if let Some((pid, since)) = read(&base.join(OWNER)) {
            end(pid, since);
        }
        count += 1;
        remove(&base, settings);
    }
    Ok(count)
}

fn remove(base: &PathBuf, settings: &Settings) {
    if let Err(error) = fs::remove_dir_all(base) {
        tracing::warn!(path = %base.display(), %error, "a guest's folder is left");
    }
    let cgroups = settings.jailer.as_ref().and_then(|jailer| jailer.cgroups.as_ref());
    if let (Some(cgroups), Some(id)) = (cgroups, base.file_name().and_then(|name| name.to_str())) {
        jail::remove_cgroups(cgroups, id);
    }
}

/// Kills the process, if it is still that one, and waits until it is gone: its folder is removed next.
fn end(pid: u32, since: u64) {
    let deadline = Instant::now() + GOES_WITHIN;
    while started(pid) == Some(since) {
        if Instant::now() > deadline {
            tracing::warn!(pid, "a predecessor's guest does not end");
            return;
        }
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        std::thread::sleep(Duration::from_millis(2));
    }
}
