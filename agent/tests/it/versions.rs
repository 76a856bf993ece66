//! Which version runs, and what has none.

use std::io::Write as _;

use flux_broker::{Message, Table};
use flux_protocol::{
    ErrorKind, ExecutionId, Invocation, Lane, StatusMessage,
    agent::{ControlReply, ControlRequest},
};
use flux_testkit::{eventually, eventually_some};

use crate::{
    fake::{End, FakeExecutor},
    world::{SOON, World, invocation, kind, message, text},
};

fn say_version(executor: &FakeExecutor) {
    executor.program("f", |mut call| async move {
        let version = call.env("FLUX_VERSION").expect("told").to_owned();
        call.stdout.write_all(version.as_bytes()).expect("stdout");
        End::Exit(0)
    });
}

/// A producer that knows nothing of Flux: a body and no headers.
async fn bare(world: &World) -> ExecutionId {
    let queue = World::queue(Lane::Invoke, "f");
    world.broker.heat(&queue).await.expect("hot");
    let message = Message { body: "{\"n\":1}".into(), ..Message::default() };
    let stored = world.broker.publish(&queue, message).await.expect("stored");
    let found = eventually_some(SOON, "its end", || {
        let found = world.ended().into_iter().find(|status| status.queued_at != status.at && !seen(status));
        std::future::ready(found)
    })
    .await;
    // The id is derived from the message's place alone.
    assert_eq!(
        found.execution_id,
        ExecutionId::derived(&stored.position.stream, stored.position.sequence, found.queued_at)
    );
    found.execution_id
}

fn seen(status: &StatusMessage) -> bool {
    use std::{collections::HashSet, sync::LazyLock};
    static SEEN: LazyLock<parking_lot::Mutex<HashSet<ExecutionId>>> = LazyLock::new(Default::default);
    !SEEN.lock().insert(status.execution_id)
}

#[tokio::test]
async fn a_bare_message_runs_the_version_that_was_current_when_it_was_stored() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    say_version(&executor);
    world.deploy_version("name: f\nhandler: f", 1).await;
    let queue = World::queue(Lane::Invoke, "f");
    world.broker.heat(&queue).await.expect("hot");
    let early = Message { body: "early".into(), ..Message::default() };
    world.broker.publish(&queue, early).await.expect("stored");
    world.deploy_version("name: f\nhandler: f", 2).await;
    let late = Message { body: "late".into(), ..Message::default() };
    world.broker.publish(&queue, late).await.expect("stored");
    let _agent = world.agent(&executor, World::settings()).await;
    let ended = eventually_some(SOON, "both ends", || {
        let ended = world.ended();
        std::future::ready((ended.len() == 2).then_some(ended))
    })
    .await;
    let mut versions: Vec<_> = ended.iter().map(|status| (status.queued_at, status.version, text(status))).collect();
    versions.sort_unstable();
    let versions: Vec<_> = versions.into_iter().map(|(_, version, said)| (version, said)).collect();
    assert_eq!(versions, [(1, "1".to_owned()), (2, "2".to_owned())]);
}

#[tokio::test]
async fn a_derived_id_is_that_of_the_message() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    say_version(&executor);
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    bare(&world).await;
}

#[tokio::test]
async fn a_named_version_runs_though_another_is_current() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    say_version(&executor);
    world.deploy_version("name: f\nhandler: f", 1).await;
    world.deploy_version("name: f\nhandler: f", 2).await;
    let _agent = world.agent(&executor, World::settings()).await;
    for version in [1, 2, 1] {
        let reply = world.call_with("f", Invocation { version: Some(version), ..invocation("") }).await;
        assert_eq!((reply.version, text(&reply)), (version, version.to_string()));
    }
    let unknown = world.call_with("f", Invocation { version: Some(9), ..invocation("") }).await;
    assert_eq!(kind(&unknown), Some(ErrorKind::InvalidFunction));
    assert!(message(&unknown).contains("no version 9"), "{}", message(&unknown));
}

/// A gateway that deployed while the queue stood still names a version that the agents hear of after the call.
#[tokio::test]
async fn a_named_version_that_is_newer_than_any_here_is_waited_for() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    say_version(&executor);
    world.deploy_version("name: f\nhandler: f", 1).await;
    let agent = world.agent(&executor, World::settings()).await;
    let early = Invocation { version: Some(2), ..invocation("") };
    let id = early.execution_id.expect("given");
    world.publish(&World::queue(Lane::Call, "f"), &early).await;
    let agent = agent.agent.id().clone();
    eventually(SOON, "the agent to hold it", || async {
        let request = ControlRequest::Holds { execution_ids: vec![id] };
        world.ask(&agent, &request).await == ControlReply::Holds { agent_id: agent.clone(), execution_ids: vec![id] }
    })
    .await;
    world.deploy_version("name: f\nhandler: f", 2).await;
    let end = world.end_of(id).await;
    assert_eq!((end.version, text(&end)), (2, "2".to_owned()), "{end:?}");
}

#[tokio::test]
async fn a_function_that_was_deleted_is_invalid_and_one_without_code_too() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    say_version(&executor);
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    world.call("f", "").await;
    // Deleted with a message on the way: the credit that is out brings it.
    world.broker.delete(Table::Functions, "f").await.expect("deleted");
    world.broker.delete(Table::Versions, "f.1").await.expect("deleted");
    let lost = world.call_with("f", Invocation { version: None, ..invocation("") }).await;
    assert_eq!(kind(&lost), Some(ErrorKind::InvalidFunction));
    assert!(message(&lost).contains("no function `f`"), "{}", message(&lost));
    let spec = flux_protocol::function::parse_yaml("name: g\nhandler: g").expect("a function");
    let empty =
        flux_protocol::FunctionVersion { version: 1, digest: None, spec, created_at: flux_protocol::time::now() };
    let value = serde_json::to_vec(&empty).expect("JSON");
    world.broker.put(Table::Functions, "g", value.into()).await.expect("put");
    let reply = world.call("g", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::InvalidFunction));
    assert!(message(&reply).contains("deploy it"), "{}", message(&reply));
}
