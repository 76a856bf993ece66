//! Cancel: queued, running, waiting for a retry, terminal, unknown.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use flux_broker::{Queue as _, Table, Tables as _};
use flux_protocol::{
    ErrorCode, ErrorKind, ExecutionId, Lane, OutcomeStatus, Phase, PoolName, limits::HEARTBEAT_EVERY,
    subject::QueueName,
};
use tokio::sync::Notify;

use crate::{
    fake_agent::{Act, Job},
    flaky_store::FlakyStore,
    world::{World, deploy, ended, eventually, knows, name, payload},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_is_taken_out_and_recorded() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    deploy(&gateway, "f", "").await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    other.cancel(accepted.execution_id).await.unwrap();
    let record = other.execution(accepted.execution_id).await.unwrap();
    assert_eq!(record.status_text(), "cancelled");
    assert_eq!(record.outcome.unwrap().error.unwrap().kind, ErrorKind::Cancelled);
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), name("f"));
    assert_eq!(world.broker.depth(&queue).await.unwrap(), 0);
    let agent = world.agent("a", |_| Act::Succeed(String::new())).await;
    let second = gateway.invoke(&name("f"), payload("")).await.unwrap();
    ended(&world, second.execution_id).await;
    assert_eq!(agent.taken(), [(second.execution_id, 1)]);
    let refusal = gateway.cancel(accepted.execution_id).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::AlreadyTerminal);
    assert!(gateway.dead_letter_counts().await.unwrap().is_empty(), "a cancelled one is no dead letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_ended_by_its_agent() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let never = Arc::new(Notify::new());
    let agent = world.agent("a", move |_| Act::Hold(Arc::clone(&never))).await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    agent.until("it runs", |agent| agent.running().len() == 1).await;
    gateway.cancel(accepted.execution_id).await.unwrap();
    assert!(agent.running().is_empty(), "its processes are gone when the cancel is answered");
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.outcome.unwrap().status, OutcomeStatus::Cancelled);
}

/// A `nats-server` that is killed may have forgotten that it delivered what an agent runs since.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_ended_also_where_the_queue_forgot_that_it_delivered_it() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    deploy(&gateway, "f", "").await;
    let never = Arc::new(Notify::new());
    let agent = world.agent("a", move |_| Act::Hold(Arc::clone(&never))).await;
    knows(&gateway, &[&agent]).await;
    // So that the record does not tell either.
    store.set_records_nothing(true);
    let id = gateway.invoke(&name("f"), payload("")).await.unwrap().execution_id;
    agent.until("it runs", |agent| agent.running().len() == 1).await;
    world.broker.forget_deliveries();
    assert_eq!(gateway.execution(id).await.unwrap().phase, Phase::Queued);
    let ends = async {
        agent.until("it does not run", |agent| agent.running().is_empty()).await;
        let stopped = Instant::now();
        eventually("a while to pass", || async { stopped.elapsed() > Duration::from_secs(2) }).await;
        store.set_records_nothing(false);
    };
    let (cancelled, ()) = tokio::join!(gateway.cancel(id), ends);
    cancelled.unwrap();
    assert_eq!(
        gateway.execution(id).await.unwrap().status_text(),
        "cancelled",
        "a word that is not recorded can be lost"
    );
    assert!(agent.running().is_empty(), "its processes are gone when the cancel is answered");
    assert_eq!(ended(&world, id).await.outcome.unwrap().status, OutcomeStatus::Cancelled);
}

