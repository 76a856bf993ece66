//! `flux-scale run` measures; `flux-scale agents` is what it starts as its simulated agents. `flux-scale out` lets nodes come and go.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use flux_scale::{Figures, Size, scale_out, scale_out::ScaleOut, simulated};

#[derive(Parser)]
#[command(name = "flux-scale", about = "Flux with many functions, many agents and much queued")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the small case and the large one, and write what was found
    Run(Run),
    /// Measure only what invocations cost, and print it
    Costs(Costs),
    /// Nodes that come with the load and go after it, and what becomes of what is accepted meanwhile
    Out(Out),
    /// Simulated agents, until killed
    Agents(simulated::Args),
}

#[derive(clap::Args)]
struct Run {
    /// Where scale.md and scale.svg are written
    #[arg(long, default_value = "docs")]
    out: PathBuf,
    /// The memory of every second, as CSV
    #[arg(long, default_value = "target/scale.csv")]
    csv: PathBuf,
    /// A tenth of everything
    #[arg(long)]
    tenth: bool,
    /// Queued invocations, where another number than a million is wanted
    #[arg(long)]
    invocations: Option<usize>,
}

#[derive(clap::Args)]
struct Costs {
    #[arg(long, default_value_t = 100)]
    agents: usize,
    /// Functions that get work in turn, after ten of them did
    #[arg(long, default_value_t = 500)]
    hot: usize,
    #[arg(long, default_value_t = 1_000)]
    calls: usize,
}

#[derive(clap::Args)]
struct Out {
    /// Where scale-out.md is written; printed alone unless it is set
    #[arg(long)]
    out: Option<PathBuf>,
    /// The most nodes
    #[arg(long, default_value_t = ScaleOut::full().nodes)]
    nodes: u32,
    /// Executions that end while all nodes are there
    #[arg(long, default_value_t = ScaleOut::full().held)]
    held: u64,
}

fn main() -> anyhow::Result<()> {
    flux_runtime::install_tls_provider();
    let runtime = tokio::runtime::Runtime::new().context("no runtime")?;
    match Cli::parse().command {
        Command::Run(args) => runtime.block_on(run(&args)),
        Command::Costs(args) => runtime.block_on(costs(&args)),
        Command::Out(args) => runtime.block_on(out(&args)),
        Command::Agents(args) => runtime.block_on(simulated::run(args)),
    }
}

async fn run(args: &Run) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let mut size = if args.tenth { Size::tenth() } else { Size::full() };
    if let Some(invocations) = args.invocations {
        size.invocations = invocations;
        size.over_http = size.over_http.min(invocations);
    }
    let small = Size { calls: size.calls, publishes: size.publishes, cold: size.cold, ..Size::small() };
    let figures =
        Figures { small: flux_scale::small(small, &program).await, large: flux_scale::large(size, &program).await };
    flux_scale::write_report(&figures, &args.out, &args.csv)
}

#[allow(clippy::print_stdout, reason = "what this command is for")]
async fn costs(args: &Costs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let size = Size {
        agents: args.agents,
        hot: args.hot,
        calls: args.calls,
        publishes: args.calls * 5,
        cold: 20,
        ..Size::full()
    };
    print!("{}", flux_scale::tell(&flux_scale::costs(size, &program).await)?);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what this command is for")]
async fn out(args: &Out) -> anyhow::Result<()> {
    let size = ScaleOut { nodes: args.nodes, held: args.held, ..ScaleOut::full() };
    let scaled = scale_out::scale_out(size).await;
    print!("{}", scale_out::tell(&scaled)?);
    if let Some(dir) = &args.out {
        scale_out::write(&scaled, dir)?;
    }
    let kept = scaled.lost.is_empty() && scaled.second_outcomes() == 0 && scaled.let_in.is_empty();
    anyhow::ensure!(
        kept,
        "something was lost, ended twice or is still let in: {:#?} {:#?}",
        scaled.lost,
        scaled.changed
    );
    Ok(())
}
