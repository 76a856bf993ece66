//! Retries, dead letters, redrive.

use flux_broker::StatusLog as _;
use flux_protocol::{ErrorCode, ExecutionId, OutcomeStatus, Phase, limits::LOST_AFTER, time::now};

use crate::{
    fake_agent::Act,
    world::{World, deploy, ended, eventually, name, payload},
};

const RETRIES: &str = "retry: { max_attempts: 3, backoff: 20ms }";

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_tried_again_until_it_succeeds() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "flaky", RETRIES).await;
    let agent = world
        .agent_with("a", 4, 3, |job| if job.attempt < 3 { Act::Fail } else { Act::Succeed("at last".to_owned()) })
        .await;
    let accepted = gateway.invoke(&name("flaky"), payload("p")).await.unwrap();
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!(record.attempt, 3);
    assert_eq!(record.outcome.unwrap().output.to_text(), "at last");
    let id = accepted.execution_id;
    assert_eq!(agent.taken(), [(id, 1), (id, 2), (id, 3)]);
    assert!(gateway.dead_letter_counts().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_keeps_the_time_of_retries_where_the_queue_does_not() {
    let world = World::with_less().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "flaky", RETRIES).await;
    let agent = world
        .agent_with("a", 4, 3, |job| if job.attempt < 3 { Act::Fail } else { Act::Succeed("at last".to_owned()) })
        .await;
    let id = gateway.invoke(&name("flaky"), payload("p")).await.unwrap().execution_id;
    let record = ended(&world, id).await;
    assert_eq!(record.outcome.unwrap().output.to_text(), "at last");
    assert_eq!(agent.taken(), [(id, 1), (id, 2), (id, 3)]);
}

/// Otherwise the log stops at some hundred of them, and the reconciler publishes them before their time.
#[tokio::test(flavor = "multi_thread")]
async fn retries_that_wait_keep_no_status_in_the_log() {
    let world = World::with_less().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "retry: { max_attempts: 3, backoff: 10m }").await;
    let agent = world.agent_with("a", 4, 3, |_| Act::Fail).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(gateway.invoke(&name("f"), payload("")).await.unwrap().execution_id);
    }
    for id in &ids {
        eventually("its next attempt waits", || async {
            let record = world.store.execution(*id).await.unwrap().unwrap();
            (record.attempt, record.phase) == (2, Phase::Queued) && record.status_at > now().plus(LOST_AFTER)
        })
        .await;
    }
    eventually("nothing waits in the log", || async { world.broker.backlog().await.unwrap() == 0 }).await;
    assert_eq!(agent.taken().len(), ids.len(), "each once");
    gateway.cancel(ids[0]).await.unwrap();
    assert_eq!(ended(&world, ids[0]).await.outcome.unwrap().status, OutcomeStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_whose_gateway_died_is_published_by_another() {
    let world = World::with_less().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "retry: { max_attempts: 3, backoff: 10m }").await;
    let failing = world.agent_with("a", 4, 3, |_| Act::Fail).await;
    let id = gateway.invoke(&name("f"), payload("kept")).await.unwrap().execution_id;
    eventually("its next attempt waits", || async {
        world
            .store
            .execution(id)
            .await
            .unwrap()
            .is_some_and(|record| (record.attempt, record.phase) == (2, Phase::Queued))
    })
    .await;
    failing.kill();
    // The same as it is long after it was due.
    let mut record = world.store.execution(id).await.unwrap().unwrap();
    record.execution_id = ExecutionId::new();
    record.status_at = now().minus(3 * LOST_AFTER);
    let id = record.execution_id;
    world.store.insert_queued(record).await.unwrap();
    let agent = world.agent("b", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    assert_eq!(ended(&world, id).await.outcome.unwrap().output.to_text(), "kept");
    assert_eq!(agent.taken(), [(id, 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_used_up_make_a_dead_letter_that_can_be_redriven_to_another_version() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", RETRIES).await;
    let agent = world
        .agent_with("a", 4, 3, |job| match job.invocation.version {
            Some(1) => Act::Fail,
            _ => Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap()),
        })
        .await;
    let function = name("f");
    let accepted = gateway.invoke(&function, payload("precious")).await.unwrap();
    let record = ended(&world, accepted.execution_id).await;
    assert_eq!((record.attempt, record.outcome.unwrap().status), (3, OutcomeStatus::Failed));
    eventually("there is a letter", || async { !gateway.dead_letter_counts().await.unwrap().is_empty() }).await;
    let letters = gateway.dead_letters(&function, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.status.execution_id, accepted.execution_id);
    assert_eq!(gateway.dead_letter(&function, letter.sequence).await.unwrap(), *letter);
    let missing = gateway.dead_letter(&function, letter.sequence + 1).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::MessageNotFound);

    let dry = gateway.redrive(&function, None, None, true).await.unwrap();
    assert_eq!((dry.len(), dry[0].execution_id), (1, None));
    assert_eq!(gateway.dead_letters(&function, 0, 10).await.unwrap().len(), 1, "a dry run changes nothing");

    deploy(&gateway, "f", "retry: { max_attempts: 1 }").await;
    let redriven = gateway.redrive(&function, Some(letter.sequence), Some(2), false).await.unwrap();
    assert_eq!(redriven[0].of, accepted.execution_id);
    let again = ended(&world, redriven[0].execution_id.unwrap()).await;
    assert_eq!(again.redrive_of, Some(accepted.execution_id));
    assert_eq!(again.version, 2);
    assert_eq!(again.outcome.unwrap().output.to_text(), "precious");
    assert!(gateway.dead_letters(&function, 0, 10).await.unwrap().is_empty());
    assert_eq!(agent.taken().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_can_be_purged_one_or_all() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let _agent = world.agent("a", |_| Act::Fail).await;
    let function = name("f");
    for _ in 0..3 {
        let accepted = gateway.invoke(&function, payload("")).await.unwrap();
        ended(&world, accepted.execution_id).await;
    }
    eventually("there are three", || async { gateway.dead_letters(&function, 0, 10).await.unwrap().len() == 3 }).await;
    let first = gateway.dead_letters(&function, 0, 1).await.unwrap()[0].sequence;
    assert_eq!(gateway.purge(&function, Some(first)).await.unwrap(), 1);
    assert_eq!(gateway.purge(&function, Some(first)).await.unwrap_err().code, ErrorCode::MessageNotFound);
    assert_eq!(gateway.purge(&function, None).await.unwrap(), 2);
    assert!(gateway.dead_letter_counts().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_could_not_be_stored_is_stored_when_its_status_comes_again() {
    for world in [World::new().await, World::with_less().await] {
        let gateway = world.gateway().await;
        deploy(&gateway, "f", "").await;
        let _agent = world.agent("a", |_| Act::Fail).await;
        world.broker.fail_buries(1);
        let id = gateway.invoke(&name("f"), payload("precious")).await.unwrap().execution_id;
        ended(&world, id).await;
        eventually("there is a letter", || async { !gateway.dead_letter_counts().await.unwrap().is_empty() }).await;
        assert_eq!(gateway.dead_letters(&name("f"), 0, 10).await.unwrap()[0].status.execution_id, id);
    }
}
