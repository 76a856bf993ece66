//! Machines that are bare when they are launched.

use std::collections::BTreeMap;

use flux_autoscaler::{
    book::{Book as _, QueueBook},
    keeper::{Keeper, Seen},
};
use flux_protocol::{
    autoscaler::{ActionRecord, AutoscalerRequest, AutoscalerStatus},
    limits,
};

use crate::story::{STEP, World, settle};

async fn look(world: &World, keeper: &mut Keeper) {
    keeper.step(&world.seen(true)).await.expect("a queue that answers");
    settle().await;
    world.pass();
}

async fn status(world: &World) -> AutoscalerStatus {
    let book = QueueBook::new(std::sync::Arc::clone(&world.broker), STEP);
    book.shown().await.expect("a queue that answers").expect("a status")
}

fn not_set_up(status: &AutoscalerStatus) -> Vec<ActionRecord> {
    let actions = status.decisions.iter().flat_map(|decision| decision.actions.clone());
    actions.filter(|action| action.reason.rule == "set_up").collect()
}

/// A machine that cannot be set up ends, with its reason and what it printed; its provider is left in peace for a while, longer each time.
#[tokio::test]
async fn who_cannot_be_set_up_is_terminated_and_the_reason_is_shown() {
    let mut world = World::bare();
    // Nothing but what is asked for: one machine.
    (world.policy.providers[0].min_nodes, world.policy.providers[0].max_nodes) = (1, 1);
    let made = world.made.clone().expect("bare machines");
    made.lock().expect("nobody panics").fails = 2;
    let (mut keeper, _dead) = world.keeper(None);
    let mut first = None;
    for _ in 0..6 {
        look(&world, &mut keeper).await;
        first = first.or(not_set_up(&status(&world).await).pop());
    }
    let first = first.expect("a reason");
    assert_eq!((first.action.as_str(), first.reason.said.as_str()), ("terminate", "the agent was not installed"));
    let output = first.output.expect("what it printed");
    assert!(output.ends_with("E: no room\n") && output.len() <= limits::AUTOSCALER_OUTPUT, "{} bytes", output.len());
    assert_eq!((world.provider.alive().len(), world.let_in()), (0, 0), "it is gone, and shut out");
    assert_eq!(world.provider.bought().len(), 1, "the next is not bought at once");
    let notes = status(&world).await.notes;
    assert!(notes.iter().any(|note| note.said.contains("could not be set up")), "{notes:?}");

    // 30 s, and 60 s after the second.
    let mut bought_after = Vec::new();
    for step in 6..40 {
        let before = world.provider.bought().len();
        look(&world, &mut keeper).await;
        if world.provider.bought().len() > before {
            bought_after.push(STEP * step);
        }
    }
    let [second, third] = bought_after[..] else { panic!("bought at {bought_after:?}") };
    assert!(second >= limits::SET_UP_FAILED && third - second >= limits::SET_UP_FAILED * 2, "{bought_after:?}");
    let status = status(&world).await;
    assert_eq!(not_set_up(&status).len(), 2);
    assert!(status.notes.iter().all(|note| note.rule != "set_up"), "one was set up: {:?}", status.notes);
    assert_eq!(world.provider.alive().len(), 1);
}

/// Many that fail together are one failure.
#[tokio::test]
async fn machines_that_fail_at_once_double_no_pause() {
    const MACHINES: u32 = 6;
    let mut world = World::bare();
    (world.policy.providers[0].min_nodes, world.policy.providers[0].max_nodes) = (MACHINES, MACHINES);
    world.made.as_ref().expect("bare machines").lock().expect("nobody panics").fails = MACHINES;
    let (mut keeper, _dead) = world.keeper(None);
    let mut failed = Vec::new();
    for _ in 0..6 {
        look(&world, &mut keeper).await;
        if failed.is_empty() {
            failed = not_set_up(&status(&world).await);
        }
    }
    assert_eq!(failed.len(), 6, "at one look: {failed:?}");
    for one in failed {
        let inputs = &one.reason.inputs;
        assert_eq!(inputs["failed_one_after_another"], 1.0, "{inputs:?}");
        assert_eq!(inputs["asked_again_in_sec"], limits::SET_UP_FAILED.as_secs_f64(), "{inputs:?}");
    }
}