/// The same where its agent is not back from the queue's death yet, and the other one is.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_answer_is_waited_for_before_a_cancel_is_confirmed() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let (started, gateway) = (Instant::now(), world.gateway_over(store.clone()).await);
    deploy(&gateway, "f", "").await;
    let hold = || {
        let never = Arc::new(Notify::new());
        move |_: &Job| Act::Hold(Arc::clone(&never))
    };
    let agents = [world.agent("a", hold()).await, world.agent("b", hold()).await];
    knows(&gateway, &[&agents[0], &agents[1]]).await;
    // Before that it believes no answers, since there may be agents that it has not heard of.
    eventually("it knows all there may be", || async { started.elapsed() > 2 * HEARTBEAT_EVERY }).await;
    store.set_records_nothing(true);
    let id = gateway.invoke(&name("f"), payload("")).await.unwrap().execution_id;
    eventually("it runs", || async { agents.iter().any(|agent| agent.running() == [id]) }).await;
    let holder = usize::from(agents[0].running().is_empty());
    let (holder, other) = (&agents[holder], &agents[1 - holder]);
    holder.set_deaf(true);
    world.broker.forget_deliveries();
    let back = async {
        other.until("the other one was asked", |other| other.refuses(id)).await;
        holder.set_deaf(false);
        holder.until("it does not run", |holder| holder.running().is_empty()).await;
        store.set_records_nothing(false);
    };
    let (cancelled, ()) = tokio::join!(gateway.cancel(id), back);
    cancelled.unwrap();
    assert!(holder.running().is_empty(), "its processes are gone when the cancel is answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_call_can_be_cancelled_from_any_gateway_while_it_waits() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    let agent = world.agent("a", |_| Act::Succeed(String::new())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "max_concurrency_behavior: wait\nresource_pressure_behavior: wait").await;
    world.broker.pause_deliveries(true);
    let function = name("f");
    let call = gateway.call(&function, payload(""));
    let cancel = async {
        let filter = flux_store::ExecutionFilter { limit: 9, ..Default::default() };
        eventually("it has a record", || async { !other.executions(filter.clone()).await.unwrap().is_empty() }).await;
        let id = other.executions(filter).await.unwrap()[0].execution_id;
        other.cancel(id).await.unwrap();
    };
    let (called, ()) = tokio::join!(call, cancel);
    assert_eq!(called.unwrap().outcome.status, OutcomeStatus::Cancelled);
    world.broker.pause_deliveries(false);
    assert!(agent.taken().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_waits_does_not_start() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "retry: { max_attempts: 2, backoff: 1h }").await;
    let agent = world.agent_with("a", 4, 2, |_| Act::Fail).await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    let id = accepted.execution_id;
    eventually("the retry waits", || async { gateway.execution(id).await.unwrap().attempt == 2 }).await;
    let why = gateway.why(id).await.unwrap();
    assert_eq!(why.reason, "waiting_for_retry", "{}", why.explanation);
    gateway.cancel(id).await.unwrap();
    let record = ended(&world, id).await;
    assert_eq!(record.outcome.unwrap().status, OutcomeStatus::Cancelled);
    assert_eq!(agent.taken(), [(id, 1)]);
}

/// What runs between an end and its record: the next attempt is not known yet, and must not start.
#[tokio::test(flavor = "multi_thread")]
async fn what_failed_and_is_not_recorded_yet_is_cancelled_for_its_next_attempt_too() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    deploy(&gateway, "f", "retry: { max_attempts: 2, backoff: 1h }").await;
    store.set_records_nothing(true);
    let agent = world.agent_with("a", 4, 2, |_| Act::Fail).await;
    knows(&gateway, &[&agent]).await;
    let id = gateway.invoke(&name("f"), payload("")).await.unwrap().execution_id;
    agent.until("it failed", |agent| agent.taken().len() == 1 && agent.running().is_empty()).await;
    assert_eq!(gateway.execution(id).await.unwrap().status_text(), "running", "its failure is not recorded");
    let recorded = async {
        let kept = || async { world.broker.get(Table::Cancelled, &id.to_string()).await.unwrap().is_some() };
        eventually("agents can read it before they start the next attempt", kept).await;
        store.set_records_nothing(false);
    };
    let (cancelled, ()) = tokio::join!(gateway.cancel(id), recorded);
    cancelled.unwrap();
    assert_eq!(ended(&world, id).await.outcome.unwrap().status, OutcomeStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_succeeded_and_is_not_recorded_yet_is_not_called_cancelled() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(store.clone()).await;
    deploy(&gateway, "f", "").await;
    store.set_records_nothing(true);
    let agent = world.agent("a", |_| Act::Succeed(String::new())).await;
    knows(&gateway, &[&agent]).await;
    let id = gateway.invoke(&name("f"), payload("")).await.unwrap().execution_id;
    agent.until("it ran", |agent| agent.taken().len() == 1 && agent.running().is_empty()).await;
    let refused = store.refused();
    eventually("the recorder has tried", || async { store.refused() > refused }).await;
    let end = async {
        // While the cancel waits for what is recorded first, however long that takes.
        let begun = Instant::now();
        eventually("the cancel is published", || async {
            world.broker.get(Table::Cancelled, &id.to_string()).await.unwrap().is_some()
                && begun.elapsed() > Duration::from_secs(5)
        })
        .await;
        store.set_records_nothing(false);
    };
    let (cancelled, ()) = tokio::join!(gateway.cancel(id), end);
    assert_eq!(cancelled.unwrap_err().code, ErrorCode::AlreadyTerminal);
    assert_eq!(ended(&world, id).await.outcome.unwrap().status, OutcomeStatus::Success);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_is_404_and_what_ended_is_409() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    assert_eq!(gateway.cancel(ExecutionId::new()).await.unwrap_err().code, ErrorCode::ExecutionNotFound);
    let _agent = world.agent("a", |_| Act::Succeed(String::new())).await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    ended(&world, accepted.execution_id).await;
    let refusal = gateway.cancel(accepted.execution_id).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::AlreadyTerminal);
    assert_eq!(refusal.details["status"], "success");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_died_with_its_agent_is_cancelled_once_its_lease_ended() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let agent = world.agent("a", |_| Act::Vanish).await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    agent.until("it was taken", |agent| agent.taken().len() == 1).await;
    agent.kill();
    gateway.cancel(accepted.execution_id).await.unwrap();
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.outcome.unwrap().status, OutcomeStatus::Cancelled);
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), name("f"));
    assert_eq!(world.broker.depth(&queue).await.unwrap(), 0, "nobody starts it again");
}
