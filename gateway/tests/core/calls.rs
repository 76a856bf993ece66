//! Sync calls that run.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_broker::{Change, Queue as _, Table, Tables as _};
use flux_gateway::core::InvokeRequest;
use flux_protocol::{ErrorCode, ErrorKind, Lane, OutcomeStatus, PoolName, limits, subject, subject::QueueName};
use futures::StreamExt as _;
use tokio::sync::Notify;

use crate::{
    fake_agent::Act,
    world::{World, deploy, ended, eventually, knows, name, payload, recorded},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_returns_what_the_function_printed_and_is_recorded() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "echo", "").await;

    let called = gateway.call(&name("echo"), payload("{\"n\":1}")).await.unwrap();
    assert_eq!(called.outcome.status, OutcomeStatus::Success);
    assert_eq!(called.outcome.output.to_text(), "{\"n\":1}");
    assert_eq!(called.agent_id.as_ref(), Some(agent.id()));
    assert_eq!((called.attempt, called.version, called.replayed), (1, 1, false));

    let record = ended(&world, called.execution_id).await;
    assert_eq!(record.lane, Lane::Call);
    assert_eq!(gateway.output(&record).await.unwrap().to_text(), "{\"n\":1}");
}

/// Those that wait at its queue may all be full, while others leave the queue to them.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_takes_is_told_to_every_agent() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let (agent, end) = world.agent_that_holds(1).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "resource_pressure_behavior: wait").await;
    let function = name("f");
    let key = QueueName::new(Lane::Call, PoolName::default(), function.clone()).key();
    let mut hot = world.broker.watch(Table::Hot, false).await.unwrap();
    let calls = async {
        let first = gateway.call(&function, payload(""));
        let second = async {
            agent.until("the first runs", |agent| agent.running().len() == 1).await;
            gateway.call(&function, payload("")).await
        };
        let (first, second) = tokio::join!(first, second);
        (first.unwrap(), second.unwrap())
    };
    let told = async {
        let mut puts = 0;
        while puts < 2 {
            match hot.next().await.unwrap().unwrap() {
                Change::Put(entry) if entry.key == key => puts += 1,
                _ => {}
            }
        }
        end.notify_one();
        agent.until("the second runs", |agent| agent.taken().len() == 2).await;
        end.notify_one();
    };
    let all = Box::pin(async { tokio::join!(calls, told) });
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("made hot, and then told of");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_functions_failure_is_an_outcome_and_is_not_retried() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent_with("a", 4, 3, |_| Act::Fail).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "broken", "retry: { max_attempts: 3 }").await;

    let called = gateway.call(&name("broken"), payload("")).await.unwrap();
    assert_eq!(called.outcome.status, OutcomeStatus::Failed);
    assert_eq!(called.outcome.error.as_ref().unwrap().kind, ErrorKind::Exit);
    ended(&world, called.execution_id).await;
    assert_eq!(agent.taken().len(), 1);
    assert!(gateway.dead_letter_counts().await.unwrap().is_empty(), "a sync call leaves no dead letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_other_executions_and_other_agents_do_not_count() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::ReplyWronglyThenSucceed).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;

    let called = gateway.call(&name("f"), payload("")).await.unwrap();
    assert_eq!(called.outcome.output.to_text(), "genuine");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_and_outputs_travel_by_reference() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |job| Act::Large(job.payload.len())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "large", "").await;

    let size = 3 * limits::MIB + 17;
    let request = InvokeRequest { payload: Bytes::from(vec![b'p'; size]), ..InvokeRequest::default() };
    let called = gateway.call(&name("large"), request).await.unwrap();
    assert_eq!(called.outcome.output.len(), size);

    let record = ended(&world, called.execution_id).await;
    assert_eq!(gateway.output(&record).await.unwrap().len(), size);
    let key = subject::payload_blob(called.execution_id);
    eventually("the payload is deleted", || async {
        !flux_broker::Blobs::has_blob(&*world.broker, subject::BLOB_BUCKET, &key).await.unwrap()
    })
    .await;

    let request = InvokeRequest { payload: Bytes::from(vec![b'p'; limits::PAYLOAD + 1]), ..InvokeRequest::default() };
    let refusal = gateway.call(&name("large"), request).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::PayloadTooLarge);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_cancels_what_runs() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let never = Arc::new(Notify::new());
    let agent = world.agent("a", move |_| Act::Hold(Arc::clone(&never))).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "slow", "").await;

    let function = name("slow");
    let mut call = Box::pin(gateway.call(&function, payload("")));
    tokio::select! {
        called = &mut call => panic!("it ended: {called:?}"),
        () = agent.until("it runs", |agent| !agent.running().is_empty()) => {}
    }
    let id = agent.running()[0];
    drop(call);
    agent.until("it was cancelled", |agent| agent.running().is_empty()).await;
    let record = ended(&world, id).await;
    assert_eq!(record.outcome.unwrap().status, OutcomeStatus::Cancelled);
    gateway.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_takes_what_is_queued_with_it() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed(String::new())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "max_concurrency_behavior: wait\nresource_pressure_behavior: wait").await;
    world.broker.pause_deliveries(true);

    let function = name("f");
    let queue = QueueName::new(Lane::Call, PoolName::default(), function.clone());
    let mut call = Box::pin(gateway.call(&function, payload("")));
    let queued = eventually("it is queued", || async { world.broker.depth(&queue).await.unwrap() == 1 });
    tokio::select! {
        called = &mut call => panic!("it ended: {called:?}"),
        () = queued => {}
    }
    drop(call);
    eventually("it was taken back", || async { world.broker.depth(&queue).await.unwrap() == 0 }).await;
    world.broker.pause_deliveries(false);
    gateway.drain().await;
    assert!(agent.taken().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_is_504_and_ends_the_execution() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let never = Arc::new(Notify::new());
    let agent = world.agent("a", move |_| Act::Hold(Arc::clone(&never))).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "slow", "").await;

    let request = InvokeRequest { timeout: Some(Duration::from_millis(300)), ..payload("") };
    let refusal = gateway.call(&name("slow"), request).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::DeadlineExceeded);
    let id = agent.taken()[0].0;
    assert_eq!(refusal.details["execution_id"], id.to_string());
    ended(&world, id).await;
    agent.until("it was cancelled", |agent| agent.running().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_has_a_record_that_any_gateway_can_read() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    let (agent, end) = world.agent_that_holds(1).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "max_concurrency_behavior: wait\nresource_pressure_behavior: wait").await;

    let function = name("f");
    let first = gateway.call(&function, payload("1"));
    let second = async {
        agent.until("the first runs", |agent| agent.running().len() == 1).await;
        gateway.call(&function, payload("2")).await
    };
    let watch = async {
        let first = agent.until("it runs", |agent| agent.running().len() == 1);
        first.await;
        let running = agent.running()[0];
        // The second one waits in the queue for the only slot.
        eventually("two have records", || async { other.executions(filter()).await.unwrap().len() == 2 }).await;
        let waiting = other.executions(filter()).await.unwrap();
        let waiting = waiting.iter().find(|record| record.execution_id != running).unwrap();
        assert_eq!(waiting.status_text(), "running");
        let record = recorded(&world, waiting.execution_id).await;
        assert!(record.position.is_some());
        let why = other.why(waiting.execution_id).await.unwrap();
        assert_eq!(why.reason, "no_resources", "{}", why.explanation);
        end.notify_one();
        agent.until("the second runs", |agent| agent.taken().len() == 2).await;
        end.notify_one();
    };
    let (first, second, ()) = tokio::join!(first, second, watch);
    assert_eq!(first.unwrap().outcome.status, OutcomeStatus::Success);
    assert_eq!(second.unwrap().outcome.status, OutcomeStatus::Success);
}

