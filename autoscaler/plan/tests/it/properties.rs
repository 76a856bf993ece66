//! What holds for every decision, whatever is seen.

use std::time::Duration;

use flux_plan::{Action, Decision, Load, Phase, Policy, Rule, Snapshot, Wait};
use proptest::prelude::*;

use crate::world::{World, load, node, on_mondays, provider};

/// What one step brings: seconds, waiting, running, ended; and for how long the oldest waits, and how many of it run.
type Step = (u64, u64, u32, u64, (u64, u64));

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let waiting = prop_oneof![3 => Just(0u64), 3 => 0..40u64, 1 => 0..5_000u64];
    let wait = (prop_oneof![0..100u64, 0..5_000u64], 0..3u64);
    proptest::collection::vec((1..40u64, waiting, 0..120u32, 0..200u64, wait), 1..60)
}

fn pass(world: &mut World, step: Step) {
    let (seconds, waiting, running, ended, (oldest, of_it)) = step;
    world.pass(seconds, waiting, running, ended);
    let (function, oldest) = ("slow".parse().expect("a name"), Duration::from_secs(oldest));
    let wait = Wait { function, waiting, running: of_it, oldest };
    world.snapshot.waits = if waiting > 0 { vec![wait] } else { Vec::new() };
}

prop_compose! {
    fn policy()(
        mins in (0..3u32, 0..3u32), more in (0..6u32, 0..6u32), share in 0.2..5.0f64, cap in proptest::option::of(1.8..3.0f64),
        target in prop_oneof![Just(0u64), 5..200u64], delay in 0..120u64, cooldown in 0..120u64, scheduled in 0..6u32,
    ) -> Policy {
        let mut first = provider("first", mins.0, mins.0 + more.0);
        first.share = share;
        let mut policy = Policy::new(vec![first, provider("second", mins.1, mins.1 + more.1)]);
        policy.target_queue = std::time::Duration::from_secs(target);
        policy.scale_down_delay = std::time::Duration::from_secs(delay);
        policy.cooldown = std::time::Duration::from_secs(cooldown);
        policy.max_cost_per_hour = cap;
        policy.schedules.push(on_mondays(scheduled));
        policy
    }
}

fn manual(running: u32) -> flux_plan::Node {
    let load = Load { cpu_percent: 100.0, memory_percent: 100.0, ..load(running) };
    flux_plan::Node { managed: false, ..node("by-hand", "first", Some(load)) }
}

/// Whom an action is about.
fn named(action: &Action) -> Option<&str> {
    match action {
        Action::Launch { .. } => None,
        Action::Undrain { node } | Action::Drain { node, .. } | Action::Terminate { node } => Some(node),
    }
}

/// Nodes that do not drain.
fn staying(snapshot: &Snapshot, provider: &str) -> u32 {
    let stays = |node: &&flux_plan::Node| {
        node.managed && node.provider == provider && !matches!(node.phase, flux_plan::Phase::Draining { .. })
    };
    u32::try_from(snapshot.nodes.iter().filter(stays).count()).expect("a few")
}

fn check(world: &World, decision: &Decision) -> Result<(), TestCaseError> {
    for provider in &world.policy.providers {
        prop_assert!(world.count(&provider.name) <= provider.max_nodes, "above the maximum after {decision:?}");
        prop_assert!(
            staying(&world.snapshot, &provider.name) >= provider.min_nodes.min(provider.max_nodes)
                || making_room(world),
            "below the minimum after {decision:?}"
        );
    }
    if let Some(cap) = world.policy.max_cost_per_hour {
        prop_assert!(world.cost_per_hour() <= cap + 1e-6, "{} an hour after {decision:?}", world.cost_per_hour());
    }
    for act in &decision.actions {
        prop_assert!(!act.reason.said.is_empty(), "{act:?}");
        prop_assert_ne!(named(&act.action), Some("by-hand"));
    }
    Ok(())
}

