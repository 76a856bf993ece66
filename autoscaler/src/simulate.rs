//! `flux-autoscaler simulate`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use flux_plan::Policy;
use flux_simulation::{Setting, Shape, Traffic, compare, markdown};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Recorded traffic: lines of `second,invocations` or `second,invocations,seconds each`
    #[arg(long, value_name = "FILE", conflicts_with = "shapes")]
    trace: Option<PathBuf>,
    /// Made-up traffic; all of them unless any is named
    #[arg(long = "shape", value_parser = shape, value_name = "steady|daily|spike|burst|zero")]
    shapes: Vec<Shape>,
    /// The same seed is the same run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Executions at once on a node
    #[arg(long, default_value_t = 8)]
    slots: u32,
    /// Of a node, for an hour
    #[arg(long, default_value_t = 0.05)]
    price: f64,
    /// Seconds from the order of a node to its first execution
    #[arg(long, default_value_t = 60.0)]
    boot: f64,
    #[arg(long, default_value_t = 40)]
    max_nodes: u32,
    #[arg(long, default_value_t = 0)]
    min_nodes: u32,
    /// Seconds between looks
    #[arg(long, default_value_t = 5.0)]
    poll: f64,
    /// A chart of load, nodes and wait
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
}

fn shape(name: &str) -> Result<Shape, String> {
    Shape::parse(name).ok_or_else(|| format!("`{name}` is not one of: steady, daily, spike, burst, zero"))
}

/// `policy` is the configured one, with its own machines replaced by those of the simulation.
pub(crate) fn run(args: &Args, policy: Option<Policy>) -> anyhow::Result<()> {
    if args.slots == 0 || args.boot.is_nan() || args.boot < 0.0 || !(0.1..=3600.0).contains(&args.poll) {
        bail!("`--slots` is at least 1, `--boot` not negative, and `--poll` from 0.1 to 3600");
    }
    let boot = std::time::Duration::from_secs_f64(args.boot.min(86_400.0));
    let mut setting = Setting::new(args.slots, args.price, boot, args.max_nodes.max(1), args.min_nodes);
    setting.poll = std::time::Duration::from_secs_f64(args.poll);
    if let Some(policy) = policy {
        let providers = std::mem::take(&mut setting.policy.providers);
        setting.policy = Policy { providers, max_cost_per_hour: None, schedules: Vec::new(), ..policy };
    }
    let traffics = match &args.trace {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            vec![Traffic::of_trace(&name, &text, args.seed).with_context(|| path.display().to_string())?]
        }
        None => {
            let shapes = if args.shapes.is_empty() { &Shape::ALL[..] } else { &args.shapes };
            shapes.iter().map(|shape| Traffic::of_shape(*shape, args.seed)).collect()
        }
    };
    let outcomes: Vec<_> = traffics.iter().map(|traffic| compare(traffic, &setting)).collect();
    #[allow(clippy::print_stdout)]
    {
        println!("{}", markdown(&outcomes));
    }
    if let Some(path) = &args.chart {
        let svg = flux_simulation::chart(&outcomes, args.slots);
        std::fs::write(path, svg).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
