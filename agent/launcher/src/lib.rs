//! The privileged half of the agent: it builds sandboxes and starts processes in them, and does nothing else.
//!
//! Why a process of its own. The agent speaks to a network and parses what strangers send, so it must not be root;
//! building namespaces and changing uid needs root. And starting a process from a big, many-threaded program is slow
//! (`fork` copies its page tables), from a small one it is not. So: few dependencies, no async runtime, no network.
//!
//! ```text
//!  tree (root, one thread)                 starts the others, restarts them, ends them in order
//!   ├── agent (unprivileged) ──┐ spawn socket (requests with three descriptors, replies)
//!   ├── nats-server            │ control socket (kill, ping; its end of file means "kill everything")
//!   └── launcher (root) ◄──────┘
//!        ├── slot holder: PID 1 of a slot's namespaces
//!        └── function, a vfork child of the launcher that joined the slot's namespaces
//! ```
//!
//! [`wire`] is the protocol between agent and launcher, [`config`] what the launcher is told at its start,
//! [`capabilities`] what it found that it can give, [`launcher_main`] the launcher, [`tree`] the root of the processes.
//!
//! **Architecture invariants.** A request is served by one thread from its packet to its last reply; no thread that
//! starts a process ever ends before the launcher does (the parent-death signal is per thread). Only files below
//! `sys/` hold `unsafe` code. Between `clone` and `execve` nothing is allocated and nothing but system calls is made.

pub mod capabilities;
mod cgroup;
pub mod config;
mod guard;
mod seccomp;
mod server;
mod slot;
mod start;
mod sys;
pub mod tree;
mod uids;
pub mod wire;

pub use capabilities::{Capabilities, CgroupSupport, Missing};
pub use config::{LAUNCHER_ARGUMENT, LauncherConfig, Layer, Runner};
pub use guard::{Held, NetworkGuard, NotGuarded};
pub use server::{launcher_main, run_if_launcher};
pub use start::{StartedDriver, StartedLauncher, start_driver, start_launcher};
pub use sys::socket;
pub use uids::UidRange;
