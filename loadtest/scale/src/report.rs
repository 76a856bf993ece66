//! What was found, for people: `scale.md`, `scale.svg` and the memory of every second.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    chart,
    cold::Latency,
    cost::{Called, Cost, SLOW, Way},
    run::{CostCase, Figures},
};

/// Writes all three.
pub fn write(figures: &Figures, out: &Path, csv: &Path) -> anyhow::Result<()> {
    let memory = &figures.large.drained.memory;
    put(&out.join("scale.md"), &markdown(figures)?)?;
    put(&out.join("scale.svg"), &chart::memory(memory))?;
    put(csv, &memory.csv())
}

pub(crate) fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn markdown(figures: &Figures) -> Result<String, std::fmt::Error> {
    let (small, large, drained) = (&figures.small, &figures.large, &figures.large.drained);
    let size = &large.size;
    let mut text = include_str!("../templates/scale.md").to_owned();
    writeln!(text, "\n- {}", machine())?;
    writeln!(
        text,
        "- small: {} functions and {} agent; large: {} functions, {} of them hot, {} agents, {} invocations queued",
        small.size.functions, small.size.agents, size.functions, size.hot, size.agents, drained.queued
    )?;

    writeln!(text, "\n## What an invocation costs\n")?;
    writeln!(text, "| | small | large | ratio | large, over {} hot functions | ratio |", size.hot)?;
    writeln!(text, "|---|---:|---:|---:|---:|---:|")?;
    for way in Way::ALL {
        let find = |costs: &[Cost]| costs.iter().find(|cost| cost.way == way).cloned();
        let (Some(a), Some(b), Some(c)) = (find(&small.costs), find(&large.costs), find(&large.hot_costs)) else {
            continue;
        };
        let (few, many, hot) = (a.cpu_us(), b.cpu_us(), c.cpu_us());
        writeln!(
            text,
            "| {}, CPU | {few:.0} µs | {many:.0} µs | {:.2} | {hot:.0} µs | {:.2} |",
            way.name(),
            many / few,
            hot / few
        )?;
        if let (Some(few), Some(many), Some(hot)) = (a.calls, b.calls, c.calls) {
            for (rank, of) in [("p50", (|calls| calls.p50) as fn(&Called) -> Duration), ("p95", |calls| calls.p95)] {
                let (few, many, hot) = (of(&few), of(&many), of(&hot));
                writeln!(
                    text,
                    "| {}, {rank} | {} | {} | {:.2} | {} | {:.2} |",
                    way.name(),
                    ms(few),
                    ms(many),
                    ratio(many, few),
                    ms(hot),
                    ratio(hot, few)
                )?;
            }
            let late = |calls: &Called| format!("{}, {}", calls.slow, calls.refusals.len());
            let (few, many, hot) = (late(&few), late(&many), late(&hot));
            writeln!(text, "| of {}: over {} ms, refused | {few} | {many} | | {hot} | |", a.count, SLOW.as_millis())?;
        }
    }
    writeln!(text, "\nBy process, CPU µs for each invocation (small → large → large over all hot functions):\n")?;
    writeln!(text, "| | gateway | nats-server | simulated agents |\n|---|---:|---:|---:|")?;
    for way in Way::ALL {
        let all = [&small.costs, &large.costs, &large.hot_costs];
        let of = |process: &str| {
            let each =
                all.map(|costs| costs.iter().find(|cost| cost.way == way).map_or(0.0, |cost| cost.cpu_us_of(process)));
            format!("{:.0} → {:.0} → {:.0}", each[0], each[1], each[2])
        };
        writeln!(text, "| {} | {} | {} | {} |", way.name(), of("gateway"), of("nats-server"), of("simulated agents"))?;
    }
    writeln!(
        text,
        "\nIdle: {:.3} of a core in the small case, {:.3} in the large one ({}).",
        small.idle.cores(),
        large.idle.cores(),
        large.idle.0.iter().map(|(name, cores)| format!("{name} {cores:.3}")).collect::<Vec<_>>().join(", ")
    )?;

    writeln!(text, "\n## A function's first message ever\n")?;
    writeln!(text, "| | small p50 | p95 | most | large p50 | p95 | most |\n|---|---:|---:|---:|---:|---:|---:|")?;
    for (name, few, many) in [
        ("sync call, answered", small.cold.call, large.cold.call),
        ("async over HTTP, started", small.cold.accepted, large.cold.accepted),
        ("published, started", small.cold.published, large.cold.published),
    ] {
        writeln!(text, "| {name} ({} of each) | {} | {} |", few.count.min(many.count), latency(few), latency(many))?;
    }
    writeln!(text, "\nA call to a function that does not exist, among {}: {}.", size.functions, ms(large.unknown))?;

    writeln!(text, "\n## Registering and queueing\n")?;
    writeln!(
        text,
        "- {} functions registered and deployed over HTTP in {:.1} s with {} agents listening. Memory before and after: {}.",
        size.functions,
        large.registering.as_secs_f64(),
        size.agents,
        large
            .registered_memory
            .iter()
            .map(|(name, was, is)| format!("{name} {} → {} MB", was / 1024, is / 1024))
            .collect::<Vec<_>>()
            .join(", ")
    )?;
    writeln!(
        text,
        "- {} invocations queued while agents were drained: {} published in {:.1} s, {} accepted over HTTP in {:.1} s.",
        drained.queued,
        size.invocations - size.over_http,
        drained.publishing.as_secs_f64(),
        size.over_http,
        drained.accepting.as_secs_f64()
    )?;
    let real = drained.queued.saturating_sub(drained.simulated_starts);
    writeln!(
        text,
        "- Drained to nothing in {:.0} s ({:.0}/s): {} ends recorded, {} of them successes. Simulated agents started {}, the agent with a launcher {real}. CPU for each: {}. The store has {} MB.",
        drained.draining.as_secs_f64(),
        drained.per_second(),
        drained.ended.all(),
        drained.ended.successes,
        drained.simulated_starts,
        per_invocation(&drained.spent, drained.queued),
        drained.store_bytes / (1024 * 1024)
    )?;

    writeln!(text, "\n## Memory\n\n![memory of each process over time](scale.svg)\n")?;
    writeln!(
        text,
        "| MB | before | after {} executions | after {} |\n|---|---:|---:|---:|",
        drained.queued / 100,
        drained.queued
    )?;
    for name in &drained.memory.names {
        let at = |sample| drained.memory.at(sample, name);
        writeln!(text, "| {name} | {:.1} | {:.1} | {:.1} |", at(0), at(drained.first_sample), at(drained.last_sample))?;
    }
    Ok(text)
}

