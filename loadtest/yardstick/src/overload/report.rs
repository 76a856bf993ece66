//! Tables in Markdown, for people and for `docs/overload.md`.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use super::{
    Beside, Shown,
    figures::{Latency, Outcome, per_s},
    memory::Rss,
    readers::Readers,
};

pub(super) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    format!("{cores} cores, shared with the load generator; load average before: {}\n", load.join(" "))
}

pub(super) fn scenario(shown: &Shown, length: Duration) -> String {
    let Shown { name, at_capacity, overload, .. } = shown;
    let mut text =
        format!("### {name}, {:.0} s\n\n| | a second | p50 | p99 |\n|---|---:|---:|---:|\n", length.as_secs_f64());
    row(&mut text, "at capacity", shown.capacity_per_s, *at_capacity);
    row(&mut text, &format!("offered {:.0}/s: accepted", shown.offered_per_s), shown.accepted_per_s, overload.accepted);
    row(&mut text, "refused", per_s(overload.refused.count, length), overload.refused);
    text.push('\n');
    let ratio = |of: f64, to: f64| of / to.max(0.001);
    let lines = [
        verdict(
            "accepted, latency to that at capacity, p50 and p99",
            &format!(
                "{:.2} × and {:.2} ×",
                ratio(overload.accepted.p50_ms, at_capacity.p50_ms),
                ratio(overload.accepted.p99_ms, at_capacity.p99_ms)
            ),
            "≤ 2 ×",
            overload.accepted.p50_ms <= 2.0 * at_capacity.p50_ms
                && overload.accepted.p99_ms <= 2.0 * at_capacity.p99_ms,
        ),
        verdict(
            "accepted, to capacity",
            &format!("{:.2} ×", ratio(shown.accepted_per_s, shown.capacity_per_s)),
            "",
            true,
        ),
        verdict("refusals, p99", &ms(overload.refused.p99_ms), "< 50 ms", overload.refused.p99_ms < 50.0),
        verdict(
            "recovered after the load's end in",
            &format!("{:.2} s", shown.recovered_after.as_secs_f64()),
            "≤ 2 s",
            shown.recovered_after <= Duration::from_secs(2),
        ),
        strange(overload),
    ];
    for line in lines {
        let _ = writeln!(text, "- {line}");
    }
    let _ = write!(text, "\n{}", memory(&shown.memory));
    text
}

pub(super) fn beside(shown: &Beside) -> String {
    let Beside { alone, calls, flood, .. } = shown;
    let mut text = format!(
        "### synchronous calls ({:.0}/s) beside a flood of asynchronous invocations ({:.0}/s)\n\n| | requests | p50 | p99 |\n|---|---:|---:|---:|\n",
        shown.rate, shown.flood_per_s
    );
    for (what, latency) in [
        ("calls alone, answered", alone.accepted),
        ("calls beside the flood, answered", calls.accepted),
        ("calls beside the flood, refused", calls.refused),
        ("invocations accepted", flood.accepted),
        ("invocations refused", flood.refused),
    ] {
        let _ = writeln!(text, "| {what} | {} | {} | {} |", latency.count, ms(latency.p50_ms), ms(latency.p99_ms));
    }
    let _ =
        write!(text, "\n- calls: {}\n- invocations: {}\n\n{}", strange(calls), strange(flood), memory(&shown.memory));
    text
}

pub(super) fn readers(shown: &Readers) -> String {
    let Readers { asked, reading, alone, beside, kib_each } = shown;
    format!(
        "### {asked} idle readers of an event stream\n\n\
         - {reading} of them read; {kib_each:.1} KiB of resident memory for each\n\
         - calls without them: p50 {}, p99 {}; beside them: p50 {}, p99 {}, {} refused, {}\n",
        ms(alone.accepted.p50_ms),
        ms(alone.accepted.p99_ms),
        ms(beside.accepted.p50_ms),
        ms(beside.accepted.p99_ms),
        beside.refused.count,
        strange(beside),
    )
}

fn row(text: &mut String, what: &str, per_s: f64, latency: Latency) {
    let _ = writeln!(text, "| {what} | {per_s:.0} | {} | {} |", ms(latency.p50_ms), ms(latency.p99_ms));
}

fn verdict(what: &str, value: &str, bound: &str, holds: bool) -> String {
    match (bound, holds) {
        ("", _) => format!("{what}: {value}"),
        (bound, true) => format!("{what}: {value} (reach: {bound})"),
        (bound, false) => format!("{what}: {value} (**not reached**: {bound})"),
    }
}

/// What should not be there.
fn strange(outcome: &Outcome) -> String {
    let statuses: Vec<String> = outcome.statuses.iter().map(|(status, count)| format!("{count} × {status}")).collect();
    format!(
        "{} sent, refused: {}; without `Retry-After`: {}; neither accepted nor 429 or 503: {}; broken: {}; not sent: {}; sent late, p50 {}, p99 {}",
        outcome.sent,
        if statuses.is_empty() { "none".to_owned() } else { statuses.join(", ") },
        outcome.without_retry_after,
        outcome.other,
        outcome.broken,
        outcome.unsent,
        ms(outcome.late.p50_ms),
        ms(outcome.late.p99_ms)
    )
}

/// By process: at the beginning, the most, at the end; and a few points in time.
fn memory(seen: &[Rss]) -> String {
    let mut text =
        "| resident memory, MiB | 0 % | 25 % | 50 % | 75 % | 100 % of the load |\n|---|---:|---:|---:|---:|---:|\n"
            .to_owned();
    let at = |percent: usize| seen.get(seen.len().saturating_sub(1) * percent / 100);
    let names: BTreeMap<&String, ()> = seen.iter().flat_map(|rss| rss.keys().map(|name| (name, ()))).collect();
    for name in names.keys() {
        let points =
            [0, 25, 50, 75, 100].map(|percent| at(percent).and_then(|rss| rss.get(*name)).copied().unwrap_or_default());
        let points: Vec<String> = points.iter().map(|mib| format!("{mib:.0}")).collect();
        let _ = writeln!(text, "| {name} | {} |", points.join(" | "));
    }
    text
}

fn ms(value: f64) -> String {
    format!("{value:.1} ms")
}
