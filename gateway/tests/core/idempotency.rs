//! `Idempotency-Key`, sync and not.

use std::sync::Arc;

use flux_protocol::{ErrorCode, OutcomeStatus};
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

/// What was published and then refused can be with an agent already. It has a key, so it goes on, and the key stands for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_refused_after_an_agent_had_it_is_the_same_execution_when_it_is_made_again() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let refuse = Arc::new(Notify::new());
    store.set_records_nothing(true);
    store.accept_nothing_after(Some(Arc::clone(&refuse)));
    let function = name("f");
    let runs = async {
        agent.until("it runs", |agent| agent.running().len() == 1).await;
        refuse.notify_one();
    };
    let (refused, ()) = tokio::join!(gateway.invoke(&function, keyed("x", "k")), runs);
    assert_eq!(refused.unwrap_err().code, ErrorCode::StoreUnavailable);
    // The gateway tries to record it again.
    store.accept_nothing_after(None);
    refuse.notify_one();
    let second = gateway.invoke(&function, keyed("x", "k")).await.unwrap();
    let taken = agent.taken();
    assert_eq!((second.replayed, taken), (true, vec![(second.execution_id, 1)]));
    store.set_records_nothing(false);
    end.notify_one();
    assert_eq!(ended(&world, second.execution_id).await.status_text(), "success");
    assert_eq!(agent.taken().len(), 1);
}

/// It is in the store, and was not published: what is made again with the key is that one, not another beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_record_cannot_be_read_keeps_its_key() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let (gateway, other) = (world.gateway_over(store.clone()).await, world.gateway().await);
    let agent = world.agent("a", |_| Act::Succeed(String::new())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let function = name("f");
    store.set_reads_nothing(true);
    let refusal = gateway.call(&function, keyed("x", "k")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::StoreUnavailable);
    let recorded =
        world.store.executions(&flux_store::ExecutionFilter { limit: 9, ..Default::default() }).await.unwrap();
    assert_eq!(recorded.len(), 1);
    let again = other.invoke(&function, keyed("x", "k")).await.unwrap();
    assert_eq!((again.execution_id, again.replayed), (recorded[0].execution_id, true));
}
