//! A tenth of `make scale`, and of what it queues a twentieth: nothing is lost or ends twice, and nothing that is measured here grows beyond reason.
//!
//! The bounds are far above what is measured, since CPU is shared with whatever else the machine does: they find what
//! grows with the number of functions or agents, not what got a little slower. `make scale` gives the figures.

#![allow(clippy::print_stdout, reason = "measured figures belong into the test's own output")]

mod scale_out;

use std::{path::Path, time::Duration};

use flux_scale::{Cost, Size, Way, large, small};

/// Large against small, processor time of one invocation. The goal at full size is 1.2; what a tick of 10 ms and a busy
/// machine do to a few seconds of work is the rest.
const COST: f64 = 3.0;
/// A pull or a table that grows with each execution would show as hundreds of MB.
const GROWS_AT_MOST_MB: f64 = 48.0;
const COLD: Duration = Duration::from_secs(1);

fn cost_of(costs: &[Cost], way: Way) -> f64 {
    costs.iter().find(|cost| cost.way == way).expect("every way is measured").cpu_us()
}

#[tokio::test]
async fn a_tenth_of_the_full_size() {
    let program = Path::new(env!("CARGO_BIN_EXE_flux-scale"));
    let size = Size::tenth();
    let small =
        small(Size { calls: size.calls, publishes: size.publishes, cold: size.cold, ..Size::small() }, program).await;
    let large = large(size, program).await;

    let drained = &large.drained;
    println!("{} drained at {:.0}/s; registering took {:?}", drained.queued, drained.per_second(), large.registering);
    assert_eq!(drained.queued, size.invocations as u64);
    assert_eq!(drained.ended.successes, drained.queued, "each ends once, with success: {:?}", drained.ended);
    assert_eq!(drained.ended.others, 0);

    for way in [Way::Call, Way::Publish] {
        let (few, many) = (cost_of(&small.costs, way), cost_of(&large.costs, way));
        println!("{}: {few:.0} µs of CPU, {many:.0} µs among many: {:.2}", way.name(), many / few);
        assert!(many / few < COST, "{}: {few:.0} µs in the small case, {many:.0} µs in the large one", way.name());
    }
    for cost in &large.hot_costs {
        let Some(calls) = &cost.calls else { continue };
        println!(
            "over all hot functions, {}: {} of {} slow, p95 {:?}",
            cost.way.name(),
            calls.slow,
            cost.count,
            calls.p95
        );
        assert!(calls.refusals.is_empty(), "refused beside idle agents: {:?}", calls.refusals);
        // Where nobody waits and nobody is told, most of them wait for their gateway to call every agent.
        assert!(calls.slow * 4 <= cost.count, "{}: {} of {} slow", cost.way.name(), calls.slow, cost.count);
    }
    for (name, cold) in [("call", large.cold.call), ("async", large.cold.accepted), ("published", large.cold.published)]
    {
        println!("the first message of a cold function, {name}: p50 {:?}, p95 {:?}", cold.p50, cold.p95);
        assert!(cold.p50 < COLD, "{name}: {cold:?}");
    }
    for name in ["gateway", "agent", "launcher"] {
        let (first, last) =
            (drained.memory.at(drained.first_sample, name), drained.memory.at(drained.last_sample, name));
        println!("{name}: {first:.1} MB after the first hundredth, {last:.1} MB at the end");
        assert!(last - first < GROWS_AT_MOST_MB, "{name} grew from {first:.1} to {last:.1} MB");
    }
}
