//! Live output, from any gateway, resumed.

use std::sync::Arc;

use flux_gateway::core::{WatchEvent, WatchFrom};
use flux_protocol::{ErrorCode, ExecutionId};
use futures::{StreamExt as _, stream::BoxStream};
use tokio::sync::Notify;

use crate::{
    fake_agent::Act,
    world::{World, deploy, ended, name, payload},
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
