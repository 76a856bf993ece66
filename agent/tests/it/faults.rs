//! What dies, hangs or comes twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use flux_broker::memory::{MemoryBroker, MemoryLimits};
use flux_protocol::{
    ErrorKind, Invocation, Lane, OutcomeStatus, Phase, PoolName, agent::HoldersRequest, limits, subject,
};
use flux_runtime::settings::AgentSettings;
use futures::StreamExt as _;

use crate::{
    fake::{End, FakeExecutor, Launch},
    world::{SOON, World, invocation, kind},
};

#[tokio::test]
async fn a_lost_launcher_begins_the_next_attempt() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let tries = Arc::new(AtomicU32::new(0));
    executor.launch("f", move |call| {
        // Lost before it answered, then with the process, then not.
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Launch::Lost,
            1 => Launch::Run(Box::pin(async { End::LauncherLost })),
            _ => {
                assert_eq!(call.env("FLUX_ATTEMPT"), Some("3"));
                Launch::Run(Box::pin(async { End::Exit(0) }))
            }
        }
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("f", "").await;
    assert_eq!(reply.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    assert_eq!(reply.attempt, 3);
    world.until_empty(Lane::Call, "f").await;
    assert_eq!(world.statuses_of(reply.execution_id).iter().filter(|s| s.phase == Phase::Ended).count(), 1);
}

#[tokio::test]
async fn a_panic_of_its_task_begins_the_next_attempt() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let tries = Arc::new(AtomicU32::new(0));
    executor.launch("f", move |call| {
        assert!(tries.fetch_add(1, Ordering::SeqCst) > 0, "the first try panics: by design of this test");
        assert_eq!(call.env("FLUX_ATTEMPT"), Some("2"));
        Launch::Run(Box::pin(async { End::Exit(0) }))
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let id = world.invoke("f", "").await;
    let status = world.end_of(id).await;
    assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    assert_eq!(status.attempt, 2);
    world.until_empty(Lane::Invoke, "f").await;
}

#[tokio::test]
async fn what_the_agent_cannot_start_for_now_is_no_failure() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let tries = Arc::new(AtomicU32::new(0));
    executor.launch("f", move |_call| match tries.fetch_add(1, Ordering::SeqCst) {
        0..3 => Launch::Unavailable,
        _ => Launch::Run(Box::pin(async { End::Exit(0) })),
    });
    executor.launch("never", |_call| Launch::Unavailable);
    world.deploy("name: f\nhandler: f").await;
    world.deploy("name: never\nhandler: never").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("f", "").await;
    assert_eq!(reply.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    assert_eq!(reply.attempt, 1, "nothing was started, so nothing was lost");
    // Its deadline ends the trying.
    let deadline = Some(flux_protocol::time::now().plus(Duration::from_secs(1)));
    let reply = world.call_with("never", Invocation { deadline, ..invocation("") }).await;
    assert_eq!(kind(&reply), Some(ErrorKind::Expired));
}

#[tokio::test]
async fn losses_are_limited() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async { End::LauncherLost });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, AgentSettings { max_losses: 2, ..World::settings() }).await;
    let reply = world.call("f", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::AgentLost));
    assert_eq!(executor.started(), 3);
    let id = world.invoke("f", "").await;
    let status = world.end_of(id).await;
    assert!(status.is_terminal() && status.invocation.is_some(), "a dead letter is made of it");
}

