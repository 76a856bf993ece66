//! The agent: pulls invocations within its own budget, has the launcher run them, and says how they ended.
//!
//! ```text
//!   hot queues, functions          deliveries                     processes
//!        │                             │                              │
//!        ▼          grants             ▼            spawn             ▼
//!    [puller] ───────────────► broker ───► [execution] ──► [executor: launcher]
//!        ▲   [plan], pure                   │      │
//!        └────────── a room is free ◄───────┘      ├─► reply, status, live output
//!                                                  └─► [ledger]: in progress, ack
//! ```
//!
//! One task owns the planner (`puller`), one the ack handles (`ledger`); each execution is a task of its own.
//! `held` is the table of what is under way, which cancels, control requests and heartbeats look at.
//!
//! **Architecture Invariants.** The agent opens no store, and no listening socket but the probe port, where it is told to; everything reaches it over the broker.
//! It never forks: processes are started by the launcher. Workers wait in `warm`, and a warm invocation asks the launcher nothing. It never holds an invocation that it cannot start at once. It
//! never retries a function's failure: the gateway that records it does.

mod agent;
mod budget;
mod code;
mod control;
mod doubt;
mod execution;
mod executor;
mod functions;
mod heartbeat;
mod held;
mod hot;
mod identity;
mod lambda;
pub mod launch;
mod ledger;
mod machine;
mod node;
mod plan;
mod probe;
mod puller;
mod renewal;
mod retry;
mod room;
mod run;
mod runtimes;
mod sandbox;
mod stamps;
mod warm;
mod window;

pub use agent::{Agent, AgentParts, StartError};
pub use code::{Code, CodeError, CodeFolder};
pub use executor::{Executor, LauncherExecutor, Process};
pub use run::{agent_id, container_driver, guard_servers, microvm_driver, run, start_beside_gateway};
pub use runtimes::Runtimes;
pub use sandbox::{ContainerSource, Containers, MicrovmSource, Microvms, Offer, Sandbox, Start, Tier, Tiers};

/// An error and its causes in one line, for what is recorded or reported; logs have the chain itself.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
