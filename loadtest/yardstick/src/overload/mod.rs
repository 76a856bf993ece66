//! Overload: what a Flux does with several times the work that it can take, for a while.
//!
//! ```text
//!   capacity ── a closed loop as wide as the agent has slots ──► rate and latency at capacity
//!   overload ── an open loop at FACTOR × that rate ────────────► latency of what was accepted, and of refusals
//!   after    ── calls one after the other ─────────────────────► when they are as before
//! ```
//!
//! That for synchronous calls and for accepting asynchronous ones; then synchronous calls beside a flood of asynchronous
//! ones; then with thousands of idle readers of an event stream. `make overload` starts the Flux and calls this.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use figures::{Outcome, recovered_after};
use generator::{Target, closed_loop, open_loop};
use memory::Watch;

mod figures;
mod generator;
mod memory;
mod readers;
mod report;

/// Idle calls after the load, this many a second.
const PROBES_PER_S: f64 = 50.0;
const PROBED_FOR: Duration = Duration::from_secs(4);
/// A single call's bound is never less: one hiccup of a busy machine is not a Flux that has not recovered.
const LEAST_BOUND: Duration = Duration::from_millis(50);
/// What a synchronous caller beside an asynchronous flood asks for: this part of what there is.
const BESIDE: f64 = 0.25;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the Flux is: `http://host:port`.
    #[arg(long)]
    url: String,
    #[arg(long)]
    key: String,
    /// The process `flux up`: its memory, and that of what it started, is watched.
    #[arg(long)]
    pid: u32,
    /// A deployed function that refuses at once where there is no room, and one that waits for it.
    #[arg(long, default_value = "busy")]
    function: String,
    #[arg(long, default_value = "patient")]
    waiting: String,
    /// A deployed function that sleeps for long: its output is what readers wait for.
    #[arg(long, default_value = "nap")]
    nap: String,
    /// Callers at once that fill the agent: its slots.
    #[arg(long, default_value_t = 32)]
    width: usize,
    #[arg(long, default_value_t = 5.0)]
    factor: f64,
    /// How long capacity is measured, and how long the load lasts, in seconds.
    #[arg(long, default_value_t = 8.0)]
    measure: f64,
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    #[arg(long, default_value_t = 10_000)]
    readers: usize,
    /// Some of: sync, waiting, async, beside, readers.
    #[arg(long, value_delimiter = ',', default_value = "sync,waiting,async,beside,readers")]
    only: Vec<String>,
}

/// What one scenario showed.
struct Shown {
    name: &'static str,
    capacity_per_s: f64,
    at_capacity: figures::Latency,
    offered_per_s: f64,
    overload: Outcome,
    accepted_per_s: f64,
    recovered_after: Duration,
    memory: Vec<memory::Rss>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    raise_open_files();
    let length = Duration::from_secs_f64(args.seconds);
    println!("{}", report::machine());
    let sync = args.target(&format!("/execute/{}", args.function))?;
    let waiting = args.target(&format!("/execute/{}", args.waiting))?;
    let invokes = args.target(&format!("/execute/{}/async", args.function))?;
    for (name, label, target) in [
        ("sync", "synchronous calls", &sync),
        ("waiting", "synchronous calls that wait for room", &waiting),
        ("async", "asynchronous invocations", &invokes),
    ] {
        if args.wants(name) {
            println!("{}", report::scenario(&args.scenario(label, target, length).await?, length));
        }
    }
    if args.wants("beside") {
        println!("{}", report::beside(&args.beside(&sync, &invokes, length).await?));
    }
    if args.wants("readers") {
        println!("{}", report::readers(&readers::run(&args, &sync).await?));
    }
    Ok(())
}

impl Args {
    fn wants(&self, scenario: &str) -> bool {
        self.only.iter().any(|name| name == scenario)
    }

    fn address(&self) -> anyhow::Result<&str> {
        self.url.strip_prefix("http://").context("the URL has to begin with http://")
    }

    fn target(&self, path: &str) -> anyhow::Result<Target> {
        let address = self.address()?.to_owned();
        let body = r#"{"payload":{"text":"twenty bytes or more"}}"#;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        Ok(Target { address, request: Arc::from(request.into_bytes()) })
    }

    async fn capacity(&self, target: &Target) -> anyhow::Result<(f64, figures::Latency)> {
        let length = Duration::from_secs_f64(self.measure);
        closed_loop(target, self.width, length.mul_f64(0.2)).await;
        let outcome = Outcome::of(&closed_loop(target, self.width, length).await);
        ensure!(outcome.accepted.count > 0, "nothing was accepted: {:?}", outcome.statuses);
        Ok((outcome.accepted_per_s(length), outcome.accepted))
    }

    async fn scenario(&self, name: &'static str, target: &Target, length: Duration) -> anyhow::Result<Shown> {
        let (capacity_per_s, at_capacity) = self.capacity(target).await?;
        let offered_per_s = capacity_per_s * self.factor;
        let watch = Watch::start(self.pid);
        let overload = Outcome::of(&open_loop(target, offered_per_s, length).await);
        let memory = watch.so_far();
        let probes = open_loop(target, PROBES_PER_S, PROBED_FOR).await;
        if probes.all.is_empty() {
            bail!("nothing is answered after the load");
        }
        let bound = Duration::from_secs_f64(at_capacity.p99_ms / 1000.0).max(LEAST_BOUND);
        Ok(Shown {
            name,
            capacity_per_s,
            at_capacity,
            offered_per_s,
            accepted_per_s: overload.accepted_per_s(length),
            overload,
            recovered_after: recovered_after(&probes, bound),
            memory,
        })
    }

    /// A quarter of the synchronous capacity, alone and then beside a flood of asynchronous work.
    async fn beside(&self, sync: &Target, invokes: &Target, length: Duration) -> anyhow::Result<Beside> {
        let (sync_per_s, _) = self.capacity(sync).await?;
        let (accepts_per_s, _) = self.capacity(invokes).await?;
        let rate = sync_per_s * BESIDE;
        let alone = Outcome::of(&open_loop(sync, rate, length.mul_f64(0.25)).await);
        let (flood_per_s, watch) = (accepts_per_s * self.factor, Watch::start(self.pid));
        let (calls, flood) = tokio::join!(open_loop(sync, rate, length), open_loop(invokes, flood_per_s, length));
        let (calls, flood) = (Outcome::of(&calls), Outcome::of(&flood));
        Ok(Beside { rate, alone, calls, flood_per_s, flood, memory: watch.so_far() })
    }
}

struct Beside {
    rate: f64,
    alone: Outcome,
    calls: Outcome,
    flood_per_s: f64,
    flood: Outcome,
    memory: Vec<memory::Rss>,
}

/// Connections are descriptors.
fn raise_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        println!("the limit of open files stays as it is: {error}");
    }
}
