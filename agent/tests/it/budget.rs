//! Room: never more than the budget, all of it for who needs it, a share for everyone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use flux_protocol::{Lane, agent::Heartbeat};
use flux_runtime::settings::AgentSettings;
use flux_testkit::eventually;

use crate::{
    fake::{End, FakeExecutor},
    world::{SOON, World},
};

fn sleeping(executor: &FakeExecutor, function: &str, for_ms: u64) {
    executor.program(function, move |_call| async move {
        tokio::time::sleep(Duration::from_millis(for_ms)).await;
        End::Exit(0)
    });
}

async fn ends(world: &World, count: usize) {
    eventually(Duration::from_secs(60), format!("{count} ends"), || std::future::ready(world.ended().len() >= count))
        .await;
}

#[tokio::test]
async fn tasks_are_never_exceeded_and_all_are_used() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    sleeping(&executor, "f", 30);
    world.deploy("name: f\nhandler: f").await;
    for _ in 0..60 {
        world.invoke("f", "").await;
    }
    let _agent = world.agent(&executor, World::settings()).await;
    ends(&world, 60).await;
    assert_eq!(executor.most_running(), 8);
    assert_eq!(executor.started(), 60, "each ran once");
}

#[tokio::test]
async fn memory_and_cpu_are_room_too() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    sleeping(&executor, "memory", 30);
    sleeping(&executor, "cpu", 30);
    world.deploy("name: memory\nhandler: f\nresources: { cpu: 100, memory: 1300 }").await;
    for _ in 0..12 {
        world.invoke("memory", "").await;
    }
    let agent = world.agent(&executor, World::settings()).await;
    ends(&world, 12).await;
    assert_eq!(executor.most_running(), 3, "3 × 1300 of 4000 MB");
    agent.agent.drain(SOON).await;
    let executor = FakeExecutor::new();
    sleeping(&executor, "cpu", 30);
    world.deploy("name: cpu\nhandler: f\nresources: { cpu: 3000, memory: 10 }").await;
    for _ in 0..12 {
        world.invoke("cpu", "").await;
    }
    let _agent = world.agent(&executor, World::settings()).await;
    ends(&world, 24).await;
    assert_eq!(executor.most_running(), 2, "2 × 3000 of 8000 millicores");
}

#[tokio::test]
async fn a_functions_own_concurrency_holds_over_both_lanes() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    sleeping(&executor, "f", 30);
    world.deploy("name: f\nhandler: f\nmax_concurrency: 2").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let world = Arc::new(world);
    for _ in 0..10 {
        world.invoke("f", "").await;
    }
    let calls = (0..4).map(|_| world.call("f", ""));
    futures::future::join_all(calls).await;
    ends(&world, 14).await;
    assert_eq!(executor.most_running(), 2);
}

#[tokio::test]
async fn a_burst_of_one_function_does_not_keep_another_waiting() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    sleeping(&executor, "burst", 50);
    sleeping(&executor, "quiet", 1);
    world.deploy("name: burst\nhandler: f").await;
    world.deploy("name: quiet\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    world.call("quiet", "").await;
    for _ in 0..400 {
        world.invoke("burst", "").await;
    }
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let asked = Instant::now();
        world.call("quiet", "").await;
        slowest = slowest.max(asked.elapsed());
    }
    assert!(world.ended().len() < 400, "the burst is not over after {:?}", began.elapsed());
    assert!(slowest < Duration::from_millis(1_000), "a call waited {slowest:?} behind a burst");
}

#[tokio::test]
async fn two_bursts_share() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    for function in ["slow", "fast"] {
        sleeping(&executor, function, if function == "slow" { 400 } else { 10 });
        world.deploy(&format!("name: {function}\nhandler: f")).await;
        for _ in 0..if function == "slow" { 60 } else { 300 } {
            world.invoke(function, "").await;
        }
    }
    let _agent = world.agent(&executor, World::settings()).await;
    // The fast ones have half of the slots: 300 × 10 ms on 4 slots, where turn by turn would take 15 s and more.
    let began = Instant::now();
    eventually(SOON, "the fast ones", || {
        let fast = world.ended().iter().filter(|status| status.function.as_str() == "fast").count();
        std::future::ready(fast == 300)
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn without_a_launcher_nothing_is_pulled() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    sleeping(&executor, "f", 1);
    world.deploy("name: f\nhandler: f").await;
    executor.set_available(false);
    let agent = world.agent(&executor, World::settings()).await;
    let id = agent.agent.id().clone();
    let key = flux_protocol::subject::agents_key(&flux_protocol::PoolName::default(), &id);
    let stored = world.invoke("f", "").await;
    let busy = flux_testkit::eventually_some(SOON, "a heartbeat", || async {
        let entry = world.broker.get(flux_broker::Table::Agents, &key).await.ok()??;
        serde_json::from_slice::<Heartbeat>(&entry.value).ok()
    })
    .await;
    assert_eq!(busy.free.tasks, 0);
    assert_eq!(executor.started(), 0);
    executor.set_available(true);
    world.end_of(stored).await;
    world.until_empty(Lane::Invoke, "f").await;
}

#[tokio::test]
async fn a_heartbeat_says_what_runs_and_what_is_free() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |_call| std::future::pending());
    world.deploy("name: f\nhandler: f\nresources: { cpu: 500, memory: 100 }").await;
    let agent = world.agent(&executor, AgentSettings { tasks: Some(2), ..World::settings() }).await;
    let id = agent.agent.id().clone();
    let key = flux_protocol::subject::agents_key(&flux_protocol::PoolName::default(), &id);
    for _ in 0..2 {
        world.invoke("f", "").await;
    }
    let heartbeat = flux_testkit::eventually_some(SOON, "a busy heartbeat", || async {
        let entry = world.broker.get(flux_broker::Table::Agents, &key).await.ok()??;
        let heartbeat: Heartbeat = serde_json::from_slice(&entry.value).ok()?;
        (heartbeat.node.active_tasks == 2).then_some(heartbeat)
    })
    .await;
    assert_eq!(heartbeat.status, flux_protocol::agent::AgentStatus::Busy);
    assert_eq!((heartbeat.free.tasks, heartbeat.free.cpu_millicores, heartbeat.free.memory_mb), (0, 7_000, 3_800));
    assert_eq!((heartbeat.running[0].calls, heartbeat.running[0].invokes), (0, 2));
}
