//! What waits too long though there seems to be enough for it.

use std::time::Duration;

use flux_plan::{Action, Decision, Load, Phase, Policy, Rule, Wait};

use crate::world::{World, load, node, provider};

/// Four nodes that run three of four for a minute already: the queue's rule is content.
fn content() -> World {
    content_with(Policy::new(vec![provider("cloud", 0, 6)]))
}

fn content_with(policy: Policy) -> World {
    let mut world = World::new(policy);
    world.snapshot.nodes = ["a", "b", "c", "d"].map(|name| node(name, "cloud", Some(load(3)))).into();
    for _ in 0..7 {
        assert_eq!(world.decide().actions, [], "it is enough");
        later(&mut world, 10, 0, 3);
    }
    world
}

/// Ten of one function wait, the first of them for `oldest` seconds; three of four slots go on being used.
fn later(world: &mut World, seconds: u64, oldest: u64, running: u64) {
    world.snapshot.at = world.snapshot.at.plus(Duration::from_secs(seconds));
    world.snapshot.finished += 12 * seconds;
    world.snapshot.waiting = if oldest > 0 { 10 } else { 0 };
    world.snapshot.waits = if oldest > 0 { vec![wait("slow", running, oldest)] } else { Vec::new() };
}

fn wait(function: &str, running: u64, oldest: u64) -> Wait {
    let function = function.parse().expect("a name");
    Wait { function, waiting: 10, running, oldest: Duration::from_secs(oldest) }
}

fn launches(decision: &Decision) -> Vec<Rule> {
    let launches = decision.actions.iter().filter(|act| matches!(act.action, Action::Launch { .. }));
    launches.map(|act| act.reason.rule).collect()
}

fn noted(decision: &Decision, what: &str) -> bool {
    decision.notes.iter().any(|note| note.rule == Rule::Held && note.said.contains(what))
}

/// All that booted came just now, and is busy.
fn come_up(world: &mut World) {
    let at = world.snapshot.at;
    for node in world.snapshot.nodes.iter_mut().filter(|node| node.phase == Phase::Booting) {
        (node.phase, node.since, node.load) = (Phase::Ready, at, Some(load(3)));
    }
}

#[test]
fn what_waits_longer_than_a_backlog_is_to_take_gets_one_node_more() {
    let mut world = content();
    later(&mut world, 10, 74, 12);
    assert_eq!(world.decide().actions, [], "it is not late yet");
    later(&mut world, 10, 84, 12);
    let decision = world.decide();
    assert_eq!(launches(&decision), [Rule::Late]);
    insta::assert_snapshot!(decision.actions[0].reason);
    assert!(decision.demand.wanted <= decision.demand.capacity, "the estimate is content: {:?}", decision.demand);
    // One at a time: while it boots, and until it was seen what it changes.
    world.apply(&decision);
    for (oldest, seconds) in [(90, 6), (144, 54)] {
        later(&mut world, seconds, oldest, 12);
        let decision = world.decide();
        assert!(decision.actions.is_empty() && noted(&decision, "on its way"), "{decision:?}");
    }
    come_up(&mut world);
    for (oldest, seconds) in [(150, 6), (200, 50)] {
        later(&mut world, seconds, oldest, 15);
        let decision = world.decide();
        assert!(decision.actions.is_empty() && noted(&decision, "cooling down"), "{decision:?}");
    }
    // It was not enough.
    later(&mut world, 20, 220, 15);
    let decision = world.decide();
    assert_eq!(launches(&decision), [Rule::Late]);
    world.apply(&decision);
    later(&mut world, 60, 280, 15);
    come_up(&mut world);
    later(&mut world, 70, 350, 18);
    let decision = world.decide();
    assert!(
        decision.actions.is_empty() && noted(&decision, "late asks for more: every provider has max_nodes"),
        "{decision:?}"
    );
}