/// The same of a single case, as lines for a terminal.
pub fn tell(case: &CostCase) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for (which, costs) in [("few in turn", &case.costs), ("all in turn", &case.hot_costs)] {
        for cost in costs {
            write!(text, "{which}, {}: CPU {:.0} µs", cost.way.name(), cost.cpu_us())?;
            for (process, _) in &cost.spent {
                write!(text, ", {process} {:.0}", cost.cpu_us_of(process))?;
            }
            if let Some(calls) = &cost.calls {
                write!(text, "; p50 {}, p95 {}", ms(calls.p50), ms(calls.p95))?;
                write!(text, ", {} of {} slow, {} refused", calls.slow, cost.count, calls.refusals.len())?;
                calls.refusals.first().map_or(Ok(()), |said| write!(text, ": {said}"))?;
            }
            writeln!(text)?;
        }
    }
    writeln!(text, "idle: {:.3} of a core {:?}", case.idle.cores(), case.idle.0)?;
    for (name, cold) in [("call", case.cold.call), ("async", case.cold.accepted), ("published", case.cold.published)] {
        writeln!(text, "first message, {name}: p50, p95, most {}", latency(cold))?;
    }
    Ok(text)
}

pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    format!("{cores} cores, Linux {}, {build} build; load average at the end {}", kernel.trim(), load.join(" "))
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn ratio(many: Duration, few: Duration) -> f64 {
    many.as_secs_f64() / few.as_secs_f64().max(1e-9)
}

fn latency(of: Latency) -> String {
    [of.p50, of.p95, of.most].map(ms).join(" | ")
}

#[allow(clippy::cast_precision_loss, reason = "a mean")]
fn per_invocation(spent: &[(&'static str, Duration)], count: u64) -> String {
    let each = |spent: &Duration| spent.as_secs_f64() * 1e6 / count.max(1) as f64;
    spent.iter().map(|(name, spent)| format!("{name} {:.0} µs", each(spent))).collect::<Vec<_>>().join(", ")
}
