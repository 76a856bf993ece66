//! Going away.

use std::{sync::Arc, time::Duration};

use flux_broker::Table;
use flux_protocol::{
    AgentId, OutcomeStatus, PoolName,
    agent::{AgentStatus, ControlReply, ControlRequest, Heartbeat},
    subject,
};

use crate::{
    fake::{End, FakeExecutor},
    world::{SOON, World},
};

#[tokio::test]
async fn what_runs_finishes_and_what_comes_is_anothers() {
    let world = World::new().await;
    let (going, staying) = (FakeExecutor::new(), FakeExecutor::new());
    going.program("f", |_call| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        End::Exit(0)
    });
    staying.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: f\nhandler: f").await;
    let leaver = world.agent(&going, World::settings()).await;
    let id = world.invoke("f", "").await;
    world.until_running(id).await;
    let stayer = world.agent(&staying, World::settings()).await;
    let world = Arc::new(world);
    let others = async {
        let mut ends = Vec::new();
        for _ in 0..20 {
            let id = world.invoke("f", "").await;
            ends.push(world.end_of(id).await);
        }
        ends
    };
    let ((), ends) = tokio::join!(leaver.agent.drain(SOON), others);
    let ended = world.end_of(id).await;
    assert_eq!((ended.attempt, ended.outcome.expect("an outcome").status), (1, OutcomeStatus::Success));
    assert!(ends.iter().all(|status| status.outcome.as_ref().is_some_and(|o| o.status == OutcomeStatus::Success)));
    assert!(ends.iter().any(|status| status.agent_id.as_ref() == Some(stayer.agent.id())));
    let gone = subject::agents_key(&PoolName::default(), leaver.agent.id());
    flux_testkit::eventually(SOON, "it to leave the table", || async {
        world.broker.get(Table::Agents, &gone).await.is_ok_and(|entry| entry.is_none())
    })
    .await;
}

#[tokio::test]
async fn a_lone_agents_drain_counts_no_losses() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f").await;
    let first = world.agent(&executor, World::settings()).await;
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(world.invoke("f", "").await);
    }
    first.agent.drain(SOON).await;
    let _next = world.agent(&executor, World::settings()).await;
    for id in ids {
        let status = world.end_of(id).await;
        assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success, "{status:?}");
        assert!(status.attempt <= 3, "given back {} times", status.attempt - 1);
    }
}

#[tokio::test]
async fn at_the_deadline_what_runs_is_left_to_another() {
    let world = World::new().await;
    let (going, staying) = (FakeExecutor::new(), FakeExecutor::new());
    going.program("f", |_call| std::future::pending());
    staying.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: f\nhandler: f").await;
    let leaver = world.agent(&going, World::settings()).await;
    let id = world.invoke("f", "").await;
    world.until_running(id).await;
    let stayer = world.agent(&staying, World::settings()).await;
    leaver.agent.drain(Duration::from_millis(200)).await;
    assert_eq!(going.running(), 0);
    let ended = world.end_of(id).await;
    assert_eq!((ended.attempt, ended.agent_id.as_ref()), (2, Some(stayer.agent.id())));
    assert_eq!(ended.outcome.expect("an outcome").status, OutcomeStatus::Success);
}

/// One that goes away is not told otherwise: what it would begin is cut off at its deadline.
#[tokio::test]
async fn an_agent_that_goes_away_is_not_told_to_go_on() {
    let world = World::new().await;
    let (going, staying) = (FakeExecutor::new(), FakeExecutor::new());
    let ends = Arc::new(tokio::sync::Notify::new());
    let may_end = Arc::clone(&ends);
    going.program("long", move |_call| {
        let may_end = Arc::clone(&may_end);
        async move {
            may_end.notified().await;
            End::Exit(0)
        }
    });
    going.program("f", |_call| async { End::Exit(0) });
    staying.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: long\nhandler: f").await;
    world.deploy("name: f\nhandler: f").await;
    let leaver = world.agent(&going, World::settings()).await;
    let id = leaver.agent.id().clone();
    let long = world.invoke("long", "").await;
    world.until_running(long).await;
    let told = async {
        flux_testkit::eventually(SOON, "a draining heartbeat", || is_draining(&world, &id)).await;
        world.ask(&id, &ControlRequest::Undrain).await;
        let _stayer = world.agent(&staying, World::settings()).await;
        for _ in 0..20 {
            let id = world.invoke("f", "").await;
            world.end_of(id).await;
        }
        ends.notify_one();
    };
    tokio::join!(leaver.agent.drain(SOON), told);
    assert_eq!((going.started(), staying.started()), (1, 20), "it began something");
}

async fn is_draining(world: &World, id: &AgentId) -> bool {
    let entry = world.broker.get(Table::Agents, &subject::agents_key(&PoolName::default(), id)).await.ok().flatten();
    let heartbeat = entry.and_then(|entry| serde_json::from_slice::<Heartbeat>(&entry.value).ok());
    heartbeat.is_some_and(|heartbeat| heartbeat.status == AgentStatus::Draining)
}

#[tokio::test]
async fn an_agent_that_was_told_to_drain_can_be_told_to_go_on() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: f\nhandler: f").await;
    let agent = world.agent(&executor, World::settings()).await;
    let id = agent.agent.id().clone();
    assert_eq!(world.ask(&id, &ControlRequest::Drain).await, ControlReply::Ok { agent_id: id.clone() });
    // No credit is out for this queue, and none is granted.
    let waits = world.invoke("f", "").await;
    flux_testkit::eventually(SOON, "a draining heartbeat", || is_draining(&world, &id)).await;
    assert_eq!(executor.started(), 0);
    world.ask(&id, &ControlRequest::Undrain).await;
    world.end_of(waits).await;
}
