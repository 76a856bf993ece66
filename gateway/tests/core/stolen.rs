//! What a stolen agent says of executions that are none of its pool's. The broker holds it to its name and its pools (tried
//! in `shared/broker/tests/it/stolen.rs`); these are its words within them.

use flux_broker::{Queue as _, StatusLog as _};
use flux_gateway::Gateway;
use flux_protocol::{
    AgentId, ErrorKind, ExecutionError, ExecutionId, Invocation, Lane, Outcome, OutcomeStatus, Payload, Phase,
    PoolName, StatusMessage, subject::QueueName, time::now,
};

use crate::world::{World, deploy, ended, name, payload, recorded};

fn queue(pool: &str, function: &str) -> QueueName {
    QueueName::new(Lane::Invoke, PoolName::parse(pool).unwrap(), name(function))
}

/// That an execution failed which it makes up, with the invocation that it would like to have run.
fn forged(pool: &str, function: &str, will_retry: bool) -> StatusMessage {
    let error = ExecutionError::new(ErrorKind::Exit, "it exited with code 1");
    let mut outcome = Outcome::without_process(OutcomeStatus::Failed, error);
    outcome.will_retry = will_retry;
    let evil = Invocation { payload: Payload::Inline(b"evil".to_vec().into()), ..Invocation::default() };
    StatusMessage {
        execution_id: ExecutionId::new(),
        function: name(function),
        version: 1,
        attempt: 1,
        lane: Lane::Invoke,
        pool: PoolName::parse(pool).unwrap(),
        phase: Phase::Ended,
        agent_id: Some(AgentId::parse("thief").unwrap()),
        queued_at: now(),
        started_at: Some(now()),
        at: now(),
        deadline: None,
        traceparent: None,
        outcome: Some(outcome),
        invocation: Some(Box::new(evil)),
        notes: Vec::new(),
    }
}

/// Says it, and returns when the gateway is through with it: the log holds what is not acked.
async fn say(world: &World, status: &StatusMessage) {
    world.broker.publish_status("thief", status).await.unwrap();
    crate::world::eventually("the log is empty", || async { world.broker.backlog().await.unwrap() == 0 }).await;
}

async fn scene() -> (World, Gateway) {
    let mut world = World::new().await;
    world.pools.push(PoolName::parse("gpu").unwrap());
    let gateway = world.gateway().await;
    let retries = "retry: { max_attempts: 3, backoff: 0s }\n";
    deploy(&gateway, "train", &format!("pool: gpu\n{retries}")).await;
    deploy(&gateway, "hello", retries).await;
    deploy(&gateway, "once", "").await;
    (world, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attempt_and_no_dead_letter_follows_for_a_function_of_another_pool() {
    let (world, gateway) = scene().await;
    say(&world, &forged("default", "train", true)).await;
    say(&world, &forged("default", "train", false)).await;
    for pool in ["default", "gpu"] {
        assert_eq!(world.broker.depth(&queue(pool, "train")).await.unwrap_or(0), 0, "{pool}");
    }
    assert!(gateway.dead_letter_counts().await.unwrap().is_empty());
    // In its own pool it is believed: nothing tells it from a producer's execution that failed there.
    say(&world, &forged("default", "hello", true)).await;
    assert_eq!(world.broker.depth(&queue("default", "hello")).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_more_than_the_function_has_does_not_follow() {
    let (world, _gateway) = scene().await;
    say(&world, &forged("default", "once", true)).await;
    assert_eq!(world.broker.depth(&queue("default", "once")).await.unwrap_or(0), 0);
    let mut third = forged("default", "hello", true);
    third.invocation.as_mut().unwrap().failures = 2;
    say(&world, &third).await;
    let mut call = forged("default", "hello", true);
    call.lane = Lane::Call;
    say(&world, &call).await;
    for lane in Lane::ALL {
        let queue = QueueName { lane, ..queue("default", "hello") };
        assert_eq!(world.broker.depth(&queue).await.unwrap_or(0), 0, "{lane:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_of_another_pool_keeps_its_record() {
    let (world, gateway) = scene().await;
    let id = gateway.invoke(&name("train"), payload("kept")).await.unwrap().execution_id;
    let before = recorded(&world, id).await;
    for (pool, function, lane) in
        [("default", "train", Lane::Invoke), ("gpu", "hello", Lane::Invoke), ("gpu", "train", Lane::Call)]
    {
        for will_retry in [false, true] {
            let status = StatusMessage { execution_id: id, lane, ..forged(pool, function, will_retry) };
            // One transition is stored once, whoever says it.
            let status = StatusMessage { attempt: if will_retry { 1 } else { 7 }, ..status };
            say(&world, &status).await;
            assert_eq!(recorded(&world, id).await, before, "{pool} {function} {lane:?}");
        }
    }
    assert!(gateway.dead_letter_counts().await.unwrap().is_empty());
    // Who holds it ends it.
    say(&world, &StatusMessage { execution_id: id, attempt: 9, ..forged("gpu", "train", false) }).await;
    assert_eq!(ended(&world, id).await.outcome.unwrap().status, OutcomeStatus::Failed);
}