#[tokio::test]
async fn what_a_dead_agent_held_is_started_by_another_within_three_seconds() {
    let world = World::new().await;
    let (first, second) = (FakeExecutor::new(), FakeExecutor::new());
    first.program("f", |_call| std::future::pending());
    second.program("f", |call| async move {
        assert_eq!(call.env("FLUX_ATTEMPT"), Some("2"));
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f").await;
    let dying = world.agent(&first, World::settings()).await;
    let id = world.invoke("f", "").await;
    world.until_running(id).await;
    let living = world.agent(&second, World::settings()).await;
    let died_at = std::time::Instant::now();
    dying.vanish().await;
    let status = world.end_of(id).await;
    assert!(died_at.elapsed() < Duration::from_secs(3), "{:?}", died_at.elapsed());
    assert_eq!((status.attempt, status.agent_id.as_ref()), (2, Some(living.agent.id())));
}

#[tokio::test]
async fn a_long_execution_stays_with_its_agent() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async {
        tokio::time::sleep(limits::ACK_WAIT * 2).await;
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f").await;
    let _agents = [world.agent(&executor, World::settings()).await, world.agent(&executor, World::settings()).await];
    let id = world.invoke("f", "").await;
    assert_eq!(world.end_of(id).await.attempt, 1);
    assert_eq!(executor.started(), 1);
}

#[tokio::test]
async fn what_is_delivered_again_while_it_runs_is_adopted() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let (go, waits) = tokio::sync::watch::channel(false);
    executor.program("f", move |_call| {
        let mut waits = waits.clone();
        async move {
            waits.wait_for(|go| *go).await.expect("told");
            End::Exit(0)
        }
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let first = invocation("");
    let id = first.execution_id.expect("given");
    let queue = World::queue(Lane::Invoke, "f");
    world.publish(&queue, &first).await;
    world.until_running(id).await;
    // The same execution under its next number, as a reconciler publishes it that took its message for lost.
    world.publish(&queue, &Invocation { attempt: 2, ..first }).await;
    // A third message shows that the second was taken: one queue is delivered in order.
    let third = world.invoke("f", "").await;
    world.until_running(third).await;
    assert_eq!(executor.started(), 2, "the second message started nothing");
    go.send_replace(true);
    let status = world.end_of(id).await;
    assert_eq!(status.attempt, 2, "a retry must come after the number that was published");
    world.end_of(third).await;
    assert_eq!(world.statuses_of(id).iter().filter(|s| s.phase == Phase::Ended).count(), 1);
}

#[tokio::test]
async fn a_broker_that_hangs_loses_nothing() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let id = world.invoke("f", "").await;
    world.until_running(id).await;
    world.nats.pause();
    // It ends meanwhile; its outcome waits.
    flux_testkit::eventually(SOON, "its process to end", || std::future::ready(executor.running() == 0)).await;
    world.nats.resume();
    let status = world.end_of(id).await;
    assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    world.until_empty(Lane::Invoke, "f").await;
}

/// A server that was gone delivers again what it heard no marks of, before it hears any: to whoever asks first.
#[tokio::test]
async fn what_a_living_agent_holds_is_not_started_by_another_that_gets_it() {
    let mut world = World::new().await;
    let executor = FakeExecutor::new();
    let (go, waits) = tokio::sync::watch::channel(false);
    executor.program("f", move |_call| {
        let mut waits = waits.clone();
        async move {
            waits.wait_for(|go| *go).await.expect("told");
            End::Exit(0)
        }
    });
    executor.program("after", |_call| async { End::Exit(0) });
    world.deploy("name: after\nhandler: after").await;
    world.deploy("name: f\nhandler: f").await;
    let mut agents = Vec::new();
    for _ in 0..3 {
        agents.push(world.agent(&executor, World::settings()).await);
    }
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(world.invoke("f", "").await);
    }
    for id in &ids {
        world.until_running(*id).await;
    }
    for _ in 0..2 {
        let gone = std::time::Instant::now();
        world.nats.kill9();
        // Longer than it waits for marks.
        flux_testkit::eventually(SOON, "all deliveries to be overdue", || {
            std::future::ready(gone.elapsed() > limits::ACK_WAIT * 2)
        })
        .await;
        world.nats.restart().await;
        flux_testkit::eventually(SOON, "the connections", || async {
            let queue = World::queue(Lane::Invoke, "f");
            // As gateways do: what was in memory is gone.
            let mut up = world.broker.provision(&[flux_protocol::PoolName::default()]).await.is_ok();
            for agent in &agents {
                up &= agent.broker.ping().await.is_ok();
            }
            up && world.broker.heat(&queue).await.is_ok()
                && world.broker.depth(&queue).await.is_ok_and(|depth| depth == 12)
        })
        .await;
        // What comes afterwards is started, so what was delivered before has been asked about.
        let after = world.invoke("after", "").await;
        world.end_of(after).await;
    }
    go.send_replace(true);
    for id in ids {
        let status = world.end_of(id).await;
        assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    }
    world.until_empty(Lane::Invoke, "f").await;
    assert_eq!(executor.started(), 12 + 2, "each ran once");
}

#[tokio::test]
async fn a_broker_that_restarts_loses_nothing() {
    let mut world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let id = world.invoke("f", "").await;
    world.until_running(id).await;
    world.nats.kill9();
    world.nats.restart().await;
    // As gateways do whenever the connection came back: what was in memory is gone.
    flux_testkit::eventually(SOON, "the connection", || async {
        world.broker.provision(&[flux_protocol::PoolName::default()]).await.is_ok()
    })
    .await;
    let status = world.end_of(id).await;
    assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    world.until_empty(Lane::Invoke, "f").await;
    // And what comes afterwards is run.
    let next = world.invoke("f", "").await;
    world.end_of(next).await;
}

/// A first delivery of which the queue cannot say when it was sent: another may hold the message by now.
#[tokio::test]
async fn what_may_have_come_late_is_asked_about_before_it_starts() {
    let memory = MemoryBroker::new(MemoryLimits::default());
    memory.say_deliveries_may_be_late();
    let world = World::in_memory(memory).await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| async { End::Exit(0) });
    world.deploy("name: f\nhandler: f").await;
    let mut questions = world.broker.listen(&subject::holders_of(&PoolName::default())).await.expect("listen");
    let agent = world.agent(&executor, World::settings()).await;
    let id = world.invoke("f", "").await;
    let question = tokio::time::timeout(SOON, questions.next()).await.expect("others are asked").expect("a question");
    assert_eq!(subject::agent_of_holders(&question.subject).as_ref(), Some(agent.agent.id()));
    let HoldersRequest { deliveries } = serde_json::from_slice(&question.body).expect("a question");
    assert_eq!(deliveries.iter().map(|asked| (asked.execution_id, asked.attempt)).collect::<Vec<_>>(), [(id, 1)]);
    // Nobody holds it.
    assert_eq!(world.end_of(id).await.outcome.expect("an outcome").status, OutcomeStatus::Success);
    assert_eq!(executor.started(), 1);
}
