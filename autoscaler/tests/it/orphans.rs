//! Machines that are in no record.

use bytes::Bytes;
use flux_autoscaler::book::{Book as _, QueueBook};
use flux_broker::Table;
use flux_protocol::autoscaler::{AutoscalerRequest, FLEET_KEY};

use crate::story::{STEP, World};

/// The queue lost its storage: what runs is not cut off, what is needed stays, and the rest goes once it is idle.
#[tokio::test]
async fn machines_whose_record_is_lost_are_kept_while_they_work_and_go_after_it() {
    let mut world = World::new();
    world.policy.providers[0].min_nodes = 2;
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..10 {
        keeper.step(&world.seen(true)).await.expect("a queue that answers");
        world.pass();
    }
    drop(keeper);
    let before: Vec<_> = world.provider.alive().into_iter().map(|one| one.client_token).collect();
    assert!(before.len() >= 2, "{before:?}");
    let empty = Bytes::from_static(br#"{"epoch":0,"paused":false,"members":{}}"#);
    world.broker.put(Table::Autoscaler, FLEET_KEY, empty).await.expect("an empty fleet");
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..10 {
        world.pass();
        keeper.step(&world.seen(true)).await.expect("a queue that answers");
        let now: Vec<_> = world.provider.alive().into_iter().map(|one| one.client_token).collect();
        assert!(before.iter().all(|one| now.contains(one)), "{before:?} became {now:?}");
    }
    let bought = world.provider.bought().len();
    for _ in 0..40 {
        world.pass();
        keeper.step(&world.seen(false)).await.expect("a queue that answers");
    }
    assert_eq!((world.provider.alive().len(), world.members().await), (2, 2));
    assert_eq!(world.provider.bought().len(), bought, "and none was bought for them");
}

/// A keeper that stood still while another bought ends nothing of it, though it is in no record that it knows.
#[tokio::test]
async fn a_keeper_that_stood_still_ends_nothing() {
    let mut world = World::new();
    let ((mut sleeper, _), (mut other, _)) = (world.keeper(None), world.keeper(None));
    let mut before = world.seen(true);
    before.waiting = 0;
    assert!(sleeper.step(&before).await.expect("a queue that answers"));
    for _ in 0..8 {
        world.pass();
        other.step(&world.seen(true)).await.expect("a queue that answers");
    }
    let alive = world.provider.alive().len();
    assert!(alive > 0);
    // The lease's own clock does not hold it back: the other's is over by then.
    for _ in 0..10 {
        world.pass();
    }
    let mut late = world.seen(true);
    assert!(!sleeper.step(&late).await.expect("a queue that answers"), "what it knew is overtaken");
    for _ in 0..30 {
        world.pass();
        late = world.seen(true);
        sleeper.step(&late).await.expect("a queue that answers");
    }
    assert!(world.provider.alive().len() >= alive);
}

/// A provider that is not configured any more: what runs there is told of until it is ended.
#[tokio::test]
async fn machines_of_a_provider_that_was_removed_are_told_of() {
    let mut world = World::new();
    world.policy.providers[0].min_nodes = 1;
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..8 {
        keeper.step(&quiet(&world)).await.expect("a queue that answers");
        world.pass();
    }
    drop(keeper);
    let alive = world.provider.alive();
    assert_eq!(alive.len(), 1, "{alive:?}");
    world.is_configured = false;
    for _ in 0..4 {
        world.pass();
    }
    let (mut keeper, _dead) = world.keeper(None);
    keeper.answer(AutoscalerRequest::RemoveNodes, &quiet(&world)).await.expect("an answer");
    let book = QueueBook::new(std::sync::Arc::clone(&world.broker), STEP);
    let notes = book.shown().await.expect("a queue that answers").expect("a status").notes;
    let told = notes.iter().any(|note| {
        note.said.contains("memory is not in `autoscaler.providers`") && note.said.contains(alive[0].id.as_str())
    });
    assert!(told, "{notes:?}");
    assert_eq!(world.members().await, 1, "it stays in the record");
}

/// A region that was changed while machines run in the one before: they are told of and stay in the record, nothing is asked of
/// the new one, and once they were ended it may be changed.
#[tokio::test]
async fn machines_in_another_place_are_told_of() {
    let mut world = World::new();
    world.policy.providers[0].min_nodes = 1;
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..8 {
        keeper.step(&quiet(&world)).await.expect("a queue that answers");
        world.pass();
    }
    let before = world.provider.alive();
    assert_eq!(before.len(), 1, "{before:?}");
    drop(keeper);

    world.place = "region there";
    let calls = world.provider.calls();
    let mut keeper = after_a_lease(&mut world);
    for _ in 0..30 {
        // Nobody hears its agent there, either.
        let mut seen = quiet(&world);
        seen.loads.clear();
        keeper.step(&seen).await.expect("a queue that answers");
        world.pass();
    }
    let told = notes(&world).await;
    let expected = "memory is configured for region there, and has machines in region here that nobody ends: ";
    assert!(told.iter().any(|said| said.contains(expected) && said.contains(before[0].id.as_str())), "{told:?}");
    assert_eq!(world.provider.calls(), calls, "nothing is asked of the other place");
    assert_eq!((world.members().await, world.let_in()), (1, 1), "it stays in the record, and is let in");
    drop(keeper);

    world.place = "region here";
    let mut keeper = after_a_lease(&mut world);
    keeper.answer(AutoscalerRequest::RemoveNodes, &quiet(&world)).await.expect("an answer");
    for _ in 0..4 {
        world.pass();
        keeper.step(&quiet(&world)).await.expect("a queue that answers");
    }
    assert_eq!((world.provider.alive().len(), world.members().await), (0, 0));
    drop(keeper);

    world.place = "region there";
    let mut keeper = after_a_lease(&mut world);
    keeper.answer(AutoscalerRequest::Initialize, &quiet(&world)).await.expect("an answer");
    assert_eq!(world.provider.alive().len(), 1, "it may be another now");
    let told = notes(&world).await;
    assert!(told.iter().all(|said| !said.contains("nobody ends")), "{told:?}");
}

/// A region that was changed while a machine boots in the one before: whether that comes nobody sees, and a second provider does
/// not wait for it.
#[tokio::test]
async fn what_boots_in_another_place_is_no_capacity() {
    for is_removed in [false, true] {
        let mut world = World::new();
        let (mut keeper, _dead) = world.keeper(None);
        keeper.step(&world.seen(true)).await.expect("a queue that answers");
        let boots = world.provider.alive().len();
        assert!(boots > 0, "nothing boots");
        drop(keeper);
        (world.place, world.is_configured) = ("region there", !is_removed);
        world.add_second();
        let mut keeper = after_a_lease(&mut world);
        for _ in 0..6 {
            keeper.step(&deaf(&world)).await.expect("a queue that answers");
            world.pass();
        }
        let second = world.second.as_ref().expect("it was added").alive().len();
        assert!(
            second > 0,
            "removed: {is_removed}: the second provider waits for the first: {:?}",
            notes(&world).await
        );
        assert_eq!(world.provider.alive().len(), boots, "nothing is asked of the first");
        let first = world.members().await - second;
        assert_eq!(first, boots, "they stay in the record");
    }
}

/// Machines that nobody hears, of a provider that was moved: what is heard elsewhere is not doubted for them.
#[tokio::test]
async fn silence_of_machines_in_another_place_stops_no_decisions() {
    let mut world = World::new();
    world.policy.providers[0].min_nodes = 2;
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..8 {
        keeper.step(&quiet(&world)).await.expect("a queue that answers");
        world.pass();
    }
    assert_eq!(quiet(&world).loads.len(), 2, "two that were heard of");
    drop(keeper);
    world.place = "region there";
    world.add_second();
    let mut keeper = after_a_lease(&mut world);
    for _ in 0..24 {
        keeper.step(&deaf(&world)).await.expect("a queue that answers");
        world.pass();
    }
    let second = world.second.as_ref().expect("it was added").alive().len();
    assert!(second > 0, "nothing is decided: {:?}", notes(&world).await);
    assert_eq!(world.provider.alive().len(), 2, "nothing is asked of the first");
}

/// Work waits, and nobody is heard of.
fn deaf(world: &World) -> flux_autoscaler::keeper::Seen {
    flux_autoscaler::keeper::Seen { loads: Default::default(), ..world.seen(true) }
}

/// Another keeper, once the lease of the one before is over.
fn after_a_lease(world: &mut World) -> flux_autoscaler::keeper::Keeper {
    for _ in 0..4 {
        world.pass();
    }
    world.keeper(None).0
}

async fn notes(world: &World) -> Vec<String> {
    let book = QueueBook::new(std::sync::Arc::clone(&world.broker), STEP);
    let status = book.shown().await.expect("a queue that answers").expect("a status");
    status.notes.into_iter().map(|note| note.said).collect()
}

/// Whoever cordoned a node, by hand or because it goes, meant it: it is no capacity, and is not told to work again.
#[tokio::test]
async fn a_drain_of_somebody_else_is_left_alone() {
    let mut world = World::new();
    world.policy.providers[0].min_nodes = 1;
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..8 {
        keeper.step(&quiet(&world)).await.expect("a queue that answers");
        world.pass();
    }
    let alive = world.provider.alive();
    assert_eq!(alive.len(), 1, "{alive:?}");
    let node = alive[0].client_token.to_string();
    world.cordoned.lock().expect("nobody panics").insert(node.clone());
    for _ in 0..20 {
        keeper.step(&quiet(&world)).await.expect("a queue that answers");
        world.pass();
        assert!(world.cordoned.lock().expect("nobody panics").contains(&node), "it was told to work again");
    }
    assert_eq!(world.provider.alive().len(), 2, "another does what it does not");
}

fn quiet(world: &World) -> flux_autoscaler::keeper::Seen {
    let mut seen = world.seen(false);
    seen.loads.values_mut().for_each(|load| load.cpu_percent = 40.0);
    seen
}
