//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    backup, bench,
    commands::{
        agent, agents, audit, autoscaler, cancel, delete, deploy, dlq, functions, gc, init, invoke, keys, logs, pki,
        ps, rollback, secrets, top,
    },
    microvm, up,
};

#[derive(Debug, Parser)]
#[command(
    name = "flux",
    version,
    about = "A self-hosted serverless platform in one binary",
    after_help = "Start one here:   flux up\nFirst function:   flux init python hello && flux deploy hello && flux invoke hello\n\
                  Environment:      FLUX_URL, FLUX_KEY, FLUX_CA (see --url, --key, --ca), NO_COLOR",
    max_term_width = 110
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Print JSON instead of tables: one document per line where there are several
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The gateway [env FLUX_URL; default http://127.0.0.1:7227]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The API key [env FLUX_KEY; default: what `flux up` wrote for that address]
    #[arg(long, global = true, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// A PEM file with who signed the gateway's certificate [env FLUX_CA; default: what `flux up` wrote for that address]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run Flux on this machine: gateway, agent and queue, until Ctrl-C
    Up(up::Args),
    #[command(name = up::SERVE, hide = true)]
    Serve(up::ServeArgs),
    #[command(name = up::IDENTITIES, hide = true)]
    Identities(up::PkiArgs),
    /// Register and deploy a function from a directory or a zip
    Deploy(deploy::Args),
    /// Run a function and print what it returned
    Invoke(invoke::Args),
    /// Print an execution's output
    Logs(logs::Args),
    /// List executions, newest first
    Ps(ps::Args),
    /// Cancel executions, queued or running
    Cancel(cancel::Args),
    /// List functions, or show one with its versions
    Functions(functions::Args),
    /// Make an old version of a function current again
    Rollback(rollback::Args),
    /// Remove a function; its executions stay
    Delete(delete::Args),
    /// List agents
    Agents(agents::Args),
    /// Let machines in and look after them
    Agent(agent::Args),
    /// Nodes that are bought and returned, and why
    Autoscaler(autoscaler::Args),
    /// Give, list, renew and revoke identities
    Pki(pki::Args),
    /// Watch agents and functions
    Top(top::Args),
    /// Look after executions that were given up on
    Dlq(dlq::Args),
    /// Make, list, rotate and revoke API keys
    Keys(keys::Args),
    /// Set, list and remove what functions are given and nobody is shown
    Secrets(secrets::Args),
    /// Who changed what, from where, newest first
    Audit(audit::Args),
    /// Remove code archives that no version names; gateways do so once a day
    Gc(gc::Args),
    /// Write everything that a Flux knows into one file: functions with their code, executions, keys, secrets
    Backup(backup::Args),
    /// Bring a Flux back from what `flux backup` wrote, into whatever store it has now; no gateway may run
    Restore(backup::RestoreArgs),
    /// Write a small working function
    Init(init::Args),
    /// Prepare this machine's agent for functions in microVMs
    Microvm(microvm::Args),
    /// Measure Flux beside its yardsticks, on this machine
    Bench(bench::Args),
    /// Say which release this is
    Version,
}
