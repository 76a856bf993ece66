//! A short run of what `make chaos` does for longer.

#![allow(clippy::print_stdout, reason = "the counts belong into the test's own output")]

use std::time::Duration;

use flux_chaos::run::{Options, Shape, run};
use flux_testkit::Seed;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_processes_of_a_flux_up_are_killed_and_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options {
        shape: Shape::Embedded,
        seed: Seed::of_this_run().next_u64(),
        clients: 14,
        at_least: Duration::from_secs(30),
        executions: 2_000,
        kills: 50,
        thorough: false,
        history: dir.path().join("history.jsonl"),
    };
    let report = run(&options).await.expect("a run");
    println!("{report}");
    if !report.holds() {
        let kept = dir.keep();
        panic!("the history is in {}: {report}", kept.display());
    }
    assert!(report.counts.kills >= 50 && report.counts.executions >= 2_000, "{:#?}", report.counts);
}
