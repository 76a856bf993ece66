//! Everybody's figures beside each other.

use std::fmt::Write as _;

use crate::{Run, Setting, Traffic, compared, run};

/// Everybody on one traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub traffic: String,
    pub price_per_hour: f64,
    /// The plan first, the oracle second, the predecessor third.
    pub runs: Vec<Run>,
}

/// Runs everybody.
pub fn compare(traffic: &Traffic, setting: &Setting) -> Outcome {
    let runs = compared(traffic, setting).into_iter().map(|mut scaler| run(traffic, setting, &mut *scaler)).collect();
    Outcome { traffic: traffic.name.clone(), price_per_hour: setting.price_per_hour, runs }
}

impl Outcome {
    /// The plan's cost for the oracle's.
    pub fn cost_ratio(&self) -> f64 {
        match self.runs.as_slice() {
            [flux, oracle, ..] if oracle.node_hours > 0.0 => flux.node_hours / oracle.node_hours,
            _ => f64::NAN,
        }
    }

    /// The plan's p95 wait, and a third of the predecessor's.
    pub fn waits(&self) -> (f64, f64) {
        let p95 = |index: usize| self.runs.get(index).map_or(f64::NAN, |run| run.wait(95));
        (p95(0), p95(2) / 3.0)
    }

    /// Cost within 1.25 of the oracle's, and a p95 wait that is no worse than a third of the predecessor's.
    pub fn reached(&self) -> (bool, bool) {
        let (wait, third) = self.waits();
        (self.cost_ratio() <= 1.25, wait <= third)
    }
}

/// Tables, one for each traffic.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let _ = writeln!(text, "**{}**\n", outcome.traffic);
        let _ = writeln!(text, "| policy | node-hours | cost | of the oracle's | wait p50 | p95 | p99 | launches |");
        let _ = writeln!(text, "|---|---|---|---|---|---|---|---|");
        let oracle = outcome.runs.get(1).map_or(f64::NAN, |run| run.node_hours);
        for run in &outcome.runs {
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.2} | {:.2} | {:.1} s | {:.1} s | {:.1} s | {} |",
                run.policy,
                run.node_hours,
                run.node_hours * outcome.price_per_hour,
                run.node_hours / oracle,
                run.wait(50),
                run.wait(95),
                run.wait(99),
                run.launches
            );
        }
        let (cheap, quick) = outcome.reached();
        let (wait, third) = outcome.waits();
        let said = |reached: bool| if reached { "reached" } else { "not reached" };
        let _ = writeln!(
            text,
            "\nCost {:.2} × the oracle's (goal 1.25: {}); p95 wait {wait:.1} s (goal, a third of the predecessor's: {third:.1} s: {}).\n",
            outcome.cost_ratio(),
            said(cheap),
            said(quick)
        );
    }
    text
}
