//! The planner against a model of a broker: queues with arbitrary arrivals, pulls that are filled or expire,
//! executions that take their time. After every step the books must balance.

use std::collections::{HashMap, VecDeque};

use flux_protocol::PoolName;
use proptest::prelude::*;

use super::*;

mod fleet;
mod room;
mod world;

use world::*;

#[test]
fn a_single_busy_queue_gets_every_slot() {
    let mut world = World::new(budget(32));
    let queue = name(Lane::Invoke, 0);
    world.add(&queue, need(100, 128, u64::MAX), 50);
    world.arrive(&queue, 10_000);
    world.run(1_000, 5, |world| assert_eq!(world.running_of(&queue), 32));
    assert!(world.delivered[&queue] >= 32 * 20, "{:?}", world.delivered);
}

#[test]
fn sixteen_callers_of_one_function_find_a_credit_waiting() {
    let mut world = World::new(budget(32));
    let queue = name(Lane::Call, 0);
    world.add(&queue, need(100, 128, u64::MAX), 10);
    // Sixteen callers, each calling again as soon as it was answered.
    let mut asked = 0_u64;
    let calls = |world: &mut World, asked: &mut u64| {
        let busy = world.running_of(&queue) + world.waiting.get(&queue).copied().unwrap_or(0);
        let more = 16 - busy;
        *asked += more;
        for _ in 0..more {
            world.arrive(&queue, 1);
        }
    };
    calls(&mut world, &mut asked);
    world.pulls_sent = 0;
    world.run(2_000, 1, |world| calls(world, &mut asked));
    assert_eq!(world.longest_wait_ms, 0);
    let delivered = world.delivered[&queue];
    assert!(delivered > 2_500, "{delivered}");
    assert!(world.pulls_sent * 3 < delivered, "{} pulls for {delivered} executions", world.pulls_sent);
}

#[test]
fn an_idle_hot_queue_costs_ten_pulls_a_minute() {
    let mut world = World::new(budget(32));
    for function in 0..3 {
        world.add(&name(Lane::Call, function), need(100, 128, u64::MAX), 10);
    }
    world.run(10_000, 50, |_| ());
    world.pulls_sent = 0;
    world.run(60_000, 50, |_| ());
    assert!(world.pulls_sent <= 3 * 11, "{} pulls in a minute", world.pulls_sent);
}

#[test]
fn a_slow_function_does_not_starve_a_fast_one() {
    let mut world = World::new(budget(16));
    let (slow, fast) = (name(Lane::Invoke, 0), name(Lane::Invoke, 1));
    world.add(&slow, need(100, 128, u64::MAX), 10_000);
    world.add(&fast, need(100, 128, u64::MAX), 10);
    world.arrive(&slow, 10_000);
    world.arrive(&fast, 100_000);
    world.run(30_000, 10, |_| ());
    let before = world.delivered[&fast];
    world.run(10_000, 10, |world| assert!(world.running_of(&slow) <= 9, "{}", world.running_of(&slow)));
    assert!(world.delivered[&fast] - before > 5_000, "{:?}", world.delivered);
}

#[test]
fn a_burst_elsewhere_leaves_turns_for_an_idle_queue() {
    let mut world = World::new(budget(32));
    let (burst, quiet) = (name(Lane::Invoke, 0), name(Lane::Call, 1));
    world.add(&burst, need(100, 128, u64::MAX), 20);
    world.add(&quiet, need(100, 128, u64::MAX), 20);
    world.run(100, 5, |_| ());
    world.arrive(&burst, 1_000_000);
    world.waiting_since_ms.clear();
    world.waiting_since_ms.insert(burst.clone(), world.now_ms);
    let mut worst = 0;
    for _ in 0..20 {
        world.run(700, 5, |_| ());
        let (before, asked_at) = (world.delivered.get(&quiet).copied().unwrap_or(0), world.now_ms);
        world.arrive(&quiet, 1);
        while world.delivered.get(&quiet).copied().unwrap_or(0) == before {
            world.advance(5);
            assert!(world.now_ms - asked_at < 5_000, "the quiet queue starves");
        }
        worst = worst.max(world.now_ms - asked_at);
    }
    assert!(worst <= 50, "it waited {worst} ms");
}