/// While one drains for a larger one there is one less.
fn making_room(world: &World) -> bool {
    world.snapshot.nodes.iter().any(|node| matches!(&node.phase, flux_plan::Phase::Draining { replaced_by: Some(_) }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Between minimum and maximum with what boots counted, never above the cap, with a reason for each action, and with
    /// nothing left to do right after.
    #[test]
    fn every_decision_keeps_to_what_is_configured(policy in policy(), steps in steps()) {
        let mut world = World::new(policy);
        world.snapshot.nodes.push(manual(3));
        for step in steps {
            let decision = world.decide();
            world.apply(&decision);
            check(&world, &decision)?;
            let again = world.decide();
            prop_assert!(again.actions.is_empty(), "{again:?}\nright after {decision:?}");
            pass(&mut world, step);
        }
    }

    /// What waits too long gets one node at a time, never within the cooldown of another, and never while one boots, came just
    /// now or runs nothing.
    #[test]
    fn what_is_late_gets_one_node_at_a_time(policy in policy(), steps in steps()) {
        let mut world = World::new(policy);
        let mut last = None;
        for step in steps {
            let (before, at) = (world.snapshot.clone(), world.snapshot.at);
            let decision = world.decide();
            let late = decision.actions.iter().filter(|act| act.reason.rule == Rule::Late).count();
            prop_assert!(late <= 1, "{decision:?}");
            if late == 1 {
                let (target, cooldown) = (world.policy.target_queue, world.policy.cooldown);
                prop_assert!(!target.is_zero() && before.waits.iter().any(|wait| wait.oldest >= target), "{before:?}");
                prop_assert!(decision.demand.capacity + 1e-6 >= decision.demand.wanted || decision.actions.len() > 1, "{decision:?}");
                prop_assert!(last.is_none_or(|last| at.since(last) >= cooldown), "again after {last:?}: {decision:?}");
                for node in &before.nodes {
                    let just_came = node.phase == Phase::Ready && at.since(node.since) < cooldown;
                    let idle = node.phase == Phase::Ready && node.load.is_some_and(|load| load.running == 0);
                    let gone = decision.actions.iter().any(|act| named(&act.action) == Some(&node.name));
                    prop_assert!(!idle && !just_came && (node.phase != Phase::Booting || gone), "{node:?} {decision:?}");
                }
                last = Some(at);
            }
            world.apply(&decision);
            pass(&mut world, step);
        }
    }

    /// Who was registered by hand changes nothing.
    #[test]
    fn manual_agents_are_not_seen(policy in policy(), steps in steps(), running in 0..4u32) {
        let (mut with, mut without) = (World::new(policy.clone()), World::new(policy));
        with.snapshot.nodes.push(manual(running));
        for step in steps {
            let (decision, expected) = (with.decide(), without.decide());
            prop_assert_eq!(&decision, &expected);
            with.apply(&decision);
            without.apply(&expected);
            pass(&mut with, step);
            pass(&mut without, step);
        }
    }

    /// More that waits never asks for less, and never gives more back.
    #[test]
    fn more_work_never_asks_for_fewer_nodes(policy in policy(), steps in steps(), more in 1..1000u64) {
        let mut world = World::new(policy);
        for step in steps {
            let decision = world.decide();
            world.apply(&decision);
            pass(&mut world, step);
        }
        let net = |decision: &Decision| decision.actions.iter().map(|act| match act.action {
            Action::Launch { .. } | Action::Undrain { .. } => 1i64,
            Action::Drain { .. } => -1,
            Action::Terminate { .. } => 0,
        }).sum::<i64>();
        let mut busier = World::new(world.policy.clone());
        (busier.history, busier.snapshot) = (world.history.clone(), world.snapshot.clone());
        busier.snapshot.waiting += more;
        let (decision, with_more) = (world.decide(), busier.decide());
        // At the maximum it may drain one to make room.
        let makes_room = with_more.actions.iter().any(|act| matches!(&act.action, Action::Drain { replaced_by: Some(_), .. }));
        prop_assert!(with_more.demand.wanted + 1e-9 >= decision.demand.wanted);
        prop_assert!(net(&with_more) + i64::from(makes_room) >= net(&decision), "{decision:?}\nwith more {with_more:?}");
    }

    /// A load that does not change moves nothing, once what it needs is there.
    #[test]
    fn a_steady_load_does_not_flap(rate in 0..60u32, delay in 0..120u64, target in 10..200u64) {
        let mut policy = Policy::new(vec![provider("cloud", 0, 40)]);
        policy.scale_down_delay = std::time::Duration::from_secs(delay);
        policy.target_queue = std::time::Duration::from_secs(target);
        let mut world = World::new(policy);
        let (mut late, mut backlog) = (Vec::new(), 0u32);
        for poll in 0..300 {
            let decision = world.decide();
            world.apply(&decision);
            if poll >= 200 {
                late.extend(decision.actions);
            }
            // Each takes a second; what finds no slot waits.
            let slots: u32 = world.snapshot.nodes.iter().filter_map(|node| node.load).map(|load| load.slots).sum();
            let running = slots.min(rate + backlog / 10);
            backlog = backlog + 10 * rate - 10 * running;
            world.pass(10, u64::from(backlog), running, 10 * u64::from(running));
        }
        prop_assert!(late.is_empty(), "{late:?}");
    }
}
