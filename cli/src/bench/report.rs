//! The report, for people and for `docs/benchmarks.md`.

use serde_json::{Value, json};

use super::{
    figures::{Figure, Reach, Results},
    subject::Subject,
};

/// Name, unit and meaning of each figure, in the order in which they are shown.
const SHOWN: &[(&str, &str, &str)] = &[
    ("echo_p50_us", "µs", "HTTP echo (axum, nothing else), p50 at c=1"),
    ("echo_per_s", "/s", "HTTP echo, requests/s at c=16"),
    ("route_p50_us", "µs", "bare NATS route (HTTP → JetStream in memory → echo → HTTP), p50 at c=1"),
    ("route_per_s", "/s", "bare NATS route, requests/s at c=16"),
    ("spawn_p50_us", "µs", "bare spawn of the same program (vfork, exec, wait), p50"),
    ("spawn_per_s", "/s", "bare spawn loop, 2 threads, payload and output through pipes"),
    ("delivered_p50_us", "µs", "JetStream on disk, publish → delivered, p50"),
    ("sync_p50_us", "µs", "**Flux, sync call**, p50 at c=1"),
    ("sync_p99_us", "µs", "**Flux, sync call**, p99 at c=1"),
    ("sync_per_s", "/s", "**Flux, sync calls**/s at c=16"),
    ("sync_many_p99_us", "µs", "**Flux, sync call**, p99 at c=16"),
    ("dispatch_p50_us", "µs", "**Flux, async**, accepted → process started, p50, idle"),
    ("dispatch_p95_us", "µs", "**Flux, async**, accepted → process started, p95, idle"),
    (
        "accepted_per_s",
        "/s",
        "**Flux, async**, accepted/s at c=16 (202: the queue and the store both hold it), for a function that waits",
    ),
    ("executed_per_s", "/s", "**Flux, async**, executed/s, from the first accept to the last outcome"),
];

/// Where it was measured.
#[derive(Debug)]
pub(super) struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
    load_before: String,
    load_after: String,
    stolen_percent: f64,
    build: &'static str,
    memory: Vec<(String, u64)>,
}

/// How busy the machine was before the run.
#[derive(Debug)]
pub(super) struct Before {
    load: String,
    ticks: Option<Ticks>,
}

impl Before {
    pub(super) fn look() -> Self {
        Self { load: load_average(), ticks: Ticks::look() }
    }
}

/// CPU time of the whole machine since it started, and how much of it a hypervisor gave to others.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ticks {
    all: f64,
    stolen: f64,
}

impl Ticks {
    fn look() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let first = stat.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already.
        let numbers: Vec<f64> = first.split_whitespace().take(8).filter_map(|number| number.parse().ok()).collect();
        Some(Self { all: numbers.iter().sum(), stolen: *numbers.get(7)? })
    }
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

