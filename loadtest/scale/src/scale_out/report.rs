//! What was found, for people: a few lines for a terminal, and `scale-out.md`.

use std::{fmt::Write as _, path::Path, time::Duration};

use flux_protocol::Timestamp;

use super::{Node, Sample, ScaledOut};
use crate::report::{machine, put};

/// Writes the page.
pub fn write(scaled: &ScaledOut, out: &Path) -> anyhow::Result<()> {
    let mut text = include_str!("../../templates/scale-out.md").to_owned();
    text.push_str(&figures(scaled)?);
    put(&out.join("scale-out.md"), &text)
}

/// The same without what it is about.
pub fn tell(scaled: &ScaledOut) -> Result<String, std::fmt::Error> {
    figures(scaled)
}

fn figures(scaled: &ScaledOut) -> Result<String, std::fmt::Error> {
    let (size, mut text) = (&scaled.size, String::new());
    writeln!(text, "\n- {}", machine())?;
    writeln!(
        text,
        "- at most {} nodes with {} slots each; an execution sleeps {} s; {} of them ended while all nodes were there\n",
        size.nodes,
        size.tasks,
        size.nap.as_secs_f64(),
        size.held
    )?;
    writeln!(text, "| accepted | lost | second outcomes | taken up again | most nodes at once | identities left |")?;
    writeln!(text, "|---:|---:|---:|---:|---:|---:|")?;
    writeln!(
        text,
        "| {} | {} | {} | {} | {} | {} |\n",
        scaled.accepted,
        scaled.lost.len(),
        scaled.second_outcomes(),
        scaled.again,
        scaled.peak(),
        scaled.let_in.len()
    )?;
    if scaled.refused > 0 {
        writeln!(text, "{} more were refused, and asked for again.\n", scaled.refused)?;
    }
    writeln!(
        text,
        "From the last end to no node: {}. A waiting call that found none was answered with {} after {}.\n",
        seconds(scaled.emptied_in),
        scaled.woke.0,
        seconds(scaled.woke.1)
    )?;
    writeln!(text, "| from the decision on a node to | nodes | p50 | most |\n|---|---:|---:|---:|")?;
    type Step = (&'static str, fn(&Node) -> Option<Timestamp>);
    let steps: [Step; 4] = [
        ("its launch, and that of all decided with it", |node| node.launched),
        ("its agent's process", |node| node.started),
        ("its first heartbeat", |node| node.heard),
        ("its first execution", |node| node.first_execution),
    ];
    for (name, step) in steps {
        let mut times: Vec<Duration> =
            scaled.nodes.iter().filter_map(|node| Some(step(node)?.since(node.decided))).collect();
        times.sort_unstable();
        let (Some(middle), Some(most)) = (times.get(times.len().saturating_sub(1) / 2), times.last()) else { continue };
        writeln!(text, "| {name} | {} | {} | {} |", times.len(), seconds(*middle), seconds(*most))?;
    }
    writeln!(text, "\n| second | coming | ready | going | unfinished |\n|---:|---:|---:|---:|---:|")?;
    let began = scaled.samples.first().map(|sample| sample.at).unwrap_or_default();
    for sample in changes(&scaled.samples) {
        let Sample { at, coming, ready, going, unfinished } = sample;
        let second = at.since(began).as_secs_f64();
        writeln!(text, "| {second:.1} | {coming} | {ready} | {going} | {unfinished} |")?;
    }
    Ok(text)
}

/// Those at which the nodes were not as at the one before.
fn changes(samples: &[Sample]) -> impl Iterator<Item = &Sample> {
    let of = |sample: &Sample| (sample.coming, sample.ready, sample.going);
    let first = samples.first().into_iter();
    first.chain(samples.windows(2).filter(move |pair| of(&pair[0]) != of(&pair[1])).map(|pair| &pair[1]))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
