//! A bare Debian machine becomes a working agent, over SSH, with nobody logging in.
//!
//! ```text
//!  host key ─► connect ─► setup 1 … n ─► install ─► identity ─► start ─► heartbeat
//!  pinned or    until it    each command   package,   CA, cert,   systemd,  the caller sees the
//!  first use    lets us in  of the config  or binary  key, config or a      agent in the queue
//! ```
//!
//! Each step can be done again: on a machine where it was done it changes nothing, or the same once more. So a step that
//! failed, hung, or lost its connection is tried again, on a new connection, a bounded number of times with a pause
//! between; and an autoscaler that was started again sets up from the beginning what it finds half set up.
//!
//! [`bootstrap`] says at its end what every step took, and where one failed, which, why, and what it printed. Who called
//! terminates the machine: nothing is repaired by hand.
//!
//! **Secrets.** What is run goes in by standard input and files by SFTP, so that a process list on the machine shows nothing of
//! it. What was printed is kept with the agent's key and [`Recipe::secrets`] hidden. A machine is told nothing before its
//! host key was found to be the right one.
//!
//! **Architecture Invariant:** nothing here knows a queue, or which cloud a machine is of. It opens no listener, and holds
//! nothing between two calls but [`KnownHosts`].

mod attempt;
mod host_key;
mod identity;
mod output;
mod recipe;
mod script;
mod ssh;
mod steps;

use async_trait::async_trait;
use flux_protocol::AgentId;

pub use attempt::bootstrap;
pub use host_key::{HostKeys, KnownHosts};
pub use identity::AgentFiles;
pub use recipe::{Install, Recipe, Timing};
pub use steps::{BootstrapError, Finished, Reason, Step, StepReport};

/// Where a machine is.
#[derive(Debug, Clone)]
pub struct Machine {
    pub address: std::net::SocketAddr,
    pub host_keys: HostKeys,
}

/// Sees an agent come.
#[async_trait]
pub trait Heartbeats: Send + Sync {
    /// Comes back when a heartbeat of the agent was seen that is newer than this call. It need not end by itself.
    async fn first_of(&self, agent: &AgentId);
}
