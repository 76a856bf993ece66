//! `flux-chaos run` does it and judges it; `flux-chaos check` judges a history that was written before.

#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum as _};
use flux_chaos::{
    checker, history,
    run::{Options, Shape, run},
};
use flux_testkit::Seed;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "flux-chaos", about = "Faults under load, and what held")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Strike a Flux of its own under load, then judge what happened.
    Run {
        #[arg(long, value_enum, default_value_t = Shape::Embedded)]
        topology: Shape,
        /// Repeats a plan; a new one is drawn and printed unless it is given
        #[arg(long)]
        seed: Option<u64>,
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        /// Where everything that happens is written
        #[arg(long, default_value = "history.jsonl")]
        history: PathBuf,
        /// The page that gets the counts
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Judge a history.
    Check { history: PathBuf },
}

/// What was started for the run ends with it, also where it is told to stop.
async fn until_stopped<T>(run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
        done = run => return done,
    }
    anyhow::bail!("told to stop: nothing was judged, and the history ends here")
}

fn main() -> anyhow::Result<ExitCode> {
    let report = match Cli::parse().command {
        Command::Check { history } => checker::check(&history::read(&history)?),
        Command::Run { topology, seed, minutes, history, report: page } => {
            let seed = seed.unwrap_or_else(|| Seed::of_this_run().next_u64());
            println!("seed {seed}: `--seed {seed}` repeats the plan; the history goes to {}", history.display());
            let options = Options {
                shape: topology,
                seed,
                clients: 10,
                at_least: Duration::from_secs(minutes * 60),
                executions: 0,
                kills: 0,
                thorough: true,
                history,
            };
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let report = runtime.block_on(until_stopped(run(&options)))?;
            if let Some(page) = page {
                let name = topology.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
                let command = format!("make chaos TOPOLOGY={name} SEED={seed} MINUTES={minutes}");
                // A page that is not there begins with this run.
                let text = match std::fs::read_to_string(&page) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                    read => read?,
                };
                std::fs::write(&page, flux_chaos::report::into_page(&text, &name, &command, &report))?;
            }
            report
        }
    };
    println!("{report}");
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
