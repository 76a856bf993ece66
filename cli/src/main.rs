//! The `flux` command: a client of the public HTTP API, and `flux up`, which composes a gateway, an agent and a
//! `nats-server` into one process tree.
//!
//! **Architecture Invariant:** outside [`up`], [`backup`] and [`mod@bench`] nothing here knows brokers, stores or agents: a command
//! sees what any HTTP client sees.

use std::process::ExitCode;

use clap::Parser as _;

mod args;
mod backup;
mod bench;
mod client;
mod commands;
mod error;
mod keys;
mod microvm;
mod model;
mod output;
mod packages;
mod payload;
mod progress;
mod project;
mod table;
mod up;

use args::{Cli, Command};
use client::Client;
use commands::Context;
use error::CliError;
use output::Output;

fn main() -> ExitCode {
    // Before any thread, runtime or TLS provider: a launcher is small and single-threaded when it starts.
    flux_launcher::run_if_launcher();
    flux_containers::run_if_driver();
    flux_firecracker::run_if_driver();
    flux_runtime::install_tls_provider();
    let cli = Cli::parse();
    let out = Output::new(cli.json);
    match run(cli, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli, out: Output) -> Result<(), CliError> {
    let global = cli.global;
    match cli.command {
        Command::Up(args) => up::run(&args, out),
        Command::Serve(args) => up::serve(&args, out),
        Command::Identities(args) => up::make_identities(&args),
        Command::Pki(args) => commands::pki::run(args, out),
        Command::Init(args) => commands::init::run(&args, out),
        Command::Microvm(args) => microvm::run(args, out),
        Command::Backup(args) => backup::run(&args, out),
        Command::Restore(args) => backup::restore(&args, out),
        Command::Version => {
            commands::version::run(out);
            Ok(())
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| CliError::local("the async runtime cannot be started", source))?;
            let client = Client::try_new(global.url.as_deref(), global.key.as_deref(), global.ca)?;
            runtime.block_on(commands::run(command, &Context { client, out }))
        }
    }
}
