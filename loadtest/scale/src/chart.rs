//! Memory over time as an SVG: a line for each process on a logarithmic scale, so that five megabytes and five hundred
//! are seen side by side, and a process that grows is seen to grow.

use std::fmt::Write as _;

use crate::meter::Series;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 5] = ["#2563eb", "#dc2626", "#6b7280", "#059669", "#d97706"];
/// MiB, powers of ten.
const LOWEST: f64 = 1.0;
const LABELS_APART: f64 = 14.0;

pub(crate) fn memory(series: &Series) -> String {
    let seconds = series.samples.last().map_or(1.0, |sample| sample.seconds.max(1.0));
    let most = (0..series.samples.len())
        .flat_map(|sample| series.names.iter().map(move |name| series.at(sample, name)))
        .fold(10.0, f64::max);
    let decades = most.log10().ceil();
    let x = |at: f64| LEFT + at / seconds * (WIDTH - LEFT - RIGHT);
    let y = |mib: f64| HEIGHT - BOTTOM - mib.max(LOWEST).log10() / decades * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Resident memory of each process over time</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    for (mib, label) in [(1.0_f64, "1 MB"), (10.0, "10 MB"), (100.0, "100 MB"), (1_000.0, "1 GB"), (10_000.0, "10 GB")]
    {
        if mib.log10() <= decades {
            let at = y(mib);
            put(
                &mut svg,
                &format!(
                    "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e5e7eb\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                    WIDTH - RIGHT,
                    LEFT - 6.0,
                    at + 4.0
                ),
            );
        }
    }
    for (at, what) in &series.marks {
        let at = x(*at);
        put(
            &mut svg,
            &format!(
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#9ca3af\" stroke-dasharray=\"3 3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#374151\">{what}</text>",
                HEIGHT - BOTTOM,
                at + 3.0,
                TOP - 8.0
            ),
        );
    }
    let last = series.samples.len().saturating_sub(1);
    let mut labels: Vec<(f64, usize)> =
        series.names.iter().enumerate().map(|(n, name)| (y(series.at(last, name)), n)).collect();
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut above = f64::MIN;
    for (at, n) in labels {
        let (name, colour) = (series.names[n], COLOURS[n % COLOURS.len()]);
        let points: Vec<String> = (0..=last)
            .filter_map(|sample| {
                Some(format!("{:.1},{:.1}", x(series.samples.get(sample)?.seconds), y(series.at(sample, name))))
            })
            .collect();
        let label = at.max(above + LABELS_APART);
        above = label;
        put(
            &mut svg,
            &format!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name} {:.0} MB</text>",
                points.join(" "),
                WIDTH - RIGHT + 6.0,
                label + 4.0,
                series.at(last, name)
            ),
        );
    }
    put(
        &mut svg,
        &format!(
            "<text x=\"{LEFT}\" y=\"{:.1}\">0 s</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{seconds:.0} s</text>",
            HEIGHT - 16.0,
            WIDTH - RIGHT,
            HEIGHT - 16.0
        ),
    );
    svg.push_str("</svg>\n");
    svg
}

fn put(svg: &mut String, element: &str) {
    let written = writeln!(svg, "{element}");
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Sample;

    #[test]
    fn a_line_for_each_process_and_a_mark_for_each_phase() {
        let samples = (0..3).map(|n| Sample { seconds: f64::from(n), memory_kib: vec![4_096, 512_000] }).collect();
        let series =
            Series { names: vec!["launcher", "nats-server"], samples, marks: vec![(1.0, "draining".to_owned())] };
        let svg = memory(&series);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("launcher 4 MB") && svg.contains("nats-server 500 MB") && svg.contains(">draining<"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
