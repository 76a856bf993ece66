//! The counts of a run, as a section of `docs/reliability.md`.

use std::fmt::Write as _;

use crate::checker::{Counts, Report};

/// Where the sections of runs begin in the page; what is above is written by hand.
const BEGIN: &str = "<!-- runs: written by `make chaos` -->";

/// The page with this run's section in the place of an earlier one of the same topology.
pub fn into_page(page: &str, topology: &str, command: &str, report: &Report) -> String {
    let (above, below) = page.split_once(BEGIN).unwrap_or((page, ""));
    let heading = format!("## {topology}\n");
    let mut sections: Vec<&str> = below.split("\n## ").map(str::trim).filter(|section| !section.is_empty()).collect();
    sections.retain(|section| {
        let name = section.trim_start_matches("## ").lines().next().unwrap_or_default();
        name != topology
    });
    let mut text = format!("{}\n\n{BEGIN}\n", above.trim_end());
    for section in sections {
        let _ = write!(text, "\n## {}\n", section.trim_start_matches("## "));
    }
    let _ = write!(text, "\n{heading}\n{}", section(command, report));
    text
}

fn section(command: &str, report: &Report) -> String {
    let counts = &report.counts;
    let mut text = format!("`{command}`\n\n| | |\n|---|---|\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    row("operations", listed(counts.asked.iter()));
    row("executions", counts.executions.to_string());
    row("accepted", counts.accepted.to_string());
    row("**lost**", format!("**{}**", counts.lost));
    row("**with a second outcome**", format!("**{}**", counts.second_outcomes));
    row("other rules broken", (report.violations.len() as u64 - counts.lost - counts.second_outcomes).to_string());
    row("outcomes", listed(counts.outcomes.iter()));
    row("starts of functions", counts.attempts.to_string());
    row("executions that started more than once", counts.run_again.to_string());
    row("attempt numbers given twice, as the rule allows", counts.numbers_repeated.to_string());
    row("attempts that a stopped or cut-off server sent late", counts.sent_late.to_string());
    row("direct publishes gone with a wiped queue", counts.wiped.to_string());
    row("kills", counts.kills.to_string());
    row("ended without a kill just then, and started again", listed(counts.restarted.iter()));
    row("left over", if report.leaks.is_empty() { "nothing".to_owned() } else { report.leaks.join("; ") });
    text.push_str("\n| fault | times | until a call succeeded again: p50 | p99 | max |\n|---|---|---|---|---|\n");
    for (fault, times) in &counts.faults {
        let _ = writeln!(text, "| {fault} | {times} | {} |", recovery(counts, fault));
    }
    text
}

/// Faults that struck while another had not been recovered from are counted, and have no time of their own.
fn recovery(counts: &Counts, fault: &str) -> String {
    let Some(times) = counts.recovery_us.get(fault).filter(|times| !times.is_empty()) else {
        return "| |".to_owned();
    };
    let at = |percent: usize| {
        let us = times[(times.len() * percent / 100).min(times.len() - 1)];
        format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000)
    };
    format!("{} | {} | {}", at(50), at(99), at(100))
}

fn listed<'a>(counts: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    counts.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_the_place_of_the_one_before_and_leaves_the_rest() {
        let mut report = Report::default();
        report.counts.executions = 1_234;
        report.counts.faults.insert("kill -9 worker".to_owned(), 3);
        report.counts.recovery_us.insert("kill -9 worker".to_owned(), vec![100_000, 250_000, 1_230_000]);
        let first = into_page("# Words\n", "embedded", "make chaos SEED=1", &report);
        assert!(first.starts_with("# Words\n") && first.contains("| executions | 1234 |"), "{first}");
        assert!(first.contains("| kill -9 worker | 3 | 0.25 s | 1.23 s | 1.23 s |"), "{first}");
        let second = into_page(&first, "cluster", "make chaos SEED=2", &report);
        report.counts.executions = 5_678;
        let third = into_page(&second, "embedded", "make chaos SEED=3", &report);
        assert!(third.contains("SEED=2") && third.contains("SEED=3") && !third.contains("SEED=1"), "{third}");
        assert_eq!(third.matches("## ").count(), 2, "{third}");
        assert_eq!(into_page(&third, "embedded", "make chaos SEED=3", &report).len(), third.len());
    }
}
