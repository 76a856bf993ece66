//! Cancels: of what runs, of what did not come yet, of what is over.

use std::time::Duration;

use flux_broker::Table;
use flux_protocol::{
    ErrorKind, ExecutionId, Invocation, Lane, OutcomeStatus,
    agent::{ControlReply, ControlRequest},
    limits, time,
};

use crate::{
    fake::{End, FakeExecutor},
    world::{SOON, World, invocation, kind, message},
};

#[tokio::test]
async fn a_running_execution_is_ended_and_the_answer_comes_after_its_processes_are_gone() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| std::future::pending());
    world.deploy("name: f\nhandler: f").await;
    let agent = world.agent(&executor, World::settings()).await;
    let id = world.invoke("f", "").await;
    world.until_running(id).await;
    let reply = world.cancel(id, SOON).await.expect("the agent answers");
    assert_eq!((&reply.agent_id, reply.cancelled), (agent.agent.id(), true));
    assert_eq!(executor.running(), 0);
    let status = world.end_of(id).await;
    assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Cancelled);
    assert_eq!((kind(&status), message(&status).as_str()), (Some(ErrorKind::Cancelled), "cancelled by the test"));
    world.until_empty(Lane::Invoke, "f").await;
}

#[tokio::test]
async fn what_was_cancelled_before_it_came_does_not_start() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    // It hears cancels once it answers a call.
    world.call("f", "").await;
    let queued = invocation("");
    let id = queued.execution_id.expect("given");
    assert!(world.cancel(id, Duration::from_millis(300)).await.is_none(), "nobody holds it");
    world.publish(&World::queue(Lane::Invoke, "f"), &queued).await;
    let status = world.end_of(id).await;
    assert_eq!(status.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
    assert_eq!(executor.started(), 1, "the call alone");
}

#[tokio::test]
async fn what_was_withdrawn_before_it_came_does_not_start_and_what_runs_goes_on() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| std::future::pending());
    world.deploy("name: f\nhandler: f").await;
    let agent = world.agent(&executor, World::settings()).await;
    let running = world.invoke("f", "").await;
    world.until_running(running).await;
    let queued = invocation("");
    let id = queued.execution_id.expect("given");
    for (execution_id, held) in [(running, vec![running]), (id, vec![])] {
        let request = ControlRequest::Withdrawn { execution_id, reason: "by the test".to_owned() };
        let expected = ControlReply::Holds { agent_id: agent.agent.id().clone(), execution_ids: held };
        assert_eq!(world.ask(agent.agent.id(), &request).await, expected);
    }
    world.publish(&World::queue(Lane::Invoke, "f"), &queued).await;
    let status = world.end_of(id).await;
    assert_eq!(message(&status), "by the test");
    assert_eq!(status.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
    assert_eq!((executor.started(), executor.running()), (1, 1), "the other goes on");
}

#[tokio::test]
async fn a_cancel_ends_a_function_that_ignores_sigterm() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| std::future::pending());
    world.deploy("name: f\nhandler: f\nstop_grace: 100ms").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let id = world.invoke("f", "").await;
    world.until_running(id).await;
    assert!(world.cancel(id, SOON).await.expect("an answer").cancelled);
    assert_eq!(world.end_of(id).await.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
}

#[tokio::test]
async fn what_was_cancelled_while_its_retry_was_on_its_way_does_not_start() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let first = invocation("");
    let retry = Invocation { attempt: 2, ..invocation("") };
    let (ran, cancelled) = (first.execution_id.expect("given"), retry.execution_id.expect("given"));
    world.broker.put(Table::Cancelled, &cancelled.to_string(), "by the test".into()).await.expect("put");
    for invocation in [&retry, &first] {
        world.publish(&World::queue(Lane::Invoke, "f"), invocation).await;
    }
    let status = world.end_of(cancelled).await;
    assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Cancelled);
    assert_eq!(message(&status), "by the test");
    assert_eq!(world.end_of(ran).await.outcome.expect("an outcome").status, OutcomeStatus::Success);
    assert_eq!(executor.started(), 1, "the other");
}

/// Where nothing is taken back it waits in its queue, for longer than agents remember a cancel.
#[tokio::test]
async fn what_was_cancelled_while_it_waited_does_not_start() {
    does_not_start_once_cancelled(World::without_take_back().await, invocation("")).await;
}

/// A gateway that took it over by its key, a minute later, did not know its place. It waits on, for longer than agents remember
/// a cancel.
#[tokio::test]
async fn what_is_old_and_was_cancelled_while_it_waited_does_not_start() {
    does_not_start_once_cancelled(World::new().await, old(invocation(""), limits::ONE_MESSAGE_WITHIN)).await;
}

/// It lies in its queue, and in the table of cancels, before the first agent comes.
async fn does_not_start_once_cancelled(world: World, queued: Invocation) {
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: f\nhandler: f").await;
    let id = queued.execution_id.expect("given");
    world.broker.put(Table::Cancelled, &id.to_string(), "by the test".into()).await.expect("put");
    world.publish(&World::queue(Lane::Invoke, "f"), &queued).await;
    let _agent = world.agent(&executor, World::settings()).await;
    assert_eq!(world.end_of(id).await.outcome.expect("an outcome").status, OutcomeStatus::Cancelled);
    assert_eq!(executor.started(), 0);
}

/// As if it had been accepted so long ago, by its id.
fn old(invocation: Invocation, age: Duration) -> Invocation {
    let mut id = *ExecutionId::new().as_bytes();
    let accepted = time::now().as_millis() - i64::try_from(age.as_millis()).expect("not so old");
    id[..6].copy_from_slice(&accepted.to_be_bytes()[2..]);
    Invocation { execution_id: Some(ExecutionId::from_bytes(id)), ..invocation }
}
