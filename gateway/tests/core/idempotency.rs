//! `Idempotency-Key`, sync and not.

use std::{sync::Arc, time::Duration};

use flux_protocol::{Digest, ErrorCode, ExecutionId, OutcomeStatus, Timestamp, time::now};
use flux_store::Claim;
use tokio::sync::Notify;

use crate::{
    fake_agent::Act,
    flaky_store::FlakyStore,
    world::{World, deploy, ended, keyed, knows, name},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_runs_once_and_another_body_is_refused() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let function = name("f");

    let first = gateway.call(&function, keyed("one", "k")).await.unwrap();
    assert!(!first.replayed);
    let second = gateway.call(&function, keyed("one", "k")).await.unwrap();
    assert!(second.replayed);
    assert_eq!(second.execution_id, first.execution_id);
    assert_eq!(second.outcome.output.to_text(), "one");
    // An asynchronous request attaches to the same execution.
    let third = gateway.invoke(&function, keyed("one", "k")).await.unwrap();
    assert_eq!((third.execution_id, third.replayed), (first.execution_id, true));
    assert_eq!(agent.taken().len(), 1);

    for refusal in [
        gateway.call(&function, keyed("two", "k")).await.unwrap_err(),
        gateway.invoke(&function, keyed("two", "k")).await.unwrap_err(),
    ] {
        assert_eq!(refusal.code, ErrorCode::IdempotencyMismatch);
    }
    assert!(!gateway.invoke(&function, keyed("two", "another")).await.unwrap().replayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_caller_waits_for_the_first_execution_on_any_gateway() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let function = name("f");
    let first = gateway.call(&function, keyed("x", "k"));
    let second = async {
        agent.until("it runs", |agent| agent.running().len() == 1).await;
        let second = other.call(&function, keyed("x", "k"));
        let release = async {
            tokio::task::yield_now().await;
            end.notify_one();
        };
        tokio::join!(second, release).0
    };
    let (first, second) = tokio::join!(first, second);
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.execution_id, second.execution_id);
    assert_eq!((first.replayed, second.replayed), (false, true));
    assert_eq!(second.outcome.status, OutcomeStatus::Success);
    assert_eq!(agent.taken().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_frees_its_key_and_ends_its_record() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed("ran".to_owned())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    world.broker.pause_deliveries(true);
    let function = name("f");
    let refusal = gateway.call(&function, keyed("x", "k")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::NoResources);
    let refused =
        world.store.executions(&flux_store::ExecutionFilter { limit: 9, ..Default::default() }).await.unwrap();
    assert_eq!(refused.len(), 1);
    let record = ended(&world, refused[0].execution_id).await;
    assert_eq!(record.outcome.unwrap().error.unwrap().kind, flux_protocol::ErrorKind::Throttled);
    world.broker.pause_deliveries(false);
    let called = gateway.call(&function, keyed("x", "k")).await.unwrap();
    assert_eq!((called.outcome.output.to_text().as_str(), called.replayed), ("ran", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_a_key_goes_on_when_its_caller_goes() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let function = name("f");
    tokio::select! {
        called = gateway.call(&function, keyed("x", "k")) => panic!("it ended: {called:?}"),
        () = agent.until("it runs", |agent| agent.running().len() == 1) => {}
    }
    // Somebody else was promised the same execution.
    let accepted = gateway.invoke(&function, keyed("x", "k")).await.unwrap();
    end.notify_one();
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.outcome.unwrap().status, OutcomeStatus::Success);
    assert_eq!(agent.taken().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_dead_gateway_claimed_is_no_promise() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed("ran".to_owned())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let function = name("f");
    let dead = gateway.invoke(&function, keyed("x", "k")).await.unwrap().execution_id;
    // As a gateway leaves it that died between the claim and the record, nine seconds ago.
    let claim = world.store.claim_idempotency(&function, "k", Digest::of(b""), dead, now(), Duration::ZERO).await;
    let Ok(Claim::Held { body, .. }) = claim else { panic!("{claim:?}") };
    world.store.release_idempotency(&function, "k", dead).await.unwrap();
    let (gone, earlier) = (ExecutionId::new(), Timestamp::from_micros(now().as_micros() - 9_000_000));
    let claimed = world.store.claim_idempotency(&function, "k", body, gone, earlier, Duration::from_secs(60)).await;
    assert!(matches!(claimed, Ok(Claim::Claimed)), "{claimed:?}");

    let accepted = gateway.invoke(&function, keyed("x", "k")).await.unwrap();
    assert_ne!(accepted.execution_id, gone, "nobody would ever run that one");
    assert_eq!(ended(&world, accepted.execution_id).await.outcome.unwrap().output.to_text(), "ran");
}

/// What was published and then refused can be with an agent already, which is told to end it. The key is for another try.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_refused_after_an_agent_had_it_can_be_made_again() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let refuse = Arc::new(Notify::new());
    store.accept_nothing_after(Some(Arc::clone(&refuse)));
    let function = name("f");
    let runs = async {
        agent.until("it runs", |agent| agent.running().len() == 1).await;
        refuse.notify_one();
    };
    let (refused, ()) = tokio::join!(gateway.invoke(&function, keyed("x", "k")), runs);
    assert_eq!(refused.unwrap_err().code, ErrorCode::StoreUnavailable);
    store.accept_nothing_after(None);
    let (first, _) = agent.taken()[0];
    assert_eq!(ended(&world, first).await.status_text(), "cancelled");
    let second = gateway.invoke(&function, keyed("x", "k")).await.unwrap();
    assert!(!second.replayed && second.execution_id != first, "{second:?}");
    agent.until("it runs again", |agent| agent.running().len() == 1).await;
    end.notify_one();
    assert_eq!(ended(&world, second.execution_id).await.status_text(), "success");
}
