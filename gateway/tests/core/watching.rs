//! Live output, from any gateway, resumed.

use std::sync::Arc;

use flux_gateway::core::{WatchEvent, WatchFrom};
use flux_protocol::{
    ErrorCode, ErrorKind, ExecutionError, ExecutionId, Outcome, OutcomeStatus, Phase, StatusMessage, time::now,
};
use flux_store::StatusUpdate;
use futures::{StreamExt as _, stream::BoxStream};
use tokio::sync::Notify;

use crate::{
    fake_agent::Act,
    flaky_store::FlakyStore,
    world::{World, deploy, ended, eventually, name, payload},
};

async fn next(events: &mut BoxStream<'static, WatchEvent>) -> WatchEvent {
    tokio::time::timeout(std::time::Duration::from_secs(20), events.next())
        .await
        .expect("an event")
        .expect("no end yet")
}

async fn line(events: &mut BoxStream<'static, WatchEvent>) -> (u64, String) {
    match next(events).await {
        WatchEvent::Output { chunk, .. } => (chunk.seq, String::from_utf8(chunk.data.to_vec()).unwrap()),
        WatchEvent::End(record) => panic!("it ended: {record:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_told_as_it_is_written_and_late_comers_get_all_of_it() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    deploy(&gateway, "f", "").await;
    let step = Arc::new(Notify::new());
    let lines = ["one", "two", "three"].map(str::to_owned).to_vec();
    let agent = {
        let step = Arc::clone(&step);
        world.agent("a", move |_| Act::Print(lines.clone(), Arc::clone(&step))).await
    };
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    let id = accepted.execution_id;
    let mut early = gateway.watch(id, WatchFrom::default()).await.unwrap();
    agent.until("it runs", |agent| agent.running().len() == 1).await;
    step.notify_one();
    assert_eq!(line(&mut early).await, (1, "one".to_owned()));
    step.notify_one();
    assert_eq!(line(&mut early).await, (2, "two".to_owned()));

    let running = gateway.execution(id).await.unwrap();
    assert_eq!(gateway.output(&running).await.unwrap().to_text(), "onetwo", "output grows while it runs");

    let mut late = other.watch(id, WatchFrom::default()).await.unwrap();
    assert_eq!(line(&mut late).await, (1, "one".to_owned()));
    assert_eq!(line(&mut late).await, (2, "two".to_owned()));
    let mut resumed = other.watch(id, WatchFrom { attempt: 1, chunk: 1 }).await.unwrap();
    assert_eq!(line(&mut resumed).await, (2, "two".to_owned()));
    step.notify_one();
    for events in [&mut early, &mut late, &mut resumed] {
        assert_eq!(line(events).await, (3, "three".to_owned()));
        match next(events).await {
            WatchEvent::End(record) => assert_eq!(record.status_text(), "success"),
            WatchEvent::Output { chunk, .. } => panic!("told twice: {chunk:?}"),
        }
        assert!(events.next().await.is_none(), "nothing follows the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_execution_is_replayed_from_its_record() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let _agent = world.agent("a", |_| Act::Large(300_000)).await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    ended(&world, accepted.execution_id).await;
    let mut events = gateway.watch(accepted.execution_id, WatchFrom { attempt: 1, chunk: 2 }).await.unwrap();
    let mut bytes = 0;
    loop {
        match next(&mut events).await {
            WatchEvent::Output { chunk, .. } => {
                assert!(chunk.seq > 2);
                bytes += chunk.data.len();
            }
            WatchEvent::End(record) => {
                assert_eq!(record.status_text(), "success");
                break;
            }
        }
    }
    assert_eq!(bytes, 300_000 - 2 * flux_protocol::limits::OUTPUT_CHUNK);
    let unknown = gateway.watch(ExecutionId::new(), WatchFrom::default()).await.err().unwrap();
    assert_eq!(unknown.code, ErrorCode::ExecutionNotFound);
}

/// Another outcome lies before it in the log, such as of an attempt whose agent was taken for dead.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_the_one_that_was_recorded_and_not_the_one_that_was_said() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    deploy(&gateway, "f", "").await;
    let (agent, end) = world.agent_that_holds(1).await;
    let id = gateway.invoke(&name("f"), payload("")).await.unwrap().execution_id;
    agent.until("it runs", |agent| agent.running().len() == 1).await;
    store.set_records_nothing(true);
    let mut events = gateway.watch(id, WatchFrom::default()).await.unwrap();
    end.notify_one();
    // From here on its success has been said.
    let refused = store.refused();
    agent.until("it ended", |agent| agent.running().is_empty()).await;
    eventually("the recorder has tried", || async { store.refused() > refused }).await;
    let record = world.store.execution(id).await.unwrap().unwrap();
    let outcome =
        Outcome::without_process(OutcomeStatus::Cancelled, ExecutionError::new(ErrorKind::Cancelled, "first"));
    let status = StatusMessage {
        execution_id: id,
        function: record.function.clone(),
        version: record.version,
        attempt: 1,
        lane: record.lane,
        pool: record.pool.clone(),
        phase: Phase::Ended,
        agent_id: None,
        queued_at: record.queued_at,
        started_at: None,
        at: now(),
        deadline: None,
        traceparent: None,
        outcome: Some(outcome),
        invocation: None,
        notes: Vec::new(),
    };
    world.store.record(vec![StatusUpdate { status, sequence: 1 }]).await.unwrap();
    match next(&mut events).await {
        WatchEvent::End(record) => assert_eq!(record.status_text(), "cancelled"),
        WatchEvent::Output { chunk, .. } => panic!("nothing was printed: {chunk:?}"),
    }
}
