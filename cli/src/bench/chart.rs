//! The chart beside the report: how far each target is reached, on a logarithmic scale.
//!
//! Written by hand, since it is a dozen rectangles: a plotting crate would bring a font's metrics and a fixed
//! background, and this has to be readable on white and on dark.

use std::fmt::Write as _;

/// One target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bar {
    pub(super) label: String,
    /// By durability: its name, how many times better than asked for, and the ratio in words.
    pub(super) values: Vec<(&'static str, f64, String)>,
}

const WIDTH: f64 = 900.0;
const LABELS: f64 = 400.0;
const RIGHT: f64 = 150.0;
const BAR: f64 = 12.0;
const GAP: f64 = 10.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 24.0;

/// Middle greys and saturated colours have contrast on both backgrounds; text follows the reader's scheme.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}\
    .quiet{fill:#57606a}.axis{stroke:#8c959f;stroke-opacity:.4}.goal{stroke:#8250df;stroke-width:2}\
    .process{fill:#2da44e}.process.short{fill:#bf8700}.fsync{fill:#0969da}.fsync.short{fill:#bc4c00}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.goal{stroke:#ab7df8}}";

pub(super) fn svg(bars: &[Bar]) -> String {
    let values = || bars.iter().flat_map(|bar| &bar.values).map(|(_, value, _)| *value);
    // Whole decades, with one on either side of the goal at least.
    let least = values().fold(0.1, f64::min).max(1e-3).log10().floor();
    let most = values().fold(10.0, f64::max).min(1e3).log10().ceil();
    let plot = WIDTH - LABELS - RIGHT;
    let x = |value: f64| LABELS + plot * ((value.log10().clamp(least, most) - least) / (most - least));
    let heights: f64 = bars.iter().map(|bar| count(bar.values.len()) * BAR + GAP).sum();
    let height = TOP + heights + BOTTOM;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-label=\"How far each performance target is reached\">\n<style>{STYLE}</style>\n\
         <text x=\"{LABELS}\" y=\"16\">times better than the target, logarithmic: reached is right of the line</text>\n"
    );
    let mut decade = least;
    while decade <= most {
        let (value, at) = (10f64.powf(decade), x(10f64.powf(decade)));
        let class = if decade == 0.0 { "goal" } else { "axis" };
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text class=\"quiet\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
            TOP - 8.0,
            height - BOTTOM,
            TOP - 14.0
        );
        decade += 1.0;
    }
    let mut y = TOP;
    for bar in bars {
        let group = count(bar.values.len()) * BAR;
        let label = escaped(&bar.label);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LABELS - 8.0,
            y + group / 2.0 + 4.0
        );
        for (durability, value, said) in &bar.values {
            // From the goal to the left or to the right.
            let (from, to) = (x(value.min(1.0)), x(value.max(1.0)));
            let (class, end) = (if *value < 1.0 { " short" } else { "" }, WIDTH - RIGHT + 8.0);
            let _ = writeln!(
                svg,
                "<rect class=\"{durability}{class}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>\
                 <text class=\"quiet\" x=\"{end:.1}\" y=\"{:.1}\">{}</text>",
                (to - from).max(1.0),
                BAR - 2.0,
                y + BAR - 2.0,
                escaped(said)
            );
            y += BAR;
        }
        y += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

#[allow(clippy::cast_precision_loss)] // two or three
fn count(values: usize) -> f64 {
    values as f64
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