/// A machine whose set-up does not end in its time is a failure like any other: the next is not bought at once, and then later each time.
#[tokio::test]
async fn who_is_not_set_up_in_time_failed() {
    let mut world = World::bare();
    (world.policy.providers[0].min_nodes, world.policy.providers[0].max_nodes) = (1, 1);
    world.policy.boot_timeout = STEP * 10;
    world.made.as_ref().expect("bare machines").lock().expect("nobody panics").hangs = true;
    let (mut keeper, _dead) = world.keeper(None);
    let (mut ended_at, mut bought_at) = (Vec::new(), Vec::new());
    for step in 0..60 {
        let (bought, alive) = (world.provider.bought().len(), world.provider.alive().len());
        look(&world, &mut keeper).await;
        if world.provider.bought().len() > bought {
            bought_at.push(STEP * step);
        }
        if world.provider.alive().len() < alive {
            ended_at.push(STEP * step);
        }
    }
    assert!(bought_at.len() >= 3 && ended_at.len() >= 2, "bought at {bought_at:?}, ended at {ended_at:?}");
    for (number, pause) in [limits::SET_UP_FAILED, limits::SET_UP_FAILED * 2].into_iter().enumerate() {
        let waited = bought_at[number + 1].saturating_sub(ended_at[number]);
        assert!(waited >= pause, "{waited:?} after {number}: bought at {bought_at:?}, ended at {ended_at:?}");
    }
    let status = status(&world).await;
    let why = "`boot_timeout_sec` was over while it was still being set up";
    let mut actions = status.decisions.iter().flat_map(|decision| &decision.actions);
    assert!(actions.any(|act| act.action == "terminate" && act.reason.said.contains(why)), "{:?}", status.decisions);
    assert!(status.notes.iter().any(|note| note.rule == "set_up" && note.said.contains(why)), "{:?}", status.notes);
}

/// A machine that could not be set up yet is not paid for.
#[tokio::test]
async fn no_more_are_launched_than_are_set_up_at_once() {
    let mut world = World::bare();
    let most = limits::BOOTSTRAPS_AT_ONCE + 4;
    let nodes = u32::try_from(most).expect("a few");
    (world.policy.providers[0].min_nodes, world.policy.providers[0].max_nodes) = (nodes, nodes);
    let made = world.made.clone().expect("bare machines");
    let (mut keeper, _dead) = world.keeper(None);
    let mut held = false;
    for _ in 0..20 {
        look(&world, &mut keeper).await;
        let waiting = world.provider.alive().len() - made.lock().expect("nobody panics").agents.len();
        assert!(waiting <= limits::BOOTSTRAPS_AT_ONCE, "{waiting} machines wait to be set up");
        held |= status(&world).await.notes.iter().any(|note| note.said.contains("set up at once"));
    }
    assert_eq!((world.provider.alive().len(), held), (most, true));
}

/// A gateway that is away when a machine goes revokes its identity when it is back, also for another autoscaler.
#[tokio::test]
async fn an_identity_is_revoked_however_late() {
    let mut world = World::bare();
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..8 {
        look(&world, &mut keeper).await;
    }
    let launched = world.provider.bought().len();
    assert!(launched > 0 && world.let_in() == launched);
    *world.gateway_is_away.lock().expect("nobody panics") = true;
    keeper.answer(AutoscalerRequest::RemoveNodes, &world.seen(true)).await.expect("an answer");
    world.pass();
    look(&world, &mut keeper).await;
    assert_eq!((world.provider.alive().len(), world.let_in()), (0, launched));
    drop(keeper);
    for _ in 0..4 {
        world.pass();
    }
    *world.gateway_is_away.lock().expect("nobody panics") = false;
    let (mut keeper, _dead) = world.keeper(None);
    look(&world, &mut keeper).await;
    assert_eq!(world.let_in(), 0);
}

/// One that takes over listens first: what works already is not set up again.
#[tokio::test]
async fn what_works_is_not_set_up_again() {
    let mut world = World::bare();
    let made = world.made.clone().expect("bare machines");
    let calls = || made.lock().expect("nobody panics").calls;
    let (mut keeper, _dead) = world.keeper(None);
    while calls() == 0 {
        look(&world, &mut keeper).await;
    }
    // Set up, and not heard of yet.
    let before = calls();
    drop(keeper);
    for _ in 0..4 {
        world.pass();
    }
    let (mut keeper, _dead) = world.keeper(None);
    let deaf = Seen { loads: BTreeMap::new(), ..world.seen(true) };
    keeper.step(&deaf).await.expect("a queue that answers");
    settle().await;
    assert_eq!(calls(), before, "it was not listened for");
    for _ in 0..12 {
        world.pass();
        look(&world, &mut keeper).await;
    }
    let launched = u64::try_from(world.provider.bought().len()).expect("a few");
    assert_eq!(calls(), launched, "each was set up once");
}
