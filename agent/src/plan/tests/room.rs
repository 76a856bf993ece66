//! Where hot functions have no room together: who is heard, how soon, and what waiting costs.

use super::*;

/// Of four functions, each of which takes a quarter of the node, over both lanes: more idle queues than have room.
fn crowd_of_large_ones() -> (World, Vec<QueueName>) {
    let total = Amount { tasks: 32, cpu_millicores: 8_000, memory_mb: 16_000 };
    let mut world = World::new(total);
    for function in 0..4 {
        for lane in [Lane::Call, Lane::Invoke] {
            world.add(&name(lane, function), need(2_000, 64, u64::MAX), 2);
        }
    }
    world.run(10_000, 5, |_| ());
    world.longest_wait_ms = 0;
    (world, (0..4).map(|function| name(Lane::Call, function)).collect())
}

/// One call, told to the agent by a gateway when nobody took it for five milliseconds, to its end. How long it waited.
fn call(world: &mut World, queue: &QueueName) -> u64 {
    let (before, asked_at) = (world.delivered.get(queue).copied().unwrap_or(0), world.now_ms);
    world.arrive(queue, 1);
    let mut waited = 0;
    while world.delivered.get(queue).copied().unwrap_or(0) == before {
        world.advance(1);
        waited = world.now_ms - asked_at;
        if waited == 5 {
            world.planner.ring(queue);
            world.settle();
        }
        assert!(waited < 5_000, "{queue:?} starves");
    }
    world.run(3, 1, |_| ());
    waited
}

#[test]
fn idle_queues_leave_room_for_the_largest_that_is_told_of() {
    let (mut world, calls) = crowd_of_large_ones();
    for round in 0..50 {
        for queue in &calls {
            let waited = call(&mut world, queue);
            assert!(waited <= 6, "{waited} ms in round {round}");
            world.run(400, 5, |_| ());
        }
    }
}

#[test]
fn who_calls_again_and_again_finds_a_credit_waiting_beside_idle_queues_that_have_no_room() {
    let (mut world, calls) = crowd_of_large_ones();
    for queue in &calls {
        let waits: Vec<u64> = (0..500).map(|_| call(&mut world, queue)).collect();
        let told = waits.iter().filter(|waited| **waited > 0).count();
        assert!(told <= 50, "{told} of 500 had to be told of");
        assert!(waits.iter().all(|waited| *waited <= 6), "{:?}", waits.iter().max());
    }
}

#[test]
fn who_calls_after_a_burst_on_the_other_lane_finds_a_credit_waiting_too() {
    let (mut world, calls) = crowd_of_large_ones();
    for small in 4..6 {
        world.add(&name(Lane::Call, small), need(500, 16, 64), 1);
    }
    world.arrive(&name(Lane::Invoke, 0), 5_000);
    while world.waiting.values().any(|left| *left > 0) {
        world.advance(1);
    }
    let waits: Vec<u64> = (0..500).map(|_| call(&mut world, &calls[0])).collect();
    let told = waits.iter().filter(|waited| **waited > 0).count();
    assert!(told <= 50, "{told} of 500 had to be told of");
}

/// How long the next message waits that nobody tells of, while `work` goes on.
fn published_beside(world: &mut World, queue: &QueueName, mut work: impl FnMut(&mut World)) -> u64 {
    let (before, began_ms) = (world.delivered.get(queue).copied().unwrap_or(0), world.now_ms);
    world.arrive(queue, 1);
    while world.delivered.get(queue).copied().unwrap_or(0) == before {
        work(world);
        assert!(world.now_ms - began_ms < 30_000, "{queue:?} starves");
    }
    world.now_ms - began_ms
}

#[test]
fn who_calls_again_and_again_does_not_keep_the_last_room_from_what_nobody_tells_of() {
    for (total, each) in [(1, need(100, 128, u64::MAX)), (4, need(400, 128, u64::MAX)), (4, need(300, 128, u64::MAX))] {
        let mut world = World::new(budget(total));
        let (called, published) = (name(Lane::Call, 0), name(Lane::Invoke, 1));
        for queue in [&called, &published] {
            world.add(queue, each, 2);
        }
        world.run(1_000, 1, |_| ());
        let mut waits = Vec::new();
        for round in 0..20 {
            waits.extend((0..300 + 7 * round).map(|_| call(&mut world, &called)));
            let waited = published_beside(&mut world, &published, |world| waits.push(call(world, &called)));
            assert!(waited <= KEPT_OUT_MS + 50, "{waited} ms beside {total} slots of {each:?}");
        }
        let late = waits.iter().filter(|waited| **waited > 0).count();
        assert!(waits.iter().skip(2).all(|waited| *waited <= 30), "{:?} ms", waits.iter().skip(2).max());
        assert!(late * 50 <= waits.len(), "{late} of {} calls waited", waits.len());
    }
}

