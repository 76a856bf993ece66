//! Live output, from any gateway, resumed.

use std::{sync::Arc, time::Duration};

use flux_broker::StatusLog as _;
use flux_gateway::core::{WatchEvent, WatchFrom};
use flux_protocol::{
    AgentId, ErrorCode, ErrorKind, ExecutionError, ExecutionId, ExecutionRecord, Outcome, OutcomeStatus, Phase,
    StatusMessage, time::now,
};
use flux_store::StatusUpdate;
use futures::{StreamExt as _, stream::BoxStream};
use tokio::sync::Notify;

use crate::{
    fake_agent::Act,
    flaky_store::FlakyStore,
    world::{World, deploy, ended, eventually, name, payload},
};

const SHOWN_WITHIN: Duration = Duration::from_secs(20);

async fn next(events: &mut BoxStream<'static, WatchEvent>) -> WatchEvent {
    tokio::time::timeout(SHOWN_WITHIN, events.next()).await.expect("an event").expect("no end yet")
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

/// An end that nobody has said yet.
fn end_of(record: &ExecutionRecord, attempt: u32, agent: Option<&str>, how: OutcomeStatus) -> StatusMessage {
    let error = ExecutionError::new(ErrorKind::Cancelled, "the test said so");
    StatusMessage {
        execution_id: record.execution_id,
        function: record.function.clone(),
        version: record.version,
        attempt,
        lane: record.lane,
        pool: record.pool.clone(),
        phase: Phase::Ended,
        agent_id: agent.map(|agent| AgentId::parse(agent).unwrap()),
        queued_at: record.queued_at,
        started_at: None,
        at: now(),
        deadline: None,
        traceparent: None,
        outcome: Some(Outcome::without_process(how, error)),
        invocation: None,
        notes: Vec::new(),
    }
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
    let status = end_of(&record, 1, None, OutcomeStatus::Cancelled);
    world.store.record(vec![StatusUpdate { status, sequence: Some(1) }]).await.unwrap();
    match next(&mut events).await {
        WatchEvent::End(record) => assert_eq!(record.status_text(), "cancelled"),
        WatchEvent::Output { chunk, .. } => panic!("nothing was printed: {chunk:?}"),
    }
}

/// The first gateway has the later attempt's outcome in hand, and records it when the other has recorded the earlier one's.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_that_was_shown_stays_where_the_queue_has_no_order() {
    let world = World::with_less().await;
    let slow = FlakyStore::over(&world.store);
    let first = world.gateway_over(slow.clone()).await;
    deploy(&first, "f", "").await;
    let id = first.invoke(&name("f"), payload("")).await.unwrap().execution_id;
    let queued = world.store.execution(id).await.unwrap().unwrap();
    slow.set_records_nothing(true);
    let refused = slow.refused();
    let later = end_of(&queued, 2, Some("b"), OutcomeStatus::Cancelled);
    world.broker.publish_status("b", &later).await.unwrap();
    eventually("the recorder has tried", || async { slow.refused() > refused }).await;
    let other = world.gateway().await;
    world.broker.publish_status("a", &end_of(&queued, 1, Some("a"), OutcomeStatus::Success)).await.unwrap();
    // Either of them, since the queue may have given the later one to the other gateway too. It is the same for good.
    eventually("an end is shown", || async { other.wait(id, SHOWN_WITHIN).await.unwrap().is_terminal() }).await;
    let shown = other.wait(id, SHOWN_WITHIN).await.unwrap();
    slow.set_records_nothing(false);
    eventually("all is recorded", || async { world.broker.backlog().await.unwrap() == 0 }).await;
    let record = world.store.execution(id).await.unwrap().unwrap();
    assert_eq!((record.status_text(), record.attempt), (shown.status_text(), shown.attempt));
}
