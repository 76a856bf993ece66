//! Asynchronous invocations.

use std::sync::Arc;

use bytes::Bytes;
use flux_broker::{Blobs as _, Message, Queue as _, memory::MemoryLimits};
use flux_gateway::core::InvokeRequest;
use flux_protocol::{
    ErrorCode, Lane, OutcomeStatus, Phase, PoolName, limits, subject, subject::QueueName, trace::TraceParent,
};

use crate::{
    fake_agent::Act,
    world::{World, deploy, ended, eventually, knows, name, payload, recorded},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_is_in_the_queue_and_in_the_store() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let accepted = gateway.invoke(&name("f"), payload("later")).await.unwrap();
    let record = world.store.execution(accepted.execution_id).await.unwrap().unwrap();
    assert_eq!((record.phase, record.lane, record.attempt), (Phase::Queued, Lane::Invoke, 1));
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), name("f"));
    assert!(world.broker.is_stored(&queue, record.position.as_ref().unwrap()).await.unwrap());

    // It runs whenever an agent comes.
    let agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.outcome.unwrap().output.to_text(), "later");
    assert_eq!(agent.taken(), [(accepted.execution_id, 1)]);
    assert!(record.invocation.is_none(), "kept until it is terminal, no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_and_a_version_are_carried() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let told = Arc::clone(&seen);
    let _agent = world
        .agent("a", move |job| {
            *told.lock() = Some((job.invocation.version, job.invocation.traceparent.clone()));
            Act::Succeed(String::new())
        })
        .await;
    let trace = TraceParent::new();
    let request = InvokeRequest { trace: Some(trace), ..payload("") };
    let accepted = gateway.invoke(&name("f"), request).await.unwrap();
    ended(&world, accepted.execution_id).await;
    let (version, traceparent) = seen.lock().clone().unwrap();
    assert_eq!(version, Some(1));
    let carried = TraceParent::parse(&traceparent.unwrap()).unwrap();
    assert_eq!(carried.trace_id, trace.trace_id);
    assert_ne!(carried.span_id, trace.span_id);

    let request = InvokeRequest { version: Some(7), ..payload("") };
    assert_eq!(gateway.invoke(&name("f"), request).await.unwrap_err().code, ErrorCode::VersionNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_429() {
    let world = World::with_limits(MemoryLimits { queued_per_function: 2, ..MemoryLimits::default() }).await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    for _ in 0..2 {
        gateway.invoke(&name("f"), payload("")).await.unwrap();
    }
    let refusal = gateway.invoke(&name("f"), payload("")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::QueueFull);
    assert!(refusal.retry_after.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_is_taken_back() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    // The function is known; from now on the store does not answer.
    gateway.invoke(&name("f"), payload("")).await.unwrap();
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), name("f"));
    assert_eq!(world.broker.depth(&queue).await.unwrap(), 1);
    world.store.close().await;
    let refusal = gateway.invoke(&name("f"), payload("")).await.unwrap_err();
    assert!(refusal.code.http_status() >= 500, "{refusal}");
    assert_eq!(world.broker.depth(&queue).await.unwrap(), 1, "the refused one is not in the queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_goes_with_the_end() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let _agent = world.agent("a", |job| Act::Succeed(job.payload.len().to_string())).await;
    let request =
        InvokeRequest { payload: Bytes::from(vec![0; limits::INLINE_PAYLOAD + 1]), ..InvokeRequest::default() };
    let accepted = gateway.invoke(&name("f"), request).await.unwrap();
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.outcome.unwrap().output.to_text(), (limits::INLINE_PAYLOAD + 1).to_string());
    let key = subject::payload_blob(accepted.execution_id);
    eventually("the payload is deleted", || async {
        !world.broker.has_blob(subject::BLOB_BUCKET, &key).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_publish_to_a_cold_function_runs_and_is_seen() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), name("f"));
    let message = Message { body: Bytes::from_static(b"{\"n\":1}"), ..Message::default() };
    world.broker.publish(&queue, message).await.unwrap();
    agent.until("it was taken", |agent| agent.taken().len() == 1).await;
    let id = agent.taken()[0].0;
    let record = ended(&world, id).await;
    assert_eq!(record.outcome.unwrap().output.to_text(), "{\"n\":1}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_on_another_gateway_ends_with_the_execution() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    deploy(&gateway, "f", "").await;
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    let running = agent.until("it runs", |agent| agent.running().len() == 1);
    running.await;
    let still = other.wait(accepted.execution_id, std::time::Duration::from_millis(30)).await.unwrap();
    assert_eq!(still.status_text(), "running");
    let wait = other.wait(accepted.execution_id, std::time::Duration::from_secs(20));
    let release = async {
        recorded(&world, accepted.execution_id).await;
        end.notify_one();
    };
    let (record, ()) = tokio::join!(wait, release);
    let record = record.unwrap();
    assert_eq!(record.outcome.unwrap().status, OutcomeStatus::Success);
    assert_eq!(record.agent_id.as_ref(), Some(agent.id()));
    let unknown = other.wait(flux_protocol::ExecutionId::new(), std::time::Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::ExecutionNotFound);
}