/// What the planner grants now, without a broker.
fn granted(planner: &mut Planner, now_ms: u64) -> Vec<Grant> {
    let mut grants = Vec::new();
    planner.plan(now_ms, &mut grants);
    grants
}

#[test]
fn a_queue_that_others_cover_is_left_to_them_until_it_is_rung_for() {
    let mut planner = Planner::new(budget(8), 0);
    let (queue, other) = (name(Lane::Invoke, 0), name(Lane::Invoke, 1));
    let cover = |planner: &mut Planner, at_ms| {
        for grant in granted(planner, at_ms) {
            planner.ended(grant.credit, PullEnd::Covered, at_ms);
        }
    };
    planner.heat(&queue, Some(need(100, 128, u64::MAX)), true);
    planner.heat(&other, Some(need(100, 128, u64::MAX)), true);
    cover(&mut planner, 0);
    assert!(granted(&mut planner, 0).is_empty(), "covered, both");
    let wake_at_ms = planner.wake_at_ms().expect("to look again some time");
    assert!(wake_at_ms >= COVERED_MS, "not before {wake_at_ms}");
    assert!(granted(&mut planner, wake_at_ms - 1).is_empty());

    planner.heat(&queue, None, true);
    let rung = granted(&mut planner, 1_000);
    assert!(rung.iter().any(|grant| grant.name == queue), "work waits there");
    assert!(rung.iter().all(|grant| grant.name != other), "and there alone");
    for mut grant in rung {
        let slot = planner.delivered(&mut grant.credit, Some(0), 1_000);
        planner.ended(grant.credit, PullEnd::Expired, 1_000);
        planner.finished(slot);
    }
    // Having had work it is one of those that wait there again, until it is refused again.
    assert!(granted(&mut planner, 1_001).iter().any(|grant| grant.name == queue));
    let later = granted(&mut planner, 1_001 + COVERED_MS + COVERED_SPREAD_MS);
    assert!(later.iter().any(|grant| grant.name == other), "tried again after a while");
    assert_eq!(planner.wake_at_ms(), None, "nothing is covered any more");
}

/// One agent alone can have as many pulls at a queue as may wait there.
#[test]
fn a_queue_that_only_this_agent_covers_is_pulled_again_when_its_pulls_are_over() {
    let mut planner = Planner::new(budget(8), 0);
    let queue = name(Lane::Invoke, 0);
    planner.heat(&queue, Some(need(100, 128, u64::MAX)), true);
    let waiting = granted(&mut planner, 0).pop().expect("a pull for what may wait there");
    // One more was refused.
    planner.cover(waiting.credit.queue.0, 0);
    planner.ended(waiting.credit, PullEnd::Expired, 250);
    assert!(granted(&mut planner, 250).iter().any(|grant| grant.name == queue), "nobody else waits there");
}

/// With more hot queues than credit, agents that all began with the same ones would leave the others to nobody.
#[test]
fn agents_begin_with_different_queues() {
    let mut heard = std::collections::HashSet::new();
    for seed in 0..20 {
        let mut planner = Planner::new(budget(16), seed);
        for function in 0..100 {
            planner.heat(&name(Lane::Call, function), Some(need(100, 128, u64::MAX)), true);
        }
        heard.extend(granted(&mut planner, 0).into_iter().map(|grant| grant.name));
    }
    assert!(heard.len() > 60, "20 agents with 16 slots began with {} of 100 queues", heard.len());
}

#[test]
fn a_queue_that_gets_hot_is_heard_at_once_however_many_idle_ones_there_are() {
    let mut planner = Planner::new(budget(16), 0);
    for function in 0..100 {
        planner.heat(&name(Lane::Call, function), Some(need(100, 128, u64::MAX)), true);
    }
    // Nobody has work: what was taken for work takes turns and stands from now on.
    for at_ms in [0, 250, 500, 750, 1_000, 2_000, 3_000] {
        for grant in granted(&mut planner, at_ms) {
            planner.ended(grant.credit, PullEnd::Expired, at_ms);
        }
    }
    drop(granted(&mut planner, 4_000));
    let new = name(Lane::Call, 100);
    planner.heat(&new, Some(need(100, 128, u64::MAX)), true);
    assert!(granted(&mut planner, 4_000).iter().any(|grant| grant.name == new));
}

