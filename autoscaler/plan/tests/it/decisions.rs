//! Decisions as `flux autoscaler explain` says them. A changed golden is a changed decision.

use std::{fmt::Write as _, time::Duration};

use flux_plan::{Action, Decision, Phase, Policy};

use crate::world::{World, load, node, on_mondays, provider};

fn told(decision: &Decision) -> String {
    let mut text = String::new();
    for act in &decision.actions {
        let what = match &act.action {
            Action::Launch { provider, node_type } => format!("launch {node_type} at {provider}"),
            Action::Undrain { node } => format!("undrain {node}"),
            Action::Drain { node, replaced_by: None } => format!("drain {node}"),
            Action::Drain { node, replaced_by: Some(by) } => format!("drain {node} for {by}"),
            Action::Terminate { node } => format!("terminate {node}"),
        };
        writeln!(text, "{what} <- {}", act.reason).expect("a String");
    }
    for note in &decision.notes {
        writeln!(text, "note <- {note}").expect("a String");
    }
    text
}

/// Plans every ten seconds until there is something to say, which is not done.
fn within(world: &mut World, seconds: u64, running: u32) -> String {
    for _ in 0..seconds / 10 {
        let said = told(&world.decide());
        if !said.is_empty() {
            return said;
        }
        world.pass(10, 0, running, u64::from(running));
    }
    String::new()
}

fn of_thresholds(min_nodes: u32, max_nodes: u32) -> World {
    let mut policy = Policy::new(vec![provider("cloud", min_nodes, max_nodes)]);
    policy.target_queue = Duration::ZERO;
    World::new(policy)
}

#[test]
fn a_backlog_with_no_node_gets_what_drains_it() {
    let mut world = World::new(Policy::new(vec![provider("cloud", 0, 5)]));
    world.decide();
    world.pass(10, 120, 0, 0);
    insta::assert_snapshot!(told(&world.decide()));
}

#[test]
fn pressure_on_every_node_for_the_window_asks_for_one_more() {
    let mut world = of_thresholds(0, 5);
    world.snapshot.nodes = vec![node("a", "cloud", Some(load(4))), node("b", "cloud", Some(load(4)))];
    assert_eq!(within(&mut world, 60, 8), "", "not before the window is over");
    insta::assert_snapshot!(within(&mut world, 20, 8));
    world.pass(10, 0, 8, 8);
    assert!(within(&mut world, 10, 8).contains("cooling down"));
    // One that is not under pressure is enough.
    let mut world = of_thresholds(0, 5);
    world.snapshot.nodes = vec![node("a", "cloud", Some(load(4))), node("b", "cloud", Some(load(1)))];
    assert_eq!(within(&mut world, 90, 5), "");
}

#[test]
fn quiet_on_every_node_gives_the_least_loaded_back_and_never_below_the_minimum() {
    let mut world = of_thresholds(1, 5);
    world.snapshot.nodes = vec![node("a", "cloud", Some(load(0))), node("b", "cloud", Some(load(0)))];
    insta::assert_snapshot!(within(&mut world, 80, 0));
    world.snapshot.nodes.pop();
    assert_eq!(within(&mut world, 200, 0), "");
}

#[test]
fn at_the_maximum_an_idle_node_makes_room_for_the_largest_type() {
    let mut policy = Policy::new(vec![provider("cloud", 0, 2)]);
    policy.panic_threshold = 100.0;
    let mut world = World::new(policy);
    world.snapshot.nodes = vec![node("a", "cloud", Some(load(4))), node("b", "cloud", Some(load(0)))];
    world.decide();
    world.pass(10, 500, 4, 4);
    let decision = world.decide();
    insta::assert_snapshot!("at_the_maximum", told(&decision));
    world.apply(&decision);
    world.pass(10, 500, 4, 4);
    insta::assert_snapshot!("then_the_larger_one", told(&world.decide()));
}

#[test]
fn a_node_that_drains_is_taken_back_before_another_is_bought() {
    let mut world = World::new(Policy::new(vec![provider("cloud", 0, 5)]));
    let mut draining = node("a", "cloud", Some(load(1)));
    draining.phase = Phase::Draining { replaced_by: None };
    world.snapshot.nodes = vec![draining, node("b", "cloud", Some(load(4)))];
    world.decide();
    world.pass(10, 40, 4, 4);
    insta::assert_snapshot!(told(&world.decide()));
}

#[test]
fn what_never_started_fell_silent_or_does_not_drain_is_given_up() {
    let mut world = World::new(Policy::new(vec![provider("cloud", 0, 5)]));
    let mut silent = node("silent", "cloud", None);
    silent.phase = Phase::Silent;
    let mut stuck = node("stuck", "cloud", Some(load(2)));
    stuck.phase = Phase::Draining { replaced_by: None };
    world.snapshot.nodes = vec![node("unborn", "cloud", None), silent, stuck];
    world.snapshot.at = world.snapshot.at.plus(Duration::from_secs(901));
    insta::assert_snapshot!(told(&world.decide()));
}

#[test]
fn two_providers_share_what_is_bought_and_the_calendar_is_heard() {
    let mut first = provider("first", 0, 10);
    first.share = 3.0;
    let mut policy = Policy::new(vec![first, provider("second", 0, 10)]);
    policy.schedules.push(on_mondays(4));
    insta::assert_snapshot!(told(&World::new(policy).decide()));
}

#[test]
fn a_refused_type_is_passed_over_and_the_cap_is_said() {
    let mut policy = Policy::new(vec![provider("cloud", 3, 10)]);
    policy.max_cost_per_hour = Some(0.7);
    let mut world = World::new(policy);
    world.snapshot.refused.insert(("cloud".to_owned(), "small".to_owned()));
    insta::assert_snapshot!(told(&world.decide()));
}

#[test]
fn after_all_were_removed_none_is_launched_until_they_are_asked_for() {
    let mut world = World::new(Policy::new(vec![provider("cloud", 2, 5)]));
    world.snapshot.paused = true;
    world.snapshot.waiting = 10;
    insta::assert_snapshot!(told(&world.decide()));
}
