//! What the provider in memory does wrong on demand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use flux_protocol::{PoolName, Timestamp};
use flux_provider::{
    Advice, ClientToken, ErrorKind, LaunchRequest, MemoryProvider, NodeState, NodeType, Provider as _,
    memory::{Call, Fault, MemoryOptions, bought_twice},
};

fn options() -> MemoryOptions {
    MemoryOptions::new(super::cluster("here"))
}

fn request() -> LaunchRequest {
    LaunchRequest::new(
        ClientToken::fresh(&super::cluster("here")),
        NodeType::parse("small").expect("a name"),
        PoolName::parse("workers").expect("a name"),
    )
}

#[tokio::test]
async fn a_fault_hits_the_call_of_its_number_and_no_other() {
    let memory = MemoryProvider::new(options());
    memory.fault_at(1, Fault::Fail(ErrorKind::Throttled));
    memory.launch(&request()).await.expect("call 0");
    assert_eq!(memory.launch(&request()).await.expect_err("call 1").kind(), ErrorKind::Throttled);
    memory.launch(&request()).await.expect("call 2");
    assert_eq!((memory.calls(), memory.alive().len()), (3, 2));
}

#[tokio::test]
async fn every_kind_of_error_can_be_had_and_has_no_effect() {
    let memory = MemoryProvider::new(options());
    for kind in ErrorKind::ALL {
        memory.fault_next(Call::Launch, Fault::Fail(kind));
        memory.list().await.expect("another kind of call is not hit");
        let error = memory.launch(&request()).await.expect_err("a fault was set");
        assert_eq!(error.kind(), kind);
        assert_eq!(error.is_retryable(), error.advice() == Advice::Again);
    }
    assert!(memory.bought().is_empty());
}

#[tokio::test]
async fn a_lost_answer_has_its_effect_and_the_token_finds_it_again() {
    let memory = MemoryProvider::new(options());
    memory.fault_next(Call::Launch, Fault::LoseAnswer);
    let request = request();
    let lost = memory.launch(&request).await.expect_err("the answer is lost");
    assert!(!lost.kind().bought_nothing());
    let node = memory.launch(&request).await.expect("the same launch");
    assert_eq!(memory.alive().iter().map(|one| one.id.clone()).collect::<Vec<_>>(), [node.id]);
}

#[tokio::test]
async fn who_ignores_tokens_buys_twice() {
    let mut options = options();
    options.honours_tokens = false;
    let memory = MemoryProvider::new(options);
    let request = request();
    for _ in 0..2 {
        memory.launch(&request).await.expect("a node");
    }
    assert_eq!(bought_twice(&memory.bought()), [request.client_token]);
}

#[tokio::test]
async fn a_caller_that_dies_gets_no_answer_and_its_successor_does() {
    for (fault, bought) in [(Fault::HaltBefore, 0), (Fault::HaltAfter, 1)] {
        let memory = MemoryProvider::new(options());
        memory.fault_at(0, fault);
        let request = request();
        tokio::select! {
            biased;
            node = async { let node = memory.launch(&request).await; memory.list().await.expect("listed"); node } => {
                panic!("the dead got an answer: {node:?}")
            }
            () = memory.halted() => {}
        }
        assert_eq!(memory.alive().len(), bought, "{fault:?}");
        tokio::select! {
            biased;
            _ = memory.list() => {
                panic!("another task of the dead got an answer")
            }
            () = async { for _ in 0..10 { tokio::task::yield_now().await } } => {}
        }
        memory.revive();
        memory.launch(&request).await.expect("the successor launches with the same token");
        assert_eq!(memory.alive().len(), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_list_is_late_and_states_pass_by_its_clock() {
    let now = Arc::new(AtomicI64::new(1_000_000));
    let mut options = options();
    let clock = now.clone();
    options.clock = Arc::new(move || Timestamp::from_millis(clock.load(Ordering::SeqCst)));
    (options.list_lags, options.boots_in, options.stops_in) =
        (Duration::from_millis(10), Duration::from_millis(100), Duration::from_millis(50));
    let memory = MemoryProvider::new(options);
    let id = memory.launch(&request()).await.expect("a node").id;
    let seen = async |after_ms: i64| {
        now.store(1_000_000 + after_ms, Ordering::SeqCst);
        memory.list().await.expect("listed").first().map(|node| node.state)
    };
    assert_eq!(seen(9).await, None);
    assert_eq!(seen(10).await, Some(NodeState::Pending));
    assert_eq!(seen(110).await, Some(NodeState::Running));
    now.store(1_000_200, Ordering::SeqCst);
    memory.terminate(&id).await.expect("terminated");
    assert_eq!(memory.alive(), [], "what is true is not late");
    assert_eq!(seen(205).await, Some(NodeState::Running));
    assert_eq!(seen(210).await, Some(NodeState::Stopping));
    assert_eq!(seen(260).await, Some(NodeState::Gone));
    assert_eq!(seen(5_000_000).await, None, "what is long gone is forgotten");
}

#[tokio::test]
async fn quota_and_capacity_are_told_apart_and_room_comes_back() {
    let mut options = options();
    options.quota = 2;
    let memory = MemoryProvider::new(options);
    let small = request();
    memory.limit_capacity(&memory.zones()[0].clone(), &small.node_type, 1);
    let first = memory.launch(&small).await.expect("the first").id;
    assert_eq!(memory.launch(&request()).await.expect_err("the zone is full").kind(), ErrorKind::Capacity);
    let mut large = request();
    large.node_type = NodeType::parse("large").expect("a name");
    memory.launch(&large).await.expect("the next type has room");
    large.client_token = request().client_token;
    let error = memory.launch(&large).await.expect_err("two are all");
    assert_eq!((error.kind(), error.advice()), (ErrorKind::Quota, Advice::NextTypeOrZone));
    memory.interrupt(&first);
    memory.launch(&large).await.expect("there is room again");
}
