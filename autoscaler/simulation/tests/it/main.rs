//! Simulation is the same every time, and finds what docs/autoscaler.md says.

use flux_simulation::{Setting, Shape, Traffic, chart, compare, markdown};

#[test]
fn the_same_seed_is_the_same_run() {
    let setting = Setting::default();
    let outcome = |seed| compare(&Traffic::of_shape(Shape::Zero, seed), &setting);
    let (one, again, other) = (outcome(7), outcome(7), outcome(8));
    assert_eq!(one, again);
    assert_ne!(one.runs[0].waits, other.runs[0].waits);
}

/// With room for what chance does: the figures themselves are in the documentation.
#[test]
fn what_the_documentation_says_of_cost_and_wait_holds() {
    for (shape, cost, quick) in
        [(Shape::Steady, 1.25, true), (Shape::Spike, 1.25, true), (Shape::Burst, 1.25, true), (Shape::Zero, 1.3, false)]
    {
        let outcome = compare(&Traffic::of_shape(shape, 1), &Setting::default());
        assert!(outcome.cost_ratio() <= cost, "{}: {}", shape.as_str(), outcome.cost_ratio());
        let (wait, third) = outcome.waits();
        assert!(!quick || wait <= third, "{}: p95 {wait} s, a third of the predecessor's {third} s", shape.as_str());
        let oracle = &outcome.runs[1];
        assert!(oracle.wait(99) < 0.5, "{}: the oracle's p99 is {} s", shape.as_str(), oracle.wait(99));
        assert!(outcome.runs.iter().all(|run| !run.waits.is_empty()));
    }
}

#[test]
fn a_trace_is_read_and_what_is_none_is_named() {
    let trace = "# second,invocations\n0,5\n1,10,0.5\n\n60,3\n";
    let traffic = Traffic::of_trace("made", trace, 1).expect("a trace");
    assert_eq!((traffic.arrivals.len(), traffic.lasts), (18, 61));
    assert!(traffic.arrivals.windows(2).all(|pair| pair[0].at <= pair[1].at));
    for (text, said) in [
        ("x,1", "line 1: the first field"),
        ("1,-2", "line 1: the second field"),
        ("5,1\n1,1", "line 2: it is earlier"),
        ("1,1,x", "line 1: the third field"),
        ("# nothing\n", "no invocation"),
        ("0,99999999", "more than"),
    ] {
        let error = Traffic::of_trace("bad", text, 1).expect_err(text).to_string();
        assert!(error.contains(said), "{text:?}: {error}");
    }
}

#[test]
fn a_chart_has_everyone_in_it_and_a_table_the_goals() {
    let outcomes =
        [compare(&Traffic::of_trace("made", "0,50\n300,50\n900,10\n", 1).expect("a trace"), &Setting::default())];
    let svg = chart(&outcomes, 8);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    for policy in ["load", "flux", "oracle", "predecessor"] {
        assert!(svg.contains(&format!("<polyline class=\"{policy}\"")), "{policy}");
    }
    assert!(markdown(&outcomes).contains("of the oracle's"));
}
