//! What is not heard is not dead.

use std::time::Duration;

use flux_autoscaler::{
    fleet::Fleet,
    keeper::{Keeper, Seen},
};
use flux_plan::Wait;
use flux_protocol::FunctionName;

use crate::story::{MOST, STEP, World};

/// A few nodes, each half full, and nothing that waits: nothing is to be done.
async fn settled(nodes: u32) -> (World, Keeper) {
    let mut world = World::new();
    world.policy.providers[0].min_nodes = nodes;
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..12 {
        look(&mut keeper, half_full(&world, 0)).await;
        world.pass();
    }
    assert!(nodes < MOST, "another could be bought");
    assert_eq!(half_full(&world, 0).loads.len(), usize::try_from(nodes).expect("a few"));
    (world, keeper)
}

fn half_full(world: &World, waiting: u64) -> Seen {
    let mut seen = Seen { waiting, ..world.seen(true) };
    for load in seen.loads.values_mut() {
        (load.running, load.used, load.cpu_percent) = (2, 0.5, 50.0);
    }
    seen
}

async fn look(keeper: &mut Keeper, seen: Seen) {
    keeper.step(&seen).await.expect("a queue that answers");
}

/// Machines that are there, and all that were ever bought.
fn machines(world: &World) -> (usize, usize) {
    (world.provider.alive().len(), world.provider.bought().len())
}

/// Whether the queue was away, so that there was no look, or heartbeats alone: for as long as it may take, with what ran
/// counted as waiting by then, and with half of the agents heard before the rest of them.
#[tokio::test]
async fn a_gap_in_all_heartbeats_ends_and_buys_nothing() {
    for (looks, nodes) in [(false, 1), (false, 3), (true, 3)] {
        for steps in [1, 2, 5, 11, 12, 13, 20, 60, 300] {
            let (world, mut keeper) = settled(nodes).await;
            let before = machines(&world);
            let quiet = |world: &World| {
                let seen = half_full(world, 0);
                Seen {
                    waiting: seen.loads.values().map(|load| u64::from(load.running)).sum(),
                    loads: Default::default(),
                    ..seen
                }
            };
            for _ in 0..steps {
                world.pass();
                if looks {
                    look(&mut keeper, quiet(&world)).await;
                }
            }
            world.pass();
            look(&mut keeper, quiet(&world)).await;
            assert_eq!(machines(&world), before, "after {steps} steps, looks: {looks}: at the first look");
            for _ in 0..2 {
                world.pass();
                let mut some = half_full(&world, 0);
                some.loads.pop_first();
                look(&mut keeper, some).await;
            }
            for _ in 0..8 {
                world.pass();
                look(&mut keeper, half_full(&world, 0)).await;
            }
            assert_eq!(machines(&world), before, "after {steps} steps, looks: {looks}");
        }
    }
}

/// One among others that is not heard of for its time is replaced, and so is the only one there is.
#[tokio::test]
async fn who_stays_silent_is_ended() {
    for nodes in [3, 1] {
        let (world, mut keeper) = settled(nodes).await;
        let dead = world.provider.alive()[0].client_token.to_string();
        let mut steps = 0;
        while world.provider.alive().iter().any(|one| one.client_token.to_string() == dead) {
            assert!(steps < 60, "{nodes} nodes: it is never given up");
            world.pass();
            let mut seen = half_full(&world, 0);
            seen.loads.remove(&dead);
            look(&mut keeper, seen).await;
            steps += 1;
        }
        // It was heard of last a step before the first of them.
        let silent_for = STEP * (steps + 1);
        assert!(silent_for >= Duration::from_secs(60), "{nodes} nodes: given up after {silent_for:?}");
    }
}

/// More of our machines do not help what only an agent can run that is not ours: the plan is told of none that runs.
#[test]
fn what_an_agent_by_hand_runs_does_not_count_as_run_by_our_machines() {
    let function = FunctionName::parse("slow").expect("a name");
    let wait = Wait { function: function.clone(), waiting: 1, running: 1, oldest: Duration::from_secs(100) };
    let running = [("by-hand".to_owned(), [(function, 1)].into())].into();
    assert_eq!(Fleet::default().waits(std::slice::from_ref(&wait), &running), [Wait { running: 0, ..wait }]);
}
