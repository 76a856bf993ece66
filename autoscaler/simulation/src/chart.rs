//! Load, nodes and wait over time, as SVG: a picture for each traffic, one below the other.

use std::fmt::Write as _;

use crate::{Moment, Outcome, Run};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 36.0;
const PANEL: f64 = 110.0;
const GAP: f64 = 14.0;
const BOTTOM: f64 = 30.0;
/// One sample a pixel is what can be seen.
const SAMPLES: usize = 720;

/// Text and lines follow the reader's scheme.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}.axis{stroke:#8c959f;stroke-opacity:.4}\
    polyline{fill:none;stroke-width:1.3}.load{stroke:#8c959f}.flux{stroke:#0969da}.oracle{stroke:#2da44e}\
    .predecessor{stroke:#bc4c00}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}";
/// Whose nodes and waits are drawn.
const DRAWN: [&str; 3] = ["flux", "oracle", "predecessor"];

/// `slots` turns a load in slots into nodes.
pub fn chart(outcomes: &[Outcome], slots: u32) -> String {
    let each = TOP + 2.0 * PANEL + GAP + BOTTOM;
    let height = each * outcomes.iter().map(|_| 1.0).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-label=\"Load, nodes and wait over time\">\n<style>{STYLE}</style>\n"
    );
    let mut top = TOP;
    for outcome in outcomes {
        draw(&mut svg, outcome, f64::from(slots), top);
        top += each;
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, outcome: &Outcome, slots: f64, top: f64) {
    let drawn: Vec<&Run> = outcome.runs.iter().filter(|run| DRAWN.contains(&run.policy.as_str())).collect();
    let seconds = drawn.iter().filter_map(|run| run.moments.last()).map(|last| last.second).fold(1.0, f64::max);
    let most = |of: &dyn Fn(&Moment) -> f64| drawn.iter().flat_map(|run| &run.moments).map(of).fold(1.0, f64::max);
    let nodes = most(&|moment| f64::from(moment.nodes));
    let wait = most(&|moment| moment.wait);
    let below = top + PANEL + GAP;
    put(
        svg,
        &format!(
            "<text x=\"{LEFT}\" y=\"{:.0}\">{}: nodes, and the load that they are for</text>",
            top - 12.0,
            outcome.traffic
        ),
    );
    frame(svg, top, &format!("{nodes:.0}"));
    frame(svg, below, &format!("{wait:.0} s wait"));
    // The load that is there, whoever serves it: of the run in which nothing waits.
    if let Some(oracle) = drawn.iter().find(|run| run.policy == "oracle") {
        line(svg, oracle, "load", seconds, top, nodes, &|moment| moment.demand / slots);
    }
    let mut label = top + 12.0;
    for run in &drawn {
        line(svg, run, &run.policy, seconds, top, nodes, &|moment| f64::from(moment.nodes));
        line(svg, run, &run.policy, seconds, below, wait, &|moment| moment.wait);
        let x = WIDTH - RIGHT + 10.0;
        put(
            svg,
            &format!(
                "<polyline class=\"{}\" points=\"{x},{:.0} {:.0},{:.0}\"/>",
                run.policy,
                label - 4.0,
                x + 16.0,
                label - 4.0
            ),
        );
        put(svg, &format!("<text x=\"{:.0}\" y=\"{label:.0}\">{}</text>", x + 22.0, run.policy));
        label += 16.0;
    }
    let (right, foot) = (WIDTH - RIGHT, below + PANEL + 16.0);
    put(svg, &format!("<text x=\"{right}\" y=\"{foot:.0}\" text-anchor=\"end\">{:.1} h</text>", seconds / 3600.0));
}

fn frame(svg: &mut String, top: f64, most: &str) {
    for (y, label) in [(top, most), (top + PANEL, "0")] {
        put(
            svg,
            &format!("<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT),
        );
        put(svg, &format!("<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0, y + 4.0));
    }
}

fn line(svg: &mut String, run: &Run, class: &str, seconds: f64, top: f64, most: f64, of: &dyn Fn(&Moment) -> f64) {
    let stride = run.moments.len().div_ceil(SAMPLES).max(1);
    let points = run.moments.chunks(stride).map(|some| {
        // Of what falls on one pixel, the most.
        let value = some.iter().map(of).fold(0.0, f64::max).min(most);
        let x = LEFT + some[0].second / seconds * (WIDTH - LEFT - RIGHT);
        format!("{x:.1},{:.1}", top + PANEL * (1.0 - value / most))
    });
    put(svg, &format!("<polyline class=\"{class}\" points=\"{}\"/>", points.collect::<Vec<_>>().join(" ")));
}

fn put(svg: &mut String, element: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "{element}");
}