#[test]
fn small_idle_queues_do_not_keep_a_large_one_out_for_ever() {
    let mut world = World::new(Amount { tasks: 32, cpu_millicores: 10_000, memory_mb: 16_000 });
    for function in 0..12 {
        world.add(&name(Lane::Call, function), need(500, 16, u64::MAX), 2);
        // So that their turns end one after the other.
        world.run(21, 1, |_| ());
    }
    let (called, published) = (name(Lane::Call, 12), name(Lane::Invoke, 12));
    for queue in [&called, &published] {
        world.add(queue, need(4_000, 16, u64::MAX), 2);
    }
    world.run(20_000, 7, |_| ());
    for _ in 0..20 {
        world.run(371, 7, |_| ());
        let waited = published_beside(&mut world, &published, |world| world.advance(7));
        assert!(waited <= 2 * (KEPT_OUT_MS + 300), "{waited} ms");
    }
}

#[test]
fn who_works_takes_no_larger_share_past_one_that_goes_first() {
    let mut world = World::new(Amount { tasks: 32, cpu_millicores: 10_000, memory_mb: 16_000 });
    let (worked, published) = (name(Lane::Call, 0), name(Lane::Invoke, 1));
    world.add(&worked, need(500, 16, u64::MAX), 30);
    world.add(&published, need(6_500, 16, u64::MAX), 2);
    for function in 2..5 {
        world.add(&name(Lane::Call, function), need(1_500, 16, u64::MAX), 2);
        world.run(41, 1, |_| ());
    }
    let four_callers = |world: &mut World| {
        let busy = world.running_of(&worked) + world.waiting.get(&worked).copied().unwrap_or(0);
        (busy..4).for_each(|_| world.arrive(&worked, 1));
        world.advance(7);
    };
    (0..1_000).for_each(|_| four_callers(&mut world));
    for _ in 0..10 {
        (0..100).for_each(|_| four_callers(&mut world));
        let waited = published_beside(&mut world, &published, four_callers);
        assert!(waited <= 2 * KEPT_OUT_MS, "{waited} ms");
    }
}

#[test]
fn turns_are_short_only_where_there_is_no_room_beside_them() {
    let mut world = World::new(budget(3));
    let called = name(Lane::Call, 0);
    world.add(&called, need(100, 128, u64::MAX), 2);
    world.add(&name(Lane::Call, 1), need(100, 128, u64::MAX), 2);
    world.run(2_000, 5, |_| ());
    world.pulls_sent = 0;
    for _ in 0..200 {
        call(&mut world, &called);
        world.run(47, 1, |_| ());
    }
    assert!(world.pulls_sent <= 300, "{} pulls for 200 calls in 10 s", world.pulls_sent);
}

#[test]
fn a_lane_that_never_rests_leaves_the_other_its_turn_beside_idle_ones() {
    let mut world = World::new(Amount { tasks: 11, cpu_millicores: 1_100, memory_mb: 704 });
    let (called, published) = (name(Lane::Call, 1), name(Lane::Invoke, 1));
    for queue in [&called, &published] {
        world.add(queue, need(182, 353, 1), 351);
    }
    for (lane, function) in [(Lane::Invoke, 0), (Lane::Call, 0), (Lane::Call, 5)] {
        world.add(&name(lane, function), need(165, 80, 2), 11);
    }
    world.arrive(&called, 1_000);
    for _ in 0..10 {
        let waited = published_beside(&mut world, &published, |world| world.advance(10));
        assert!(waited <= KEPT_OUT_MS + 2 * 351 + 50, "{waited} ms");
    }
}

#[test]
fn who_works_takes_no_more_past_a_claim() {
    let mut world = World::new(budget(10));
    let (worked, published) = (name(Lane::Call, 0), name(Lane::Invoke, 1));
    world.add(&worked, need(200, 16, u64::MAX), 40);
    world.add(&published, need(900, 16, u64::MAX), 2);
    let two_callers = |world: &mut World| {
        let busy = world.running_of(&worked) + world.waiting.get(&worked).copied().unwrap_or(0);
        (busy..3).for_each(|_| world.arrive(&worked, 1));
        world.advance(13);
    };
    for _ in 0..5 {
        (0..200).for_each(|_| two_callers(&mut world));
        let waited = published_beside(&mut world, &published, two_callers);
        assert!(waited <= BARE_CLAIM_AFTER_MS + 500, "{waited} ms");
    }
}

#[test]
fn small_functions_that_just_do_not_all_fit_cost_few_pulls() {
    let mut world = World::new(Amount { tasks: 32, cpu_millicores: 2_000, memory_mb: 8_000 });
    for function in 0..10 {
        for lane in [Lane::Call, Lane::Invoke] {
            world.add(&name(lane, function), need(100, 128, u64::MAX), 2);
        }
    }
    world.run(10_000, 5, |_| ());
    world.pulls_sent = 0;
    world.run(60_000, 5, |_| ());
    assert!(world.pulls_sent <= 30 * 60, "{} pulls in a minute", world.pulls_sent);
    for function in 0..10 {
        let waited = published_beside(&mut world, &name(Lane::Invoke, function), |world| world.advance(5));
        assert!(waited <= 2_000, "{waited} ms");
    }
}

#[test]
fn idle_queues_that_have_no_room_together_are_heard_in_turn() {
    let (mut world, _) = crowd_of_large_ones();
    for function in 0..4 {
        let queue = name(Lane::Invoke, function);
        world.arrive(&queue, 1);
        world.run(2_000, 5, |_| ());
        assert_eq!(world.delivered.get(&queue), Some(&1), "nobody told of {queue:?}");
    }
    assert!(world.longest_wait_ms <= 1_500, "{} ms", world.longest_wait_ms);
}
