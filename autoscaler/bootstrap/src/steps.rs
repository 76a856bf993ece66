//! What is done, and what became of it.

use std::{fmt, time::Duration};

use flux_provider::Fingerprint;

/// In the order in which they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The machine's host key is learnt from its console.
    HostKey,
    /// SSH lets us in, and we can be root.
    Connect,
    /// One of `agent_setup_commands`.
    Setup {
        number: usize,
        of: usize,
    },
    Install,
    /// CA, certificate, key and configuration.
    Identity,
    Start,
    Heartbeat,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostKey => f.write_str("learning the host key"),
            Self::Connect => f.write_str("connecting"),
            Self::Setup { number, of } => write!(f, "setup command {number} of {of}"),
            Self::Install => f.write_str("installing the agent"),
            Self::Identity => f.write_str("giving the agent its identity"),
            Self::Start => f.write_str("starting the agent"),
            Self::Heartbeat => f.write_str("waiting for the first heartbeat"),
        }
    }
}

/// Why a step did not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the console showed no host key within {} s", within.as_secs())]
    NoHostKey { within: Duration },
    #[error("the provider cannot show the console: {why}")]
    NoConsole { why: String },
    /// Somebody else answers at the machine's address, or it was made anew.
    #[error("the host key is {seen}, not {}", list(expected))]
    WrongHostKey { seen: Fingerprint, expected: Vec<Fingerprint> },
    #[error("nothing lets us in by SSH: {why}")]
    Unreachable { why: String },
    #[error("SSH refuses the key for the user `{user}`")]
    Refused { user: String },
    #[error("the user `{user}` is not root, and has no sudo without a password")]
    NotRoot { user: String },
    #[error("the connection was cut: {why}")]
    Cut { why: String },
    #[error("it ended with status {status}")]
    Exit { status: u32 },
    #[error("it was ended by the signal {signal}")]
    Signal { signal: String },
    #[error("it did not end within {} s", after.as_secs())]
    TimedOut { after: Duration },
    #[error("a file could not be brought over: {why}")]
    Transfer { why: String },
    /// Not the machine's fault.
    #[error("on the autoscaler's side: {why}")]
    Ours { why: String },
}

fn list(expected: &[Fingerprint]) -> String {
    expected.iter().map(Fingerprint::as_str).collect::<Vec<_>>().join(" or ")
}

impl Reason {
    /// Whether the same step can do better at another try.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Cut { .. }
            | Self::Exit { .. }
            | Self::Signal { .. }
            | Self::TimedOut { .. }
            | Self::Transfer { .. }
            // A cloud's first boot lets SSH in before it has written who may come.
            | Self::Refused { .. } => true,
            Self::NoHostKey { .. }
            | Self::NoConsole { .. }
            | Self::WrongHostKey { .. }
            | Self::NotRoot { .. }
            | Self::Ours { .. } => false,
        }
    }
}

/// A step that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepReport {
    pub step: Step,
    pub tries: u32,
    pub took: Duration,
}

/// A machine that is an agent now.
#[derive(Debug, Clone)]
pub struct Finished {
    pub host_key: Fingerprint,
    pub steps: Vec<StepReport>,
}

/// A machine that did not become an agent.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{step} failed at try {tries}: {reason}")]
pub struct BootstrapError {
    pub step: Step,
    pub tries: u32,
    pub reason: Reason,
    /// The end of what the step printed at its last try, secrets hidden; at most [`flux_protocol::limits::BOOTSTRAP_OUTPUT`].
    pub output: String,
    /// Those that were done before.
    pub done: Vec<StepReport>,
}
