//! `flux-autoscaler`: buys and returns machines; `flux-autoscaler simulate` tries its plan on other traffic.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use flux_autoscaler::{configured, run};
use flux_runtime::{Settings, Shutdown, config, telemetry};

mod simulate;

/// Buys machines when the queue needs them, and returns them when it does not.
#[derive(Debug, clap::Parser)]
#[command(name = "flux-autoscaler", version)]
struct Args {
    /// A configuration file [default: ./flux.yaml, else /etc/flux/flux.yaml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the plan on generated or recorded traffic, beside an oracle, fixed fleets and other rules
    Simulate(simulate::Args),
}

fn main() -> ExitCode {
    flux_runtime::install_tls_provider();
    match start(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Before logging was set up, or after it ended: one line for whoever started it.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("flux-autoscaler: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    let file = config::file(args.config.as_deref())?;
    let settings: Settings = config::load(file.as_deref(), serde_json::json!({}))?;
    if let Some(Command::Simulate(args)) = args.command {
        let policy = (!settings.autoscaler.providers.is_empty()).then(|| configured::policy(&settings.autoscaler));
        return simulate::run(&args, policy.transpose()?);
    }
    telemetry::init(settings.log.format, &settings.log.level).map_err(anyhow::Error::msg)?;
    let runtime = flux_runtime::async_runtime().context("no async runtime")?;
    let ended = runtime.block_on(run::run(settings, agent_program()?, Shutdown::new()));
    runtime.shutdown_background();
    ended
}

/// `flux-agent`, beside this program.
fn agent_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is, is not known")?;
    Ok(own.parent().unwrap_or_else(|| Path::new(".")).join("flux-agent"))
}