#[test]
fn no_node_comes_where_none_is_to_be_had_or_the_queue_has_no_say() {
    let late = |policy: Policy| {
        let mut world = content_with(policy);
        later(&mut world, 10, 500, 12);
        world.decide()
    };
    let mut policy = Policy::new(vec![provider("cloud", 0, 6)]);
    policy.max_cost_per_hour = Some(0.45);
    let decision = late(policy.clone());
    assert!(decision.actions.is_empty() && noted(&decision, "late asks for more: max_cost_per_hour"), "{decision:?}");
    (policy.max_cost_per_hour, policy.target_queue) = (None, Duration::ZERO);
    assert_eq!(late(policy.clone()).actions, []);
    // The share of each is heard: the other has none yet.
    policy.target_queue = Duration::from_secs(75);
    policy.providers.push(provider("other", 0, 6));
    let launch = Action::Launch { provider: "other".to_owned(), node_type: "small".to_owned() };
    let decision = late(policy);
    assert_eq!(decision.actions.iter().map(|act| &act.action).collect::<Vec<_>>(), [&launch]);
}

/// Where a node stands idle another would too; and the idle one is not given back to be bought again.
#[test]
fn an_idle_node_says_that_another_does_not_help() {
    let mut world = content();
    world.snapshot.nodes.push(node("idle", "cloud", Some(load(0))));
    for oldest in 1..30 {
        later(&mut world, 10, 100 + 10 * oldest, 12);
        let decision = world.decide();
        assert!(decision.actions.is_empty() && noted(&decision, "a node runs nothing"), "{decision:?}");
    }
    for _ in 0..10 {
        later(&mut world, 10, 0, 12);
        let decision = world.decide();
        world.apply(&decision);
    }
    let idle = world.snapshot.nodes.iter().find(|node| node.name == "idle").expect("it drains");
    assert!(matches!(idle.phase, Phase::Draining { .. }), "nothing is late any more: {idle:?}");
}

#[test]
fn what_gets_shorter_fast_enough_gets_no_node() {
    let mut world = content();
    for step in 0..12 {
        later(&mut world, 10, 300 - 20 * step, 12);
        let decision = world.decide();
        let expected = if step < 6 { vec![] } else { launches(&decision) };
        if step == 0 {
            // Nothing is known of how it changes.
            assert_eq!(launches(&decision), [Rule::Late]);
        } else {
            assert_eq!(launches(&decision), expected, "step {step}");
        }
    }
    assert_eq!(world.snapshot.waits[0].oldest, Duration::from_secs(80));
    assert!(noted(&world.decide(), "shorter fast enough"));
    // At that pace it would take hours.
    let mut world = content();
    for step in 0..20 {
        later(&mut world, 10, 3000 - step, 12);
        let decision = world.decide();
        if step > 8 && !launches(&decision).is_empty() {
            return;
        }
    }
    panic!("it stays late");
}

/// None of it runs anywhere though a node came for it: it is not bought one after the other, also when that one went again. What
/// else is late is helped all the same.
#[test]
fn what_no_agent_runs_gets_a_node_once() {
    let mut world = content();
    later(&mut world, 10, 100, 0);
    let decision = world.decide();
    assert_eq!(launches(&decision), [Rule::Late]);
    world.apply(&decision);
    let mut oldest = 100;
    let mut go_on = |world: &mut World, seconds| {
        oldest += seconds;
        later(world, seconds, oldest, 0);
    };
    go_on(&mut world, 60);
    come_up(&mut world);
    world.decide();
    for _ in 0..20 {
        go_on(&mut world, 30);
        let decision = world.decide();
        assert!(decision.actions.is_empty() && noted(&decision, "none of it runs"), "{decision:?}");
    }
    world.snapshot.nodes.pop();
    for _ in 0..20 {
        go_on(&mut world, 30);
        assert!(!launches(&world.decide()).contains(&Rule::Late), "without it");
    }
    go_on(&mut world, 30);
    world.snapshot.waits.push(wait("other", 2, 90));
    let decision = world.decide();
    assert_eq!(launches(&decision), [Rule::Late]);
    assert!(decision.actions[0].reason.said.contains("other"), "{decision:?}");
}

