//! A keeper that dies between any two of its steps leaves no machine, and buys none twice.

use flux_protocol::autoscaler::{AutoscalerReply, AutoscalerRequest};
use flux_provider::{
    ErrorKind,
    memory::{Call, Fault},
};

use crate::story::{Crash, MOST, World, told};

#[tokio::test]
async fn no_machine_is_leaked_whichever_step_it_dies_at() {
    let quiet = told(None).await;
    assert!(quiet.launched >= 2 && quiet.alive == 0 && quiet.members == 0, "{quiet:?}");
    assert_eq!((quiet.set_ups, quiet.let_in), (u64::try_from(quiet.launched).expect("a few"), 0), "{quiet:?}");
    let provider = (0..quiet.provider_calls).map(|n| Crash::Provider(n, Fault::HaltBefore));
    let provider = provider.chain((0..quiet.provider_calls).map(|n| Crash::Provider(n, Fault::HaltAfter)));
    let book = (0..quiet.book_calls).map(|n| Crash::Book(n, Fault::HaltBefore));
    let book = book.chain((0..quiet.book_calls).map(|n| Crash::Book(n, Fault::HaltAfter)));
    let set_up = (0..quiet.set_ups).map(|n| Crash::SetUp(n, Fault::HaltBefore));
    let set_up = set_up.chain((0..quiet.set_ups).map(|n| Crash::SetUp(n, Fault::HaltAfter)));
    let (mut crashes, mut machines) = (0, 0);
    for crash in provider.chain(book).chain(set_up) {
        let ended = told(Some(crash)).await;
        assert!(ended.died, "{crash:?}: it did not come to that");
        assert!(ended.launched >= 1, "{crash:?}: {ended:?}");
        assert_eq!((ended.alive, ended.members, ended.let_in), (0, 0, 0), "{crash:?}: {ended:?}");
        assert!(ended.most_alive <= usize::try_from(MOST).expect("a few"), "{crash:?}: {ended:?}");
        crashes += 1;
        machines += ended.launched;
    }
    assert!(crashes >= 200, "{crashes} crashes");
    #[allow(clippy::print_stdout)]
    {
        println!("{crashes} crashes, {machines} machines launched, none left");
    }
}

/// A launch whose answer was lost is asked for again under the same token, and refusals are given up for a while.
#[tokio::test]
async fn errors_of_the_provider_cost_no_machine() {
    for fault in [Fault::LoseAnswer, Fault::Fail(ErrorKind::Throttled), Fault::Fail(ErrorKind::Capacity)] {
        let mut world = World::new();
        for call in [Call::Launch, Call::Launch, Call::Terminate, Call::List] {
            world.provider.fault_next(call, fault);
        }
        let (mut keeper, _dead) = world.keeper(None);
        for step in 0..130 {
            keeper.step(&world.seen(step < 70)).await.expect("a queue that answers");
            world.pass();
        }
        assert!(!world.provider.bought().is_empty(), "{fault:?}");
        assert_eq!((world.provider.alive().len(), world.members().await), (0, 0), "{fault:?}");
    }
}

/// Of two one acts; when it is gone, the other does.
#[tokio::test]
async fn of_two_keepers_one_acts() {
    let mut world = World::new();
    let ((mut one, _), (mut other, _)) = (world.keeper(None), world.keeper(None));
    for _ in 0..10 {
        let seen = world.seen(true);
        assert!(one.step(&seen).await.expect("a queue that answers"));
        assert!(!other.step(&seen).await.expect("a queue that answers"), "both act");
        world.pass();
    }
    let alive = world.provider.alive().len();
    assert!(alive > 0);
    drop(one);
    let mut acts = false;
    for _ in 0..5 {
        world.pass();
        acts = other.step(&world.seen(true)).await.expect("a queue that answers");
    }
    assert!(acts, "the lease did not run out");
    assert_eq!(world.provider.alive().len(), alive, "what is there is its own now");
}

/// One that slept through the end of its lease cannot write, and so does nothing.
#[tokio::test]
async fn who_lost_the_lease_is_fenced_off() {
    let mut world = World::new();
    let ((mut sleeper, _), (mut other, _)) = (world.keeper(None), world.keeper(None));
    let before = world.seen(true);
    assert!(sleeper.step(&before).await.expect("a queue that answers"));
    for _ in 0..4 {
        world.pass();
    }
    assert!(other.step(&world.seen(true)).await.expect("a queue that answers"));
    let (bought, calls) = (world.provider.bought().len(), world.provider.calls());
    // It believes that it is still then.
    assert!(!sleeper.step(&before).await.expect("a queue that answers"));
    assert_eq!((world.provider.bought().len(), world.provider.calls()), (bought, calls));
}

#[tokio::test]
async fn all_nodes_go_when_somebody_says_so_and_come_when_somebody_says_so() {
    let mut world = World::new();
    let (mut keeper, _dead) = world.keeper(None);
    for _ in 0..8 {
        keeper.step(&world.seen(true)).await.expect("a queue that answers");
        world.pass();
    }
    let alive = u32::try_from(world.provider.alive().len()).expect("a few");
    assert!(alive > 0);
    let removed = keeper.answer(AutoscalerRequest::RemoveNodes, &world.seen(true)).await.expect("an answer");
    assert_eq!(removed, AutoscalerReply::Removed { removed: alive });
    for _ in 0..8 {
        world.pass();
        keeper.step(&world.seen(true)).await.expect("a queue that answers");
        assert_eq!(world.provider.alive().len(), 0, "none comes by itself");
    }
    world.pass();
    let answer = keeper.answer(AutoscalerRequest::Initialize, &world.seen(true)).await.expect("an answer");
    let AutoscalerReply::Initialized { spawned, failed: 0 } = answer else { panic!("{answer:?}") };
    assert_eq!(usize::try_from(spawned).expect("a few"), world.provider.alive().len());
    assert!(spawned > 0);
}
