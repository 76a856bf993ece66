//! `flux bench`: Flux beside the floors that it stands on, in one run on one machine.
//!
//! A figure by itself says little on a machine that others use too, so each stands beside its yardstick from the same
//! run, and the two are measured in turn, round after round. What counts is the ratio of the medians.
//!
//! It starts a Flux of its own on a temporary directory, and the yardsticks (`yardstick`) against the same
//! `nats-server`; both end with it.

use std::{path::PathBuf, time::Duration};

use crate::{commands::Context, error::CliError};

mod figures;
mod report;
mod subject;
mod yardstick;

use figures::Figures;
use subject::Subject;
use yardstick::{Load, Yardsticks};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter rounds: two minutes, for a rough idea
    #[arg(long)]
    quick: bool,
    /// Also write the report there, as Markdown
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The function: a static program that copies its input to its output
    #[arg(long, value_name = "DIR", default_value = "loadtest/functions/echo")]
    function: PathBuf,
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// Of each load.
    seconds: f64,
    warm_up: f64,
    /// Asynchronous invocations in a round.
    invocations: usize,
    /// Asynchronous invocations one at a time, for the dispatch latency.
    singles: usize,
}

const QUICK: Effort = Effort { rounds: 3, seconds: 0.8, warm_up: 0.2, invocations: 1_000, singles: 30 };
const FULL: Effort = Effort { rounds: 5, seconds: 2.0, warm_up: 0.5, invocations: 3_000, singles: 100 };
/// Concurrent connections of the throughput figures.
const MANY: usize = 16;
/// Threads of the spawn loop that throughput is compared with.
const SPAWNERS: usize = 2;
/// A machine that does other things is noticed, and said.
const SETTLE: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let effort = if args.quick { QUICK } else { FULL };
    let yardsticks = Yardsticks::find()?;
    let program = subject::program(&args.function)?;
    let before = report::Before::look();
    let subject = Subject::start(&args.function).await?;
    let servers = yardsticks.start(subject.queue_url())?;
    let mut figures = Figures::default();
    for round in 1..=effort.rounds {
        if !cx.out.json {
            cx.out.note(format!("round {round} of {}", effort.rounds));
        }
        measure(&mut figures, &yardsticks, &servers, &subject, &program, effort).await?;
        tokio::time::sleep(SETTLE).await;
    }
    let machine = report::Machine::look(&subject, before);
    drop(servers);
    subject.stop().await?;

    let results = figures.results();
    if cx.out.json {
        cx.out.json(&report::json(&results, &machine, effort.rounds));
    } else {
        cx.out.line(report::text(&results, &machine, effort.rounds));
    }
    if let Some(path) = args.out {
        std::fs::write(&path, report::markdown(&results, &machine, effort.rounds))
            .map_err(|source| CliError::local(format!("{} cannot be written", path.display()), source))?;
        cx.out.note(format!("written to {}", path.display()));
    }
    Ok(())
}

/// One round: each floor, then what stands on it.
async fn measure(
    figures: &mut Figures,
    yardsticks: &Yardsticks,
    servers: &yardstick::Servers,
    subject: &Subject,
    program: &std::path::Path,
    effort: Effort,
) -> Result<(), CliError> {
    let load = |url: &str, concurrency: usize| Load::new(url, concurrency, effort.seconds, effort.warm_up);
    let (echo, route) = (servers.echo_url(), servers.route_url());

    let one = yardsticks.load(&load(echo, 1).body(yardstick::BODY))?;
    figures.add("echo_p50_us", one.p50_us);
    let many = yardsticks.load(&load(echo, MANY).body(yardstick::BODY))?;
    figures.add("echo_per_s", many.per_s);

    let one = yardsticks.load(&load(route, 1).body(yardstick::BODY))?;
    figures.add("route_p50_us", one.p50_us);
    let many = yardsticks.load(&load(route, MANY).body(yardstick::BODY))?;
    figures.add("route_per_s", many.per_s);

    let spawn = yardsticks.spawn_loop(program, 1, false, effort.seconds)?;
    figures.add("spawn_p50_us", spawn.p50_us);
    let spawn = yardsticks.spawn_loop(program, SPAWNERS, true, effort.seconds)?;
    figures.add("spawn_per_s", spawn.per_s);

    let pipe = yardsticks.nats_pipe(subject.queue_url())?;
    figures.add("delivered_p50_us", pipe.delivered_p50_us);

    let (url, headers, body) = (subject.execute_url(), subject.headers(), subject.body());
    let one = yardsticks.load(&load(&url, 1).headers(&headers).body(&body))?;
    figures.add("sync_p50_us", one.p50_us);
    figures.add("sync_p99_us", one.p99_us);
    let many = yardsticks.load(&load(&url, MANY).headers(&headers).body(&body))?;
    figures.add("sync_per_s", many.per_s);
    figures.add("sync_many_p99_us", many.p99_us);

    let dispatched = subject.dispatch(effort.singles).await?;
    figures.add("dispatch_p50_us", dispatched.p50_us);
    figures.add("dispatch_p95_us", dispatched.p95_us);

    // Of a function that no agent has room for: what accepting costs, without what running costs.
    let url = subject.async_url(subject::WAITS);
    let accepted = yardsticks.load(&load(&url, MANY).headers(&headers).body(&body))?;
    figures.add("accepted_per_s", accepted.per_s);

    let begun = tokio::time::Instant::now();
    let url = subject.async_url(subject::ECHO);
    yardsticks.load(&Load::counted(&url, MANY, effort.invocations).headers(&headers).body(&body))?;
    subject.until_idle().await?;
    #[allow(clippy::cast_precision_loss)] // some thousands
    figures.add("executed_per_s", effort.invocations as f64 / begun.elapsed().as_secs_f64());
    Ok(())
}
