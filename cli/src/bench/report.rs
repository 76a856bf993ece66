//! The report, for people and for `docs/benchmarks.md`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    Durability,
    chart::Bar,
    costs::Cost,
    figures::{Figure, Ratio, Results},
    machine::Machine,
    round::Measured,
};

/// Name, unit and meaning of each figure, in the order in which they are shown.
const SHOWN: &[(&str, &str, &str)] = &[
    ("echo_p50_us", "µs", "HTTP echo (axum, nothing else), p50 at c=1"),
    ("echo_per_s", "/s", "HTTP echo, requests/s at c=16"),
    ("route_p50_us", "µs", "bare NATS route (HTTP → JetStream in memory → echo → HTTP), p50 at c=1"),
    ("route_per_s", "/s", "bare NATS route, requests/s at c=16"),
    ("spawn_p50_us", "µs", "bare spawn of the same program (vfork, exec, wait), p50"),
    ("spawn_per_s", "/s", "bare spawn loop, 2 threads, payload and output through the same three pipes"),
    ("core_p50_us", "µs", "core NATS, request and reply, p50"),
    ("delivered_p50_us", "µs", "JetStream on disk, publish → delivered, p50"),
    ("pipe_per_s", "/s", "JetStream on disk, whole pipe: publish, its ack, delivery, ack"),
    ("sync_p50_us", "µs", "**Flux, sync call**, p50 at c=1"),
    ("sync_p99_us", "µs", "**Flux, sync call**, p99 at c=1"),
    ("sync_per_s", "/s", "**Flux, sync calls**/s at c=16"),
    ("sync_many_p99_us", "µs", "**Flux, sync call**, p99 at c=16"),
    ("dispatch_p50_us", "µs", "**Flux, async**, accepted → process started, p50, idle"),
    ("dispatch_p95_us", "µs", "**Flux, async**, accepted → process started, p95, idle"),
    ("asked_p50_us", "µs", "**Flux, async**, before the request is sent → process started, p50, idle"),
    ("asked_p95_us", "µs", "**Flux, async**, before the request is sent → process started, p95, idle"),
    (
        "accepted_per_s",
        "/s",
        "**Flux, async**, accepted/s at c=16 (202: the queue and the store both hold it), for a function that waits",
    ),
    ("executed_per_s", "/s", "**Flux, async**, executed/s, from the first accept to the last outcome"),
    ("direct_per_s", "/s", "**Flux, direct publish**, executed/s, from the first publish to the last ack"),
    ("warm_route_p50_us", "µs", "bare NATS route, beside the warm handler, p50 at c=1"),
    ("warm_route_per_s", "/s", "bare NATS route, beside the warm handler, requests/s at c=16"),
    ("warm_p50_us", "µs", "**Flux, a warm Python handler**, sync call, p50 at c=1"),
    ("warm_p99_us", "µs", "**Flux, a warm Python handler**, sync call, p99 at c=1"),
    ("warm_per_s", "/s", "**Flux, a warm Python handler**, sync calls/s at c=16"),
    ("warm_many_p99_us", "µs", "**Flux, a warm Python handler**, sync call, p99 at c=16"),
    (
        "warm_direct_per_s",
        "/s",
        "**Flux, warm Python workers**, direct publishes executed/s, from the first publish to the last ack",
    ),
    ("python_p50_us", "µs", "bare `python3 -I -c 'import json'`, start to end, p50"),
    ("fresh_p50_us", "µs", "**Flux, a forked Python handler** (`fresh: true`), sync call, p50 at c=1"),
    ("fresh_p99_us", "µs", "**Flux, a forked Python handler**, sync call, p99 at c=1"),
    ("framed_p50_us", "µs", "Flux, a warm Python handler, beside the Lambda package, sync call, p50 at c=1"),
    ("lambda_p50_us", "µs", "**Flux, a warm Lambda package** (awslambdaric), sync call, p50 at c=1"),
    ("lambda_p99_us", "µs", "**Flux, a warm Lambda package**, sync call, p99 at c=1"),
    ("lambda_per_s", "/s", "**Flux, a warm Lambda package**, sync calls/s at c=16"),
    ("output_p50_us", "µs", "**Flux, live output**, written → at the client (SSE), p50, idle"),
    ("cgi_p50_us", "µs", "busybox httpd + CGI (no sandbox, no queue), p50 at c=1"),
    ("cgi_per_s", "/s", "busybox httpd + CGI, requests/s at c=16"),
    ("framework_p50_us", "µs", "functions-framework, the same Python handler (gunicorn, one process), p50 at c=1"),
    ("framework_per_s", "/s", "functions-framework, requests/s at c=16"),
    ("celery_per_s", "/s", "Celery, prefork 2, subprocess, late acks, on Redis without persistence: executed/s"),
    ("bullmq_per_s", "/s", "BullMQ, spawn, concurrency 16, on Redis without persistence: executed/s"),
    ("bullmq_dispatch_p50_us", "µs", "BullMQ, before the job is added → process started, p50, idle"),
    ("bullmq_dispatch_p95_us", "µs", "BullMQ, before the job is added → process started, p95, idle"),
    ("gateway_mb", "MB", "**flux-gateway**, apart, idle, resident"),
    ("agent_mb", "MB", "**flux-agent**, apart, idle, resident"),
    ("launcher_mb", "MB", "**its launcher**, apart, idle, resident"),
    ("gateway_after_mb", "MB", "flux-gateway, after a load"),
    ("agent_after_mb", "MB", "flux-agent, after a load"),
    ("launcher_after_mb", "MB", "its launcher, after a load"),
    ("up_worker_mb", "MB", "`flux up`: gateway and agent in one process, idle, resident"),
    ("up_launcher_mb", "MB", "`flux up`: launcher, idle, resident"),
    ("up_nats_mb", "MB", "`flux up`: nats-server, idle, resident"),
    ("up_worker_after_mb", "MB", "`flux up`: gateway and agent, after the round's load"),
    ("up_launcher_after_mb", "MB", "`flux up`: launcher, after the round's load"),
    ("up_nats_after_mb", "MB", "`flux up`: nats-server, after the round's load"),
];