#[test]
fn a_cold_queue_is_not_covered_any_more() {
    let mut planner = Planner::new(budget(8), 0);
    let queue = name(Lane::Call, 0);
    planner.heat(&queue, Some(need(100, 128, u64::MAX)), true);
    for grant in granted(&mut planner, 0) {
        planner.ended(grant.credit, PullEnd::Covered, 0);
    }
    planner.cool(&queue);
    assert!(!planner.knows(&queue.function) && planner.covered.is_empty());
}

#[test]
fn a_queue_that_works_is_pulled_for_a_second_while_half_of_the_node_is_free() {
    let mut planner = Planner::new(budget(8), 0);
    let queue = name(Lane::Call, 0);
    let is_warm = |grant: &Grant| grant.expires == flux_protocol::limits::PULL_EXPIRES_WARM;
    planner.heat(&queue, Some(need(100, 128, u64::MAX)), false);
    let mut first = granted(&mut planner, 0).pop().expect("a pull");
    let mut slots = vec![planner.delivered(&mut first.credit, Some(0), 1_000)];
    planner.ended(first.credit, PullEnd::Expired, 1_000);
    let mut second = granted(&mut planner, 1_000);
    assert_eq!(second.iter().map(Grant::batch).sum::<u64>(), 1, "one message is no reason to expect many");
    let mut second = second.pop().expect("a pull");
    slots.push(planner.delivered(&mut second.credit, Some(0), 1_100));
    planner.ended(second.credit, PullEnd::Expired, 1_100);
    slots.into_iter().for_each(|slot| planner.finished(slot));
    let warm = granted(&mut planner, 1_100);
    let held: u64 = warm.iter().filter(|grant| is_warm(grant)).map(Grant::batch).sum();
    assert!((1..=4).contains(&held), "no more than half, for so long: {warm:?}");
    for grant in warm {
        planner.ended(grant.credit, PullEnd::Expired, 2_100);
    }
    assert!(!granted(&mut planner, 2_100).iter().any(is_warm), "nothing came");
}

#[test]
fn a_ring_is_served_before_turns() {
    let mut world = World::new(budget(4));
    for function in 0..200 {
        world.add(&name(Lane::Call, function), need(100, 128, u64::MAX), 10);
    }
    world.run(20_000, 10, |_| ());
    let rung = name(Lane::Call, 57);
    let known = world.needs[&rung.function];
    world.arrive(&rung, 1);
    world.planner.heat(&rung, Some(known), true);
    world.run(300, 5, |_| ());
    assert_eq!(world.delivered.get(&rung), Some(&1));
}

#[test]
fn functions_that_each_take_the_whole_node_wait_for_one_turn_at_the_most() {
    let total = Amount { tasks: 32, cpu_millicores: 8_000, memory_mb: 16_000 };
    let mut world = World::new(total);
    let calls = [0, 1].map(|function| name(Lane::Call, function));
    for function in [0, 1] {
        for lane in [Lane::Call, Lane::Invoke] {
            world.add(&name(lane, function), need(8_000, 128, u64::MAX), 5);
        }
    }
    world.run(3_000, 5, |_| ());
    world.longest_wait_ms = 0;
    for n in 0..40 {
        let called = &calls[n % 2];
        let known = world.needs[&called.function];
        world.arrive(called, 1);
        // As a gateway tells it, a few milliseconds after the call.
        world.planner.heat(called, Some(known), true);
        world.run(500, 5, |_| ());
    }
    // The turn of an idle queue, and no second one of another.
    let turn_ms = u64::try_from(flux_protocol::limits::PULL_EXPIRES_CONTENDED.as_millis()).expect("short");
    assert!(world.longest_wait_ms <= turn_ms + 10, "{} ms", world.longest_wait_ms);
    assert_eq!(world.delivered.values().sum::<u64>(), 40);
}