/// A machine that was not to be had was no try.
#[test]
fn what_no_agent_runs_is_tried_again_where_no_node_came() {
    let mut world = content();
    later(&mut world, 10, 100, 0);
    assert_eq!(launches(&world.decide()), [Rule::Late], "which does not come");
    later(&mut world, 70, 170, 0);
    assert_eq!(launches(&world.decide()), [Rule::Late]);
}

/// A node is full of less than its slots, or functions run only so often on each: then slots say that there is room.
#[test]
fn nodes_with_free_slots_get_another_for_what_waits_too_long() {
    let mut world = content();
    for node in &mut world.snapshot.nodes {
        node.load = Some(Load { running: 1, used: 0.25, ..load(1) });
    }
    // What ran before is no load any more.
    let mut oldest = 0;
    let decision = loop {
        oldest += 10;
        assert!(oldest < 200, "it waits for ever");
        later(&mut world, 10, oldest, 4);
        let decision = world.decide();
        if !launches(&decision).is_empty() {
            break decision;
        }
    };
    assert_eq!((launches(&decision), oldest), (vec![Rule::Late], 80));
}

#[test]
fn what_waits_where_there_is_no_node_gets_one_at_once() {
    let mut world = World::new(Policy::new(vec![provider("cloud", 0, 5)]));
    world.decide();
    later(&mut world, 10, 1, 0);
    let decision = world.decide();
    assert_eq!(launches(&decision).len(), 1, "{decision:?}");
}

/// A look that the queue does not answer: what was late is still, for the nodes that are there, and buys nothing by itself.
#[test]
fn what_is_not_told_keeps_the_nodes_that_were_waited_with() {
    let mut world = content();
    for node in &mut world.snapshot.nodes {
        node.load = Some(Load { running: 1, used: 0.25, ..load(1) });
    }
    world.policy.providers[0].max_nodes = 4;
    for step in 0..20 {
        later(&mut world, 10, 100 + 10 * step, 4);
        assert_eq!(world.decide().actions, [], "it is late");
    }
    let untold = |world: &mut World| {
        later(world, 10, 310, 4);
        world.snapshot.waits.clear();
        world.snapshot.untold = true;
    };
    for _ in 0..6 {
        untold(&mut world);
        assert_eq!(world.decide().actions, [], "it may still be late");
    }
    // One that told: nothing is late.
    let mut told = content();
    (told.history, told.snapshot, told.policy) = (world.history.clone(), world.snapshot.clone(), world.policy.clone());
    later(&mut told, 10, 1, 4);
    told.snapshot.untold = false;
    assert!(drains(&told.decide()), "it is in time again");
    // Nor does what is long ago hold them for ever.
    untold(&mut world);
    assert!(drains(&world.decide()), "nobody knows");
}

fn drains(decision: &Decision) -> bool {
    decision.actions.iter().any(|act| matches!(act.action, Action::Drain { .. }))
}

/// That none of it runs although a node came for it is not forgotten with one look.
#[test]
fn what_is_not_told_is_no_reason_to_try_again() {
    let mut world = content();
    later(&mut world, 10, 100, 0);
    let decision = world.decide();
    assert_eq!(launches(&decision), [Rule::Late]);
    world.apply(&decision);
    later(&mut world, 60, 160, 0);
    come_up(&mut world);
    world.decide();
    for step in 0..20 {
        later(&mut world, 30, 190 + 30 * step, 0);
        world.snapshot.untold = step % 2 == 0;
        if world.snapshot.untold {
            world.snapshot.waits.clear();
        }
        assert_eq!(launches(&world.decide()), [], "step {step}");
    }
}