/// Everything that a run found out.
#[derive(Debug)]
pub(super) struct Report<'a> {
    machine: &'a Machine,
    rounds: u32,
    /// By durability; the first is what Flux does unless it is told otherwise.
    runs: Vec<(Durability, Results)>,
    /// Of the first.
    costs: Vec<(&'static str, Vec<(&'static str, Cost)>)>,
}

impl<'a> Report<'a> {
    pub(super) fn of(measured: &[(Durability, Measured)], machine: &'a Machine, rounds: u32) -> Self {
        Self {
            machine,
            rounds,
            runs: measured.iter().map(|(durability, measured)| (*durability, measured.figures.results())).collect(),
            costs: measured.first().map(|(_, measured)| measured.costs.medians()).unwrap_or_default(),
        }
    }

    fn circumstances(&self) -> Vec<String> {
        let machine = self.machine;
        let mut lines = vec![
            format!(
                "{} × {}, Linux {}, {} build, rounds: {}",
                machine.cores, machine.cpu, machine.kernel, machine.build, self.rounds
            ),
            format!(
                "load average before {}, after {} (the load generator is part of it)",
                machine.load_before, machine.load_after
            ),
            format!(
                "{:.0} % of the CPU time was stolen: given to other machines of the same host",
                machine.stolen_percent
            ),
        ];
        lines.extend(
            self.runs
                .iter()
                .map(|(durability, _)| format!("durability `{}`: {}", durability.name(), durability.meaning())),
        );
        lines
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for line in self.circumstances() {
            let _ = writeln!(text, "{line}");
        }
        for (durability, results) in &self.runs {
            let _ = writeln!(text, "\ndurability {}\n\n{:>10}  {:>21}", durability.name(), "median", "least … most");
            for (name, unit, what) in SHOWN {
                let Some(figure) = results.figures.get(name) else { continue };
                let (median, spread, what) = (number(figure.median), spread(*figure), what.replace("**", ""));
                let _ = writeln!(text, "{median:>10} {unit:<2} {spread:>19}  {what}");
            }
            text.push('\n');
            for ratio in &results.ratios {
                let (target, reached) = (ratio.target, if ratio.is_reached() { "reached" } else { "not reached" });
                let _ = writeln!(
                    text,
                    "{:<3} {:>6.2}  {} {:<4}  {reached:<11}  {} / {}",
                    target.number,
                    ratio.value,
                    target.reach.sign(),
                    target.target,
                    target.what,
                    target.beside
                );
            }
        }
        for (load, rows) in &self.costs {
            let _ = writeln!(text, "\n{load}: µs of CPU and context switches of one call\n");
            let _ = writeln!(text, "{:<28} {:>8} {:>8} {:>8} {:>9}", "", "user", "system", "CPU", "switches");
            for (role, cost) in rows {
                let (user, system, cpu) = (number(cost.user_us), number(cost.system_us), number(cost.cpu_us()));
                let _ = writeln!(text, "{role:<28} {user:>8} {system:>8} {cpu:>8} {:>9.1}", cost.switches);
            }
        }
        text
    }