#[test]
fn more_hot_queues_than_slots_take_turns() {
    let mut world = World::new(budget(8));
    for function in 0..40 {
        world.add(&name(Lane::Call, function), need(100, 128, u64::MAX), 10);
    }
    world.run(1_000, 10, |_| ());
    for function in 0..40 {
        world.arrive(&name(Lane::Call, function), 1);
    }
    world.run(31_000, 10, |_| ());
    for function in 0..40 {
        assert_eq!(world.delivered.get(&name(Lane::Call, function)), Some(&1), "function {function}");
    }
}

#[test]
fn a_big_function_gets_its_room_beside_small_ones() {
    let total = Amount { tasks: 32, cpu_millicores: 8_000, memory_mb: 1_600 };
    let mut world = World::new(total);
    let (small, big) = (name(Lane::Invoke, 0), name(Lane::Invoke, 1));
    world.add(&small, need(100, 128, u64::MAX), 2_000);
    world.arrive(&small, 100_000);
    // Staggered, so that never much gets free at once.
    world.run(3_000, 37, |_| ());
    world.add(&big, need(100, 1_200, u64::MAX), 500);
    world.arrive(&big, 3);
    world.run(60_000, 37, |_| ());
    assert!(world.delivered.get(&big).copied().unwrap_or(0) >= 3, "{:?}", world.delivered);
}

#[test]
fn a_claim_that_cannot_be_served_ends() {
    let total = Amount { tasks: 32, cpu_millicores: 8_000, memory_mb: 1_600 };
    let mut world = World::new(total);
    let (day, small, big) = (name(Lane::Invoke, 0), name(Lane::Invoke, 1), name(Lane::Invoke, 2));
    world.add(&day, need(100, 1_000, 1), 86_400_000);
    world.arrive(&day, 1);
    world.add(&small, need(100, 128, u64::MAX), 100);
    world.arrive(&small, 1_000_000);
    world.add(&big, need(100, 800, u64::MAX), 100);
    world.arrive(&big, 1);
    world.run(200_000, 50, |world| {
        if let Some(at) = world.planner.wake_at_ms() {
            assert!(at <= world.now_ms + LAST_CLAIM_MS);
        }
    });
    // 4 of the small ones fit beside it, each 100 ms and a step: at the worst a fifth of that is lost.
    let before = world.delivered[&small];
    world.run(200_000, 50, |_| ());
    assert!(world.delivered[&small] > before + 3_500, "{:?}", world.delivered);
}

#[test]
fn two_lanes_share_a_concurrency_of_one() {
    let mut world = World::new(budget(8));
    let (call, invoke) = (name(Lane::Call, 0), name(Lane::Invoke, 0));
    world.add(&call, need(100, 128, 1), 20);
    world.add(&invoke, need(100, 128, 1), 20);
    world.run(500, 5, |_| ());
    for queue in [&call, &invoke] {
        let asked_at = world.now_ms;
        world.arrive(queue, 1);
        while !world.delivered.contains_key(queue) {
            world.advance(5);
            assert!(world.now_ms - asked_at < 400, "{queue:?} waits");
        }
    }
}

#[test]
fn a_lane_that_gets_hot_later_does_not_wait_for_a_long_pull_of_the_other() {
    let mut world = World::new(budget(8));
    let (call, invoke) = (name(Lane::Call, 0), name(Lane::Invoke, 0));
    world.add(&call, need(100, 128, 1), 20);
    world.arrive(&call, 1);
    world.run(3_000, 5, |_| ());
    world.add(&invoke, need(100, 128, 1), 20);
    world.arrive(&invoke, 1);
    world.run(400, 5, |_| ());
    assert_eq!(world.delivered.get(&invoke), Some(&1));
}

#[test]
fn a_cold_queue_is_left_alone_and_forgotten() {
    let mut world = World::new(budget(8));
    let queue = name(Lane::Call, 0);
    world.add(&queue, need(100, 128, u64::MAX), 20);
    world.planner.cool(&queue);
    world.run(40_000, 50, |_| ());
    assert_eq!(world.credit_of(&queue), 0);
    assert!(world.planner.used.tasks == 0);
    assert!(!world.planner.knows(&queue.function));
    assert!(world.planner.by_name.is_empty());
}

