//! Pull, run, reply.

use std::io::{Read as _, Write as _};

use flux_protocol::{Lane, OutcomeStatus, Phase, agent::ControlReply, agent::ControlRequest};

use crate::{
    fake::{End, FakeExecutor},
    world::{World, text},
};

/// Writes its payload back.
pub(crate) fn echo(executor: &FakeExecutor, function: &str) {
    executor.program(function, |mut call| async move {
        let mut payload = Vec::new();
        call.stdin.read_to_end(&mut payload).expect("stdin");
        call.stdout.write_all(&payload).expect("stdout");
        End::Exit(0)
    });
}

#[tokio::test]
async fn a_call_is_pulled_run_and_answered() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    echo(&executor, "echo");
    world.deploy("name: echo\nhandler: echo").await;
    let agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("echo", "hello").await;
    let outcome = reply.outcome.as_ref().expect("an outcome");
    assert_eq!((outcome.status, text(&reply).as_str()), (OutcomeStatus::Success, "hello"));
    assert_eq!(reply.agent_id.as_ref(), Some(agent.agent.id()));
    assert_eq!((reply.version, reply.attempt, reply.lane), (1, 1, Lane::Call));
    assert!(reply.started_at.is_some());
    // The record gets the same message, and the queue gets its ack.
    assert_eq!(world.end_of(reply.execution_id).await, reply);
    world.until_empty(Lane::Call, "echo").await;
}

#[tokio::test]
async fn an_asynchronous_invocation_is_recorded() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    echo(&executor, "echo");
    world.deploy("name: echo\nhandler: echo").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let id = world.invoke("echo", "{\"n\":1}").await;
    let status = world.end_of(id).await;
    assert_eq!(status.phase, Phase::Ended);
    assert_eq!(text(&status), "{\"n\":1}");
    assert!(status.invocation.is_none(), "only a failure carries its invocation");
    world.until_empty(Lane::Invoke, "echo").await;
}

#[tokio::test]
async fn agents_answer_what_they_are_asked() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let agent = world.agent(&executor, World::settings()).await;
    let id = agent.agent.id().clone();
    let key = flux_protocol::subject::agents_key(&flux_protocol::PoolName::default(), &id);
    flux_testkit::eventually(crate::world::SOON, "a heartbeat", || async {
        world.broker.get(flux_broker::Table::Agents, &key).await.is_ok_and(|entry| entry.is_some())
    })
    .await;
    assert_eq!(world.ask(&id, &ControlRequest::Ping).await, ControlReply::Ok { agent_id: id.clone() });
    let unknown = flux_protocol::ExecutionId::new();
    let tail = world.ask(&id, &ControlRequest::Tail { execution_id: unknown }).await;
    assert_eq!(tail, ControlReply::NotHeld);
    let holds = world.ask(&id, &ControlRequest::Holds { execution_ids: vec![unknown] }).await;
    assert_eq!(holds, ControlReply::Holds { agent_id: id, execution_ids: Vec::new() });
}