    /// `chart` is the file beside it.
    pub(super) fn markdown(&self, chart: &str) -> String {
        let machine: String = self.circumstances().iter().map(|line| format!("- {line}\n")).collect();
        include_str!("../../templates/benchmarks.md")
            .replace("{{chart}}", chart)
            .replace("{{machine}}", machine.trim_end())
            .replace("{{figures}}", self.figures_table().trim_end())
            .replace("{{ratios}}", self.ratios_table().trim_end())
            .replace("{{costs}}", self.costs_tables().trim_end())
    }

    fn figures_table(&self) -> String {
        let mut table = "| |".to_owned();
        for (durability, _) in &self.runs {
            let _ = write!(table, " {} | least … most |", durability.name());
        }
        table.push_str(" |\n|---|");
        table.push_str(&"---:|---:|".repeat(self.runs.len()));
        table.push_str("---|\n");
        for (name, unit, what) in SHOWN {
            let figures: Vec<_> = self.runs.iter().map(|(_, results)| results.figures.get(name)).collect();
            if figures.iter().all(Option::is_none) {
                continue;
            }
            let _ = write!(table, "| {what} |");
            for figure in figures {
                match figure {
                    Some(figure) => write!(table, " {} | {} |", number(figure.median), spread(*figure)),
                    None => write!(table, " | |"),
                }
                .unwrap_or_default();
            }
            let _ = writeln!(table, " {unit} |");
        }
        table
    }

    /// Each ratio under every durability.
    fn ratios_table(&self) -> String {
        let mut table = "| target | Flux | yardstick | reach |".to_owned();
        for (durability, _) in &self.runs {
            let _ = write!(table, " {} | |", durability.name());
        }
        table.push_str("\n|---|---|---|---:|");
        table.push_str(&"---:|---|".repeat(self.runs.len()));
        table.push('\n');
        for targets in self.ratios() {
            let Some(target) = targets.iter().flatten().map(|ratio| ratio.target).next() else { continue };
            let (number, what, beside) = (target.number, target.what, target.beside);
            let _ = write!(table, "| {number} | {what} | {beside} | {} {} |", target.reach.sign(), target.target);
            for ratio in targets {
                match ratio {
                    Some(ratio) => {
                        let reached = if ratio.is_reached() { "reached" } else { "not yet" };
                        write!(table, " {:.2} | {reached} |", ratio.value)
                    }
                    None => write!(table, " | |"),
                }
                .unwrap_or_default();
            }
            table.push('\n');
        }
        table
    }

    /// Target by target, its ratio in each of the runs.
    fn ratios(&self) -> Vec<Vec<Option<Ratio>>> {
        let mut all: Vec<&'static super::figures::Target> = Vec::new();
        for ratio in self.runs.iter().flat_map(|(_, results)| &results.ratios) {
            if !all.iter().any(|target| std::ptr::eq(*target, ratio.target)) {
                all.push(ratio.target);
            }
        }
        let of =
            |results: &Results, target| results.ratios.iter().find(|ratio| std::ptr::eq(ratio.target, target)).copied();
        all.into_iter().map(|target| self.runs.iter().map(|(_, results)| of(results, target)).collect()).collect()
    }