impl Machine {
    pub(super) fn look(subject: &Subject, before: Before) -> Self {
        let stolen = before
            .ticks
            .zip(Ticks::look())
            .map_or(0.0, |(before, after)| 100.0 * (after.stolen - before.stolen) / (after.all - before.all).max(1.0));
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
        Self {
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            cpu: cpu.unwrap_or_else(|| "unknown".to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: before.load,
            load_after: load_average(),
            stolen_percent: stolen,
            build: if cfg!(debug_assertions) { "debug (figures mean nothing)" } else { "release" },
            memory: subject.memory(),
        }
    }

    fn lines(&self, rounds: usize) -> Vec<String> {
        let memory: Vec<String> = self.memory.iter().map(|(name, mb)| format!("{name} {mb} MB")).collect();
        vec![
            format!("{} × {}, Linux {}, {} build, {rounds} rounds", self.cores, self.cpu, self.kernel, self.build),
            format!("load average before {}, after {} (the load generator is part of it)", self.load_before, self.load_after),
            format!("{:.0} % of the CPU time was stolen: given to other machines of the same host", self.stolen_percent),
            "durability: JetStream on disk, synced by the server's interval; SQLite WAL, commits not synced: survives kill -9, \
             not power loss of the last moments"
                .to_owned(),
            format!("resident memory at the end: {}", memory.join(", ")),
        ]
    }
}

pub(super) fn text(results: &Results, machine: &Machine, rounds: usize) -> String {
    let mut text = String::new();
    for line in machine.lines(rounds) {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str(&format!("\n{:>10}  {:>21}\n", "median", "least … most"));
    for (figure, unit, what) in shown(results) {
        let spread = format!("{} … {}", number(figure.least), number(figure.most));
        let what = what.replace("**", "");
        text.push_str(&format!("{:>10} {unit:<2} {spread:>19}  {what}\n", number(figure.median)));
    }
    text.push('\n');
    for ratio in &results.ratios {
        let sign = sign(ratio.reach);
        let reached = if ratio.is_reached() { "reached" } else { "not reached" };
        let (what, beside) = (ratio.what, ratio.beside);
        text.push_str(&format!(
            "{}  {:>5.2}  {sign} {:<4}  {reached:<11}  {what} / {beside}\n",
            ratio.number, ratio.value, ratio.target
        ));
    }
    text
}

pub(super) fn markdown(results: &Results, machine: &Machine, rounds: usize) -> String {
    let mut figures = "| | median | least … most | |\n|---|---:|---:|---|\n".to_owned();
    for (figure, unit, what) in shown(results) {
        let spread = format!("{} … {}", number(figure.least), number(figure.most));
        figures.push_str(&format!("| {what} | {} | {spread} | {unit} |\n", number(figure.median)));
    }
    let mut ratios = "| target | Flux | yardstick | ratio | reach | |\n|---|---|---|---:|---:|---|\n".to_owned();
    for ratio in &results.ratios {
        let reached = if ratio.is_reached() { "reached" } else { "not yet" };
        let (number, what, beside) = (ratio.number, ratio.what, ratio.beside);
        ratios.push_str(&format!(
            "| {number} | {what} | {beside} | {:.2} | {} {} | {reached} |\n",
            ratio.value,
            sign(ratio.reach),
            ratio.target
        ));
    }
    let machine: String = machine.lines(rounds).iter().map(|line| format!("- {line}\n")).collect();
    include_str!("../../templates/benchmarks.md")
        .replace("{{machine}}", machine.trim_end())
        .replace("{{figures}}", figures.trim_end())
        .replace("{{ratios}}", ratios.trim_end())
}

pub(super) fn json(results: &Results, machine: &Machine, rounds: usize) -> Value {
    let figures: serde_json::Map<String, Value> = results
        .figures
        .iter()
        .map(|(name, figure)| {
            ((*name).to_owned(), json!({"median": figure.median, "least": figure.least, "most": figure.most}))
        })
        .collect();
    let ratios: Vec<Value> = results
        .ratios
        .iter()
        .map(|ratio| json!({"number": ratio.number, "value": ratio.value, "target": ratio.target, "reached": ratio.is_reached()}))
        .collect();
    json!({"figures": figures, "ratios": ratios, "machine": machine.lines(rounds)})
}

fn shown(results: &Results) -> impl Iterator<Item = (Figure, &'static str, &'static str)> {
    SHOWN.iter().filter_map(|(name, unit, what)| Some((*results.figures.get(name)?, *unit, *what)))
}

fn sign(reach: Reach) -> &'static str {
    match reach {
        Reach::AtMost => "≤",
        Reach::AtLeast => "≥",
    }
}

fn number(value: f64) -> String {
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_number() {
        let stat = "cpu  10 20 30 40 50 60 70 80 5 5\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(Ticks::parse(stat), Some(Ticks { all: 360.0, stolen: 80.0 }));
        assert_eq!(Ticks::parse("intr 1"), None);
        assert_eq!(Ticks::parse("cpu  1 2 3"), None);
    }
}