fn filter() -> flux_store::ExecutionFilter {
    flux_store::ExecutionFilter { limit: 10, ..flux_store::ExecutionFilter::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_is_found_in_the_store() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::SucceedSilently).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let called = gateway.call(&name("f"), payload("")).await.unwrap();
    assert_eq!(called.outcome.output.to_text(), "unheard");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_the_broker_did_not_answer_is_tried_again() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed("done".to_owned())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    world.broker.fail_publishes(2);
    let called = gateway.call(&name("f"), payload("")).await.unwrap();
    assert_eq!(called.outcome.output.to_text(), "done");
    assert_eq!(agent.taken().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_ends_what_is_in_flight_and_takes_nothing_new() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "slow", "").await;
    let function = name("slow");
    let in_flight = gateway.call(&function, payload(""));
    let draining = async {
        agent.until("it runs", |agent| !agent.running().is_empty()).await;
        let drained = gateway.drain();
        let refused = async {
            eventually("it drains", || async { gateway.readiness().await.draining }).await;
            let sync = gateway.call(&function, payload("")).await.unwrap_err();
            let asynchronous = gateway.invoke(&function, payload("")).await.unwrap_err();
            for refusal in [sync, asynchronous] {
                assert_eq!(refusal.code, ErrorCode::ShuttingDown);
                assert!(refusal.retry_after.is_some());
            }
            end.notify_one();
        };
        tokio::join!(drained, refused);
    };
    let (called, ()) = tokio::join!(in_flight, draining);
    assert_eq!(called.unwrap().outcome.status, OutcomeStatus::Success);
}