    /// For the chart.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let bar = |ratios: Vec<Option<Ratio>>| {
            let target = ratios.iter().flatten().next()?.target;
            let values = self.runs.iter().zip(&ratios).filter_map(|((durability, _), ratio)| {
                let (ratio, sign) = ((*ratio)?, target.reach.sign());
                let said = format!("{:.2} ({sign} {}) {}", ratio.value, target.target, durability.name());
                Some((durability.name(), ratio.headroom(), said))
            });
            let label = match target.number.starts_with('Q') {
                true => format!("{} {} / {}", target.number, target.what, target.beside),
                false => format!("{} {}", target.number, target.what),
            };
            Some(Bar { label, values: values.collect() })
        };
        self.ratios().into_iter().filter_map(bar).collect()
    }

    fn costs_tables(&self) -> String {
        let mut text = String::new();
        for (load, rows) in &self.costs {
            let _ = writeln!(text, "| {load} | user µs | system µs | CPU µs | switches |\n|---|---:|---:|---:|---:|");
            for (role, cost) in rows {
                let (user, system, cpu) = (number(cost.user_us), number(cost.system_us), number(cost.cpu_us()));
                let _ = writeln!(text, "| {role} | {user} | {system} | {cpu} | {:.1} |", cost.switches);
            }
            text.push('\n');
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let run = |(durability, results): &(Durability, Results)| {
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
                .map(|ratio| {
                    let target = ratio.target;
                    json!({"number": target.number, "what": target.what, "beside": target.beside, "value": ratio.value,
                           "target": target.target, "reached": ratio.is_reached()})
                })
                .collect();
            json!({"durability": durability.name(), "figures": figures, "ratios": ratios})
        };
        let costs: serde_json::Map<String, Value> = self
            .costs
            .iter()
            .map(|(load, rows)| {
                let rows: serde_json::Map<String, Value> = rows
                    .iter()
                    .map(|(role, cost)| {
                        let cost =
                            json!({"user_us": cost.user_us, "system_us": cost.system_us, "switches": cost.switches});
                        ((*role).to_owned(), cost)
                    })
                    .collect();
                ((*load).to_owned(), rows.into())
            })
            .collect();
        let runs: Vec<Value> = self.runs.iter().map(run).collect();
        json!({"machine": self.circumstances(), "runs": runs, "cost_per_call": costs})
    }
}

fn spread(figure: Figure) -> String {
    format!("{} … {}", number(figure.least), number(figure.most))
}

fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::{chart, costs::Role};

    /// Two durabilities, the second without one of the yardsticks.
    fn measured() -> Vec<(Durability, Measured)> {
        let mut process = Measured::default();
        for (name, rounds) in [
            ("route_p50_us", [480.0, 500.0, 700.0]),
            ("spawn_p50_us", [100.0, 100.0, 101.0]),
            ("sync_p50_us", [590.0, 600.0, 900.0]),
            ("sync_per_s", [2000.0, 1000.0, 1500.0]),
            ("spawn_per_s", [3000.0, 3100.0, 2900.0]),
            ("cgi_per_s", [1400.0, 1450.0, 1500.0]),
            ("launcher_mb", [2.5, 2.5, 2.5]),
        ] {
            for value in rounds {
                process.figures.add(name, value);
            }
        }
        let cost = |user_us, system_us, switches| Cost { user_us, system_us, switches };
        let used = [(Role::Worker, cost(3000.0, 2000.0, 55.0)), (Role::Generator, cost(200.0, 300.0, 10.0))];
        process.costs.add("sync, c=1", BTreeMap::from(used), 10.0);
        let mut fsync = Measured::default();
        for (name, value) in [("sync_p50_us", 1200.0), ("route_p50_us", 500.0), ("spawn_p50_us", 100.0)] {
            fsync.figures.add(name, value);
        }
        vec![(Durability::Process, process), (Durability::Fsync, fsync)]
    }

    /// A golden that changes is a change of the document: look at it, then write it with `UPDATE_GOLDEN=1`.
    #[test]
    fn the_document_and_its_chart_are_as_they_were() {
        let machine = Machine {
            cores: 2,
            cpu: "Some CPU".to_owned(),
            kernel: "6.1.0".to_owned(),
            load_before: "0.10 0.20 0.30".to_owned(),
            load_after: "1.00 0.50 0.40".to_owned(),
            stolen_percent: 3.4,
            build: "release",
        };
        let measured = measured();
        let report = Report::of(&measured, &machine, 3);
        let documents = [
            ("benchmarks.md", report.markdown("benchmarks.svg"), include_str!("golden/benchmarks.md")),
            ("benchmarks.svg", chart::svg(&report.bars()), include_str!("golden/benchmarks.svg")),
            ("benchmarks.txt", report.text(), include_str!("golden/benchmarks.txt")),
        ];
        for (name, found, golden) in documents {
            if flux_runtime::config::env("UPDATE_GOLDEN").is_some() {
                std::fs::write(format!("{}/src/bench/golden/{name}", env!("CARGO_MANIFEST_DIR")), &found)
                    .expect("write");
            } else {
                assert_eq!(found, golden, "{name}");
            }
        }
    }
}
