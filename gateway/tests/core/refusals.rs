//! Sync calls that are not run: at once where it is certain, after a short grace where only heartbeats say so.

use std::time::Duration;

use flux_broker::Queue as _;
use flux_protocol::{ErrorCode, Lane, PoolName, function::parse_yaml, subject::QueueName};
use tokio::time::Instant;

use crate::{
    fake_agent::Act,
    world::{World, deploy, ended, eventually, knows, name, payload},
};

#[tokio::test(flavor = "multi_thread")]
async fn without_agents_it_is_503_and_without_code_409_and_unknown_404() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let unknown = gateway.call(&name("nothing"), payload("")).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::FunctionNotFound);
    gateway.register(parse_yaml("name: f\nhandler: run").unwrap()).await.unwrap();
    let bare = gateway.call(&name("f"), payload("")).await.unwrap_err();
    assert_eq!(bare.code, ErrorCode::FunctionNotDeployed);
    deploy(&gateway, "f", "").await;
    let lonely = gateway.call(&name("f"), payload("")).await.unwrap_err();
    assert_eq!(lonely.code, ErrorCode::NoAgents);
    assert!(lonely.retry_after.is_some());
    let queue = QueueName::new(Lane::Call, PoolName::default(), name("f"));
    assert_eq!(world.broker.depth(&queue).await.unwrap(), 0, "nothing is left in the queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_beyond_max_concurrency_is_refused_at_once() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "two", "max_concurrency: 2").await;
    let function = name("two");
    let calls = (0..5).map(|_| async {
        let began = Instant::now();
        let called = gateway.call(&function, payload("")).await;
        (called, began.elapsed())
    });
    let release = async {
        agent.until("two run", |agent| agent.running().len() == 2).await;
        for _ in 0..2 {
            let before = agent.running().len();
            end.notify_one();
            agent.until("one ended", |agent| agent.running().len() < before).await;
        }
    };
    let (called, ()) = tokio::join!(futures::future::join_all(calls), release);
    let refused: Vec<_> = called.iter().filter_map(|(called, took)| called.as_ref().err().map(|r| (r, took))).collect();
    assert_eq!(refused.len(), 3);
    for (refusal, took) in refused {
        assert_eq!(refusal.code, ErrorCode::AtConcurrency, "{}", refusal.message);
        assert!(refusal.message.contains("`max_concurrency` of 2"), "{}", refusal.message);
        assert!(*took < Duration::from_millis(60), "at once, not after {took:?}");
    }
    assert_eq!(agent.taken().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_resources_it_is_429_at_once() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let (agent, end) = world.agent_that_holds(1).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    deploy(&gateway, "huge", "resources: { memory: 1000000 }").await;
    let never = gateway.call(&name("huge"), payload("")).await.unwrap_err();
    assert_eq!(never.code, ErrorCode::NoResources);
    assert!(never.message.contains("more than any of the 1 agents has"), "{}", never.message);

    let function = name("f");
    let first = gateway.call(&function, payload(""));
    let second = async {
        agent.until("it runs", |agent| agent.running().len() == 1).await;
        let began = Instant::now();
        let refusal = gateway.call(&function, payload("")).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_millis(60));
        end.notify_one();
        refusal
    };
    let (first, refusal) = tokio::join!(first, second);
    first.unwrap();
    assert_eq!(refusal.code, ErrorCode::NoResources, "{}", refusal.message);
    assert_eq!(agent.taken().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_heartbeats_object_to_is_tried_and_taken_back() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let (agent, end) = world.agent_that_holds(1).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "max_concurrency: 1").await;
    // Asynchronous work fills the agent: this gateway has no call in flight, only the heartbeat says so.
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    agent.until("it runs", |agent| agent.running().len() == 1).await;
    agent.beat().await;
    eventually("the gateway has heard", || async { gateway.agents()[0].heartbeat.running.len() == 1 }).await;
    let began = Instant::now();
    let refusal = gateway.call(&name("f"), payload("")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::AtConcurrency, "{}", refusal.message);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    let queue = QueueName::new(Lane::Call, PoolName::default(), name("f"));
    assert_eq!(world.broker.depth(&queue).await.unwrap(), 0);
    end.notify_one();
    ended(&world, accepted.execution_id).await;
    assert_eq!(agent.taken().len(), 1);
    // The heartbeat still says that it is full, and it is not: the call runs.
    end.notify_one();
    gateway.call(&name("f"), payload("")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_picks_up_within_the_grace_is_taken_back() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed(String::new())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    world.broker.pause_deliveries(true);
    let began = Instant::now();
    let refusal = gateway.call(&name("f"), payload("")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::NoResources, "{}", refusal.message);
    assert!(began.elapsed() < Duration::from_secs(2));
    world.broker.pause_deliveries(false);
    gateway.call(&name("f"), payload("")).await.unwrap();
    assert_eq!(agent.taken().len(), 1, "what was taken back never ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_holds_only_so_many_calls() {
    let mut world = World::new().await;
    world.settings.max_in_flight = 1;
    let gateway = world.gateway().await;
    let (agent, end) = world.agent_that_holds(4).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let function = name("f");
    let first = gateway.call(&function, payload(""));
    let second = async {
        agent.until("it runs", |agent| agent.running().len() == 1).await;
        let refusal = gateway.call(&function, payload("")).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::TooManyRequests);
        end.notify_one();
    };
    let (first, ()) = tokio::join!(first, second);
    first.unwrap();
}
