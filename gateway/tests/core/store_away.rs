//! While the store is away: nothing is accepted that it does not hold, nothing recorded is lost, and calls that need it not go on.

use std::time::Duration;

use flux_broker::{Queue as _, StatusLog as _, Table, Tables as _};
use flux_protocol::{ErrorCode, Lane, OutcomeStatus, PoolName, subject::QueueName};

use crate::{
    fake_agent::Act,
    flaky_store::FlakyStore,
    world::{World, deploy, ended, eventually, knows, name, payload},
};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn invocations_are_refused_and_taken_back_and_accepted_again_after() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    deploy(&gateway, "f", "").await;
    gateway.invoke(&name("f"), payload("")).await.unwrap();
    store.set_away(true);
    let refusal = gateway.invoke(&name("f"), payload("")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::StoreUnavailable);
    assert!(refusal.retry_after.is_some());
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), name("f"));
    assert_eq!(world.broker.depth(&queue).await.unwrap(), 1, "only the accepted one is queued");
    assert!(!gateway.readiness().await.store);
    store.set_away(false);
    gateway.invoke(&name("f"), payload("")).await.unwrap();
    assert!(gateway.readiness().await.store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_starts_waits_for_it() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    store.set_away(true);
    let comes_back = async {
        eventually("it was asked twice", || async { store.refused() >= 2 }).await;
        store.set_away(false);
    };
    let (gateway, ()) = tokio::join!(world.gateway_over(store.clone()), comes_back);
    assert!(gateway.readiness().await.store);
}

/// It may lie in its queue for longer than agents remember a cancel.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_and_cannot_be_taken_back_is_written_down() {
    let world = World::with_less().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    deploy(&gateway, "f", "").await;
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), name("f"));
    let queued = async || world.broker.depth(&queue).await.unwrap();
    // News of the deployment that come late drop what the gateway knows of `f`. It then refuses before it publishes, as it
    // has to ask the store.
    let was_published = async || {
        store.set_away(false);
        gateway.invoke(&name("f"), payload("")).await.unwrap();
        let before = queued().await;
        store.set_away(true);
        gateway.invoke(&name("f"), payload("")).await.unwrap_err();
        queued().await > before
    };
    tokio::time::timeout(SOON, async { while !was_published().await {} }).await.expect("a refusal after the publish");
    eventually("it is among what was cancelled", || async {
        world.broker.keys(Table::Cancelled).await.unwrap().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_calls_of_known_functions_run_and_are_recorded_once_it_is_back() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    let agent = world.agent("a", |_| Act::Succeed("without it".to_owned())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;

    // News of the deployment's first step that come late drop what a call has cached, and news that come during its
    // read keep that from being cached: until they have come, a call may need the store.
    let without_the_store = async || {
        store.set_away(false);
        gateway.call(&name("f"), payload("")).await.unwrap();
        store.set_away(true);
        gateway.call(&name("f"), payload("")).await.ok()
    };
    let called = tokio::time::timeout(SOON, async {
        loop {
            if let Some(called) = without_the_store().await {
                return called;
            }
        }
    });
    let called = called.await.expect("a call without the store");
    assert_eq!(called.outcome.output.to_text(), "without it");
    let refused = store.refused();
    // The recorder tries, is refused, and keeps the status: acked early it would be gone now.
    eventually("the recorder has tried", || async { store.refused() > refused + 3 }).await;
    assert!(world.store.execution(called.execution_id).await.unwrap().is_none());
    store.set_away(false);
    let record = ended(&world, called.execution_id).await;
    assert_eq!(record.outcome.unwrap().status, OutcomeStatus::Success);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_and_dead_letters_wait_for_it_too() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    deploy(&gateway, "f", "retry: { max_attempts: 2, backoff: 10ms }").await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    store.set_away(true);
    let agent = world.agent_with("a", 4, 2, |_| Act::Fail).await;
    agent.until("it failed once", |agent| agent.taken().len() == 1 && agent.running().is_empty()).await;
    let refused = store.refused();
    eventually("the recorder has tried", || async { store.refused() > refused + 3 }).await;
    store.set_away(false);
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!((record.attempt, record.outcome.unwrap().status), (2, OutcomeStatus::Failed));
    eventually("there is one letter", || async { gateway.dead_letters(&name("f"), 0, 9).await.unwrap().len() == 1 })
        .await;
    assert_eq!(agent.taken().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_attempt_that_could_not_be_published_is_published_when_the_status_comes_again() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "retry: { max_attempts: 2, backoff: 10ms }").await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    // The next publish is the next attempt's. It fails after the failure was recorded, as dying there would.
    world.broker.fail_publishes(1);
    let agent = world.agent_with("a", 4, 2, |_| Act::Fail).await;
    agent.until("both attempts ran", |agent| agent.taken().len() == 2).await;
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.attempt, 2);
    assert_eq!(agent.taken(), [(accepted.execution_id, 1), (accepted.execution_id, 2)]);
    eventually("there is one letter", || async { gateway.dead_letters(&name("f"), 0, 9).await.unwrap().len() == 1 })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_can_never_be_recorded_does_not_hold_up_the_others() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    for function in ["damaged", "sound"] {
        deploy(&gateway, function, "").await;
    }
    // While the store is away statuses of both gather, so that they come in one batch.
    let damaged = gateway.invoke(&name("damaged"), payload("")).await.unwrap().execution_id;
    let sound = gateway.invoke(&name("sound"), payload("")).await.unwrap().execution_id;
    store.damage(name("damaged"));
    store.set_away(true);
    let agent = world.agent_with("a", 4, 1, |_| Act::Succeed(String::new())).await;
    agent.until("both ran", |agent| agent.taken().len() == 2 && agent.running().is_empty()).await;
    store.set_away(false);
    assert_eq!(ended(&world, sound).await.outcome.unwrap().status, OutcomeStatus::Success);
    // What came after is recorded too, and what cannot be does not come again.
    let later = gateway.invoke(&name("sound"), payload("")).await.unwrap().execution_id;
    ended(&world, later).await;
    assert!(!world.store.execution(damaged).await.unwrap().unwrap().is_terminal());
    eventually("the log is empty", || async { world.broker.backlog().await.unwrap() == 0 }).await;
}
