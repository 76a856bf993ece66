//! What is lost is started again, once, and nothing that still runs is.

use std::{sync::Arc, time::Duration};

use flux_broker::{Message, Queue as _, Table, Tables as _};
use flux_protocol::{
    ErrorKind, ExecutionId, Invocation, Lane, OutcomeStatus, PoolName, invocation::header, subject::QueueName,
    time::now,
};
use tokio::sync::Notify;

use crate::{
    fake_agent::Act,
    flaky_store::FlakyStore,
    world::{World, deploy, ended, eventually, knows, name, payload},
};

fn queue(lane: Lane, function: &str) -> QueueName {
    QueueName::new(lane, PoolName::default(), name(function))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_agent_dies_runs_elsewhere() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let first = world.agent("a", |_| Act::Vanish).await;
    knows(&gateway, &[&first]).await;
    deploy(&gateway, "f", "").await;
    let function = name("f");
    let call = gateway.call(&function, payload(""));
    let rescue = async {
        first.until("it was taken", |agent| agent.taken().len() == 1).await;
        first.kill();
        world.agent("b", |_| Act::Succeed("elsewhere".to_owned())).await
    };
    let (called, second) = tokio::join!(call, rescue);
    let called = called.unwrap();
    assert_eq!(called.outcome.output.to_text(), "elsewhere");
    assert_eq!((called.attempt, called.agent_id.as_ref()), (2, Some(second.id())));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_lost_stream_are_published_again_unless_an_agent_runs_them() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let end = Arc::new(Notify::new());
    let agent = {
        let end = Arc::clone(&end);
        world
            .agent_with("a", 2, 1, move |job| match &job.payload[..] {
                b"held" => Act::Hold(Arc::clone(&end)),
                _ => Act::Succeed("after all".to_owned()),
            })
            .await
    };
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "max_concurrency_behavior: wait\nresource_pressure_behavior: wait").await;
    let function = name("f");
    let held = gateway.call(&function, payload("held"));
    let waiting = async {
        agent.until("one runs", |agent| agent.running().len() == 1).await;
        world.broker.pause_deliveries(true);
        gateway.call(&function, payload("waits")).await
    };
    let lose = async {
        let call = queue(Lane::Call, "f");
        eventually("the other waits", || async { world.broker.depth(&call).await.unwrap() == 2 }).await;
        // As when the server that held the lane in its memory dies and comes back.
        world.broker.set_connected(false);
        world.broker.lose_lane(Lane::Call, &PoolName::default());
        world.broker.set_connected(true);
        world.broker.pause_deliveries(false);
        agent.until("the other runs", |agent| agent.taken().len() == 2).await;
        end.notify_one();
    };
    let (held, waiting, ()) = tokio::join!(held, waiting, lose);
    let (held, waiting) = (held.unwrap(), waiting.unwrap());
    assert_eq!((held.attempt, held.outcome.output.to_text().as_str()), (1, "let go"));
    assert_eq!((waiting.attempt, waiting.outcome.output.to_text().as_str()), (2, "after all"));
    assert_eq!(agent.taken().len(), 2, "what ran was not started twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_invocations_of_a_lost_stream_are_published_again() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(gateway.invoke(&name("f"), payload("kept")).await.unwrap().execution_id);
    }
    // One round has seen the stream that is lost then.
    eventually("the reconciler has looked", || async {
        world.broker.get(Table::Hot, &queue(Lane::Invoke, "f").key()).await.unwrap().is_some()
    })
    .await;
    world.broker.set_connected(false);
    world.broker.lose_lane(Lane::Invoke, &PoolName::default());
    world.broker.set_connected(true);
    let agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    for id in &ids {
        let record = ended(&world, *id).await;
        assert_eq!(record.outcome.unwrap().output.to_text(), "kept");
    }
    let mut taken: Vec<_> = agent.taken().into_iter().map(|(id, _)| id).collect();
    taken.sort();
    ids.sort();
    assert_eq!(taken, ids, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_invocation_that_vanished_is_published_again() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let accepted = gateway.invoke(&name("f"), payload("kept")).await.unwrap();
    let record = gateway.execution(accepted.execution_id).await.unwrap();
    // Acked by someone who never said what became of it.
    world.broker.take_back(&queue(Lane::Invoke, "f"), record.position.as_ref().unwrap()).await.unwrap();
    let agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.outcome.unwrap().output.to_text(), "kept");
    assert_eq!(agent.taken(), [(accepted.execution_id, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_deadline_expires_in_the_queue() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let request = flux_gateway::core::InvokeRequest { timeout: Some(Duration::from_millis(50)), ..payload("") };
    let accepted = gateway.invoke(&name("f"), request).await.unwrap();
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.outcome.unwrap().error.unwrap().kind, ErrorKind::Expired);
    assert_eq!(world.broker.depth(&queue(Lane::Invoke, "f")).await.unwrap(), 0);
    eventually("there is a letter", || async { !gateway.dead_letter_counts().await.unwrap().is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_left_behind_by_a_gateway_that_died_gets_its_end() {
    let world = World::new().await;
    let id = ExecutionId::new();
    let long_ago = flux_protocol::Timestamp::from_micros(now().as_micros() - 60_000_000);
    let record = flux_protocol::ExecutionRecord {
        execution_id: id,
        function: name("f"),
        version: 1,
        attempt: 1,
        lane: Lane::Call,
        pool: PoolName::default(),
        phase: flux_protocol::Phase::Queued,
        agent_id: None,
        queued_at: long_ago,
        started_at: None,
        status_at: long_ago,
        deadline: Some(long_ago.plus(Duration::from_secs(5))),
        traceparent: None,
        outcome: None,
        terminal_seq: None,
        position: None,
        invocation: Some(Invocation::default()),
        redrive_of: None,
        notes: Vec::new(),
    };
    world.store.insert_queued(record).await.unwrap();
    let gateway = world.gateway().await;
    let record = ended(&world, id).await;
    assert_eq!(record.outcome.unwrap().error.unwrap().kind, ErrorKind::Expired);
    assert!(gateway.dead_letter_counts().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_outcome_whatever_the_number_of_gateways_that_record() {
    let world = World::new().await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(world.gateway().await);
    }
    deploy(&gateways[0], "f", "").await;
    let agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    knows(&gateways[0], &[&agent]).await;
    let mut ids = Vec::new();
    for at in 0..60 {
        let gateway = &gateways[at % 3];
        ids.push(gateway.invoke(&name("f"), payload(&at.to_string())).await.unwrap().execution_id);
    }
    for (at, id) in ids.iter().enumerate() {
        let record = ended(&world, *id).await;
        let outcome = record.outcome.unwrap();
        assert_eq!((outcome.status, outcome.output.to_text()), (OutcomeStatus::Success, at.to_string()));
    }
    assert_eq!(agent.taken().len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producers_message_without_headers_has_the_same_id_whoever_takes_it() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let first = world.agent("a", |_| Act::Vanish).await;
    let invoke = queue(Lane::Invoke, "f");
    let message = Message { headers: vec![(header::ARGS, "[]".to_owned())], ..Message::default() };
    world.broker.publish(&invoke, message).await.unwrap();
    first.until("it was taken", |agent| agent.taken().len() == 1).await;
    let id = first.taken()[0].0;
    first.kill();
    let second = world.agent("b", |_| Act::Succeed(String::new())).await;
    let record = ended(&world, id).await;
    assert_eq!(record.attempt, 2);
    assert_eq!(second.taken(), [(id, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_found_though_a_dead_gateway_still_has_the_lease() {
    let world = World::new().await;
    let hour = Duration::from_secs(3600);
    world.store.lease("reconciler", "gw-dead", now(), hour).await.unwrap().unwrap();
    // Before any gateway is there to hear the ring.
    let queue = queue(Lane::Invoke, "f");
    world.broker.publish(&queue, Message::default()).await.unwrap();
    let _gateway = world.gateway().await;
    eventually("its queue is hot, or the message taken for its unknown function", || async {
        world.broker.get(Table::Hot, &queue.key()).await.unwrap().is_some()
            || world.broker.depth(&queue).await.unwrap() == 0
    })
    .await;
}

/// A gateway that is stopped in the middle of a round, for longer than its lease, and goes on when another has it.
#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_lease_meanwhile_does_nothing_more() {
    let world = World::new().await;
    let store = FlakyStore::over(&world.store);
    let gateway = world.gateway_over(Arc::clone(&store) as _).await;
    let agent = world.agent("a", |_| Act::Succeed("kept".to_owned())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    world.broker.pause_deliveries(true);
    let id = gateway.invoke(&name("f"), payload("kept")).await.unwrap().execution_id;
    let invoke = queue(Lane::Invoke, "f");
    eventually("the reconciler has looked", || async {
        world.broker.get(Table::Hot, &invoke.key()).await.unwrap().is_some()
    })
    .await;
    let (held, go) = store.stop_next();
    world.broker.set_connected(false);
    world.broker.lose_lane(Lane::Invoke, &PoolName::default());
    world.broker.set_connected(true);
    tokio::time::timeout(Duration::from_secs(60), held.notified()).await.expect("it looks after what is open");
    // By another's clock the lease has run out.
    let (later, other) = (now().plus(Duration::from_secs(60)), "gw-other");
    let taken = world.store.lease("reconciler", other, later, Duration::from_secs(3600)).await.unwrap();
    assert!(taken.is_some());
    go.notify_one();
    // Its round is over when it has asked for the lease again, and again.
    let asked = store.leases();
    eventually("it asks for the lease", || async { store.leases() >= asked + 3 }).await;
    assert_eq!(world.broker.depth(&invoke).await.unwrap(), 0, "the other one looks after it");
    // And where the other goes, it is put right after all.
    world.store.release_lease("reconciler", other).await.unwrap();
    world.broker.pause_deliveries(false);
    assert_eq!(ended(&world, id).await.outcome.unwrap().output.to_text(), "kept");
    assert_eq!(agent.taken().len(), 1);
}