#[test]
fn paused_grants_nothing_and_resumes() {
    let mut world = World::new(budget(8));
    let queue = name(Lane::Call, 0);
    world.planner.pause();
    world.add(&queue, need(100, 128, u64::MAX), 20);
    world.arrive(&queue, 5);
    assert!(world.planner.used.tasks == 0);
    world.planner.resume();
    world.settle();
    assert_eq!(world.delivered[&queue], 5);
}

#[test]
fn a_function_that_cannot_run_here_is_not_pulled() {
    let mut world = World::new(budget(2));
    let (huge, unknown) = (name(Lane::Call, 0), name(Lane::Call, 1));
    world.add(&huge, need(100, 100_000, u64::MAX), 20);
    world.planner.heat(&unknown, None, true);
    world.settle();
    assert!(world.planner.used.tasks == 0);
    let known = need(100, 128, u64::MAX);
    world.needs.insert(unknown.function.clone(), known);
    world.duration_ms.insert(unknown.clone(), 20);
    world.planner.set_need(&unknown.function, Some(known));
    world.settle();
    assert!(world.credit_of(&unknown) > 0);
}

#[derive(Debug, Clone)]
struct Given {
    lane: Lane,
    function: usize,
    cpu: u32,
    memory: u32,
    max_concurrency: u64,
    duration_ms: u64,
    /// Of a thousand steps, how many bring work, and how much at once.
    arrivals: u32,
    burst: u64,
}

fn given() -> impl Strategy<Value = Given> {
    let lane = prop_oneof![Just(Lane::Call), Just(Lane::Invoke)];
    let most = prop_oneof![Just(1_u64), 2_u64..6, Just(u64::MAX)];
    (lane, 0_usize..6, 50_u32..400, 32_u32..500, most, 5_u64..400, 0_u32..300, 1_u64..40).prop_map(
        |(lane, function, cpu, memory, max_concurrency, duration_ms, arrivals, burst)| Given {
            lane,
            function,
            cpu,
            memory,
            max_concurrency,
            duration_ms,
            arrivals,
            burst,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever arrives: the budget holds, no room stays unused beside work, and nothing waits for ever.
    #[test]
    fn books_balance_and_nobody_starves(
        tasks in 1_u64..40,
        queues in prop::collection::vec(given(), 1..10),
        pending_counts in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let total = Amount { tasks, cpu_millicores: tasks.max(4) * 100, memory_mb: 512.max(tasks * 64) };
        let mut world = World::new(total);
        world.pending_counts = pending_counts;
        for of in &queues {
            world.add(&name(of.lane, of.function), need(of.cpu, of.memory, of.max_concurrency), of.duration_ms);
        }
        let mut random = flux_testkit::Seed::new(seed);
        world.run(20_000, 10, |world| {
            for of in &queues {
                if random.below(1_000) < of.arrivals.into() {
                    let queue = name(of.lane, of.function);
                    // Bounded, so that a wait means being passed over and not a queue that only ever grows.
                    if world.waiting.get(&queue).copied().unwrap_or(0) < 200 {
                        world.arrive(&queue, of.burst);
                    }
                }
            }
        });
        // At the worst each of the other queues claims before it, for as long as a standing pull may hold its room.
        let most = (LAST_CLAIM_MS + BARE_CLAIM_AFTER_MS) * (queues.len() as u64 + 1);
        // No more arrivals: everything drains, for every queue that can run here at all.
        let began_ms = world.now_ms;
        while world.waiting.values().any(|left| *left > 0) {
            world.run(10_000, 50, |_| ());
            let starved = world.starved(most);
            prop_assert!(starved.is_none(), "{:?} starved of {:?}", starved, queues);
            prop_assert!(world.now_ms - began_ms < 4_000_000, "it hardly moves: {:?}", world.waiting);
        }
        prop_assert!(world.longest_wait_ms < most, "one waited {} ms", world.longest_wait_ms);
    }
}
