//! What the tree is told to run, and what it tells.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{LauncherConfig, Runner};

/// A process of the platform.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    /// For the log.
    pub name: String,
    /// Looked up on `PATH` when it has no `/`; `/proc/self/exe` is this program again.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: ChildEnv,
    /// Uid and gid to change to, without supplementary groups; ignored when the tree is not root.
    pub user: Option<Runner>,
    pub restart: RestartPolicy,
    /// Lowest first; the next order is signalled once all of this one have ended.
    pub stop_order: u32,
    /// How long it may take to end after `SIGTERM`; then it is killed.
    pub stop_timeout: Duration,
    pub stdout: Output,
    pub stderr: Output,
    /// It may ask for launchers, which run with the tree's rights and these settings: they are the tree's to choose,
    /// since whoever chooses the functions' user is as good as root. The link's number is in `FLUX_TREE_FD`.
    pub launcher: Option<LauncherConfig>,
    /// With it, what else it may ask for.
    pub drivers: Vec<DriverSpec>,
}

/// A helper with the tree's rights for one thing that the child must not do itself, such as to speak to Docker: this program
/// again, as `<argument> <descriptor> <config>`. It ends when the socket's other end is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverSpec {
    /// What the child asks for.
    pub name: String,
    /// The hidden first argument that turns the program into the driver.
    pub argument: String,
    /// Its settings, which are the tree's to choose.
    pub config: String,
}

impl ChildSpec {
    /// A restarted child with this process's environment, stopped first, with 10 s to do so.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        ChildSpec {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: ChildEnv::Inherit(Vec::new()),
            user: None,
            restart: RestartPolicy::Backoff,
            stop_order: 0,
            stop_timeout: Duration::from_secs(10),
            stdout: Output::Inherit,
            stderr: Output::Inherit,
            launcher: None,
            drivers: Vec::new(),
        }
    }
}

/// A child's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildEnv {
    /// The tree's own, with these set or replaced.
    Inherit(Vec<(OsString, OsString)>),
    /// These and nothing else.
    Only(Vec<(OsString, OsString)>),
}

/// Where a child's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Where the tree's goes.
    Inherit,
    /// Appended to a file, which is made with the tree's rights.
    File(PathBuf),
    Null,
}

/// What happens when a child ends although nobody asked it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Start it again after 50 ms, doubling to 2 s while it keeps dying; 10 s of running starts over at 50 ms.
    Backoff,
    /// The tree ends with it.
    Never,
}

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(2);
const UP_LONG_ENOUGH: Duration = Duration::from_secs(10);

/// How long to wait before the next start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Backoff { next: FIRST_DELAY }
    }

    /// The delay after an end that came when the child had been up for `up`.
    pub(super) fn after(&mut self, up: Duration) -> Duration {
        if up >= UP_LONG_ENOUGH {
            self.next = FIRST_DELAY;
        }
        let delay = self.next;
        self.next = (self.next * 2).min(LAST_DELAY);
        delay
    }
}

/// Something worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeEvent {
    Started {
        name: String,
        pid: u32,
    },
    /// It ended, or could not be started (`how`), and is started again after `delay`.
    Restarting {
        name: String,
        how: String,
        delay: Duration,
    },
    Ended {
        name: String,
        how: String,
    },
    /// `name` was given `what`: a launcher, or a driver.
    Launcher {
        name: String,
        what: String,
        pid: u32,
    },
    NoLauncher {
        name: String,
        message: String,
    },
    Stopping {
        signal: &'static str,
    },
    /// It did not end in time and was killed.
    TooSlow {
        name: String,
        after: Duration,
    },
    /// A second signal came.
    KillingAll,
}

impl fmt::Display for TreeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreeEvent::Started { name, pid } => write!(f, "{name} started, pid {pid}"),
            TreeEvent::Restarting { name, how, delay } => {
                write!(f, "{name} {how}; starting it again in {} ms", delay.as_millis())
            }
            TreeEvent::Ended { name, how } => write!(f, "{name} {how}"),
            TreeEvent::Launcher { name, what, pid } => write!(f, "{name} has {what}, pid {pid}"),
            TreeEvent::NoLauncher { name, message } => write!(f, "{name} asked for a launcher or a driver: {message}"),
            TreeEvent::Stopping { signal } => write!(f, "{signal}: stopping; once more to kill at once"),
            TreeEvent::TooSlow { name, after } => {
                write!(f, "{name} did not end within {} s of SIGTERM and is killed", after.as_secs_f64())
            }
            TreeEvent::KillingAll => write!(f, "second signal: killing everything"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_two_seconds_and_start_over_after_a_good_run() {
        let mut backoff = Backoff::new();
        let short = Duration::from_secs(1);
        let delays: Vec<_> = (0..8).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff.after(UP_LONG_ENOUGH), FIRST_DELAY);
        assert_eq!(backoff.after(short), FIRST_DELAY * 2);
    }
}
