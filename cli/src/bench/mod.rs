//! `flux bench`: Flux beside the floors that it stands on, in one run on one machine.
//!
//! A figure by itself says little on a machine that others use too, so each stands beside its yardstick from the same
//! run, and the two are measured in turn, round after round. What counts is the ratio of the medians.
//!
//! Each round starts a Flux of its own on a temporary directory, and the yardsticks ([`mod@yardstick`]) against the same
//! `nats-server`; both end with it.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::{commands::Context, error::CliError};

mod apart;
mod chart;
mod costs;
mod figures;
mod guarded;
mod live;
mod machine;
mod peers;
mod report;
mod round;
mod subject;
mod yardstick;

use figures::Figures;
use live::TICKS;
use peers::Peers;
use report::Report;
use round::{Bench, Measured};
use subject::{FRESH, LAMBDA, WARM};
use yardstick::Yardsticks;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter rounds: three minutes, for a rough idea
    #[arg(long)]
    quick: bool,
    /// Measure these parts alone
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// What the queue survives [default: both; process for --quick]
    #[arg(long, value_enum)]
    durability: Option<Durabilities>,
    /// Also measure what people use instead: busybox httpd, functions-framework, Celery and BullMQ
    #[arg(long)]
    peers: bool,
    /// Rounds, instead of the usual number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Also write the report there, as Markdown, with its chart beside it as SVG
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The function: a static program that copies its input to its output
    #[arg(long, value_name = "DIR", default_value = "loadtest/functions/echo")]
    function: PathBuf,
}

/// What can be measured by itself, with its yardsticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Sync calls, one at a time and 16 at a time (P3, P4)
    Sync,
    /// Asynchronous invocations: accepted and executed (P6)
    Async,
    /// Publishes straight onto the queue (P7)
    Direct,
    /// A Python handler in a warm worker: sync calls and direct publishes (P1, P2, P7)
    Warm,
    /// The same handler in a process forked for each call (`fresh: true`), beside a bare interpreter
    Fresh,
    /// The same handler as a Lambda package, beside the warm worker
    Lambda,
    /// Accepted to started, on an idle system (P8)
    Dispatch,
    /// Live output (P9)
    Output,
    /// Resident memory, idle and after the load (P11)
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Durabilities {
    Process,
    Fsync,
    Both,
}

/// What an accepted invocation survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// The death of every process: written to the kernel before the ack.
    Process,
    /// Power loss as well: synced to the disk before the ack.
    Fsync,
}

impl Durability {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Process => &["--queue-durability", "process"],
            Self::Fsync => &["--queue-durability", "fsync"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Fsync => "fsync",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Process => {
                "JetStream on disk, synced by the server's interval, and SQLite without a sync of each commit: survives \
                 `kill -9` of any process, not power loss of the last moments"
            }
            Self::Fsync => "JetStream and SQLite sync to the disk before they answer: survives power loss",
        }
    }
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: u32,
    /// Of each load.
    seconds: f64,
    warm_up: f64,
    /// Asynchronous invocations in a round.
    invocations: usize,
    /// Asynchronous invocations one at a time, for the dispatch latency.
    singles: usize,
    /// Messages through the bare queue.
    piped: usize,
}

const QUICK: Effort = Effort { rounds: 3, seconds: 0.8, warm_up: 0.2, invocations: 1_000, singles: 30, piped: 5_000 };
const FULL: Effort = Effort { rounds: 5, seconds: 2.0, warm_up: 0.5, invocations: 3_000, singles: 100, piped: 20_000 };

/// Measures until done or told to stop; what was started for it ends in either case.
pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| CliError::local("signals cannot be listened for", source))?;
    let interrupted = || CliError::Interrupted { remedy: "nothing was written".to_owned() };
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
        done = measure(args, cx) => done,
    }
}

async fn measure(args: Args, cx: &Context) -> Result<(), CliError> {
    let mut effort = if args.quick { QUICK } else { FULL };
    effort.rounds = args.rounds.unwrap_or(effort.rounds);
    let default = if args.quick { Durabilities::Process } else { Durabilities::Both };
    let durabilities: &[Durability] = match args.durability.unwrap_or(default) {
        Durabilities::Process => &[Durability::Process],
        Durabilities::Fsync => &[Durability::Fsync],
        Durabilities::Both => &[Durability::Process, Durability::Fsync],
    };
    let yardsticks = Yardsticks::find()?;
    let mut bench = Bench {
        effort,
        parts: if args.only.is_empty() { <Part as clap::ValueEnum>::value_variants().to_vec() } else { args.only },
        echo: yardsticks.echo()?,
        yardsticks,
        program: subject::program(&args.function)?,
        functions: vec![
            args.function.clone(),
            round::beside(&args.function, TICKS),
            round::beside(&args.function, WARM),
            round::beside(&args.function, FRESH),
        ],
    };
    // `make bench` puts AWS's client into it.
    let lambda = round::beside(&args.function, LAMBDA);
    if lambda.join("awslambdaric").is_dir() {
        bench.functions.push(lambda);
    } else {
        bench.parts.retain(|part| *part != Part::Lambda);
        cx.out.note("no Lambda package is measured: `make setup-bench echo-function` makes one");
    }

    let peers = if args.peers { Some(Peers::find()?) } else { None };

    let before = machine::Before::look();
    let mut once = Figures::default();
    if bench.wants(Part::Memory) {
        apart::memory(&bench, &mut once).await?;
    }
    let mut measured: Vec<(Durability, Measured)> =
        durabilities.iter().map(|durability| (*durability, Measured::default())).collect();
    for round in 1..=effort.rounds {
        if !cx.out.json {
            cx.out.note(format!("round {round} of {}", effort.rounds));
        }
        let mut beside = bench.floors()?;
        if let Some(peers) = &peers {
            peers.measure(&bench, &mut beside).await?;
        }
        for (durability, measured) in &mut measured {
            measured.figures.extend(&beside);
            bench.flux(measured, *durability).await?;
        }
        // Neither is always the first after the floors.
        measured.rotate_left(1);
    }
    measured.sort_by_key(|(durability, _)| *durability != Durability::Process);
    for (_, measured) in &mut measured {
        measured.figures.extend(&once);
    }
    let machine = machine::Machine::look(before);

    let report = Report::of(&measured, &machine, effort.rounds);
    if cx.out.json {
        cx.out.json(&report.json());
    } else {
        cx.out.line(report.text());
    }
    if let Some(path) = args.out {
        let chart = path.with_extension("svg");
        let name = chart.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (path, text) in [(&path, report.markdown(&name)), (&chart, chart::svg(&report.bars()))] {
            std::fs::write(path, text)
                .map_err(|source| CliError::local(format!("{} cannot be written", path.display()), source))?;
            cx.out.note(format!("written to {}", path.display()));
        }
    }
    Ok(())
}
