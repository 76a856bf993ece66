//! Who takes a worker while others come back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use flux_protocol::{FunctionName, FunctionVersion, Timestamp, function::parse_yaml};

use super::{Channel, FirstWords, Key, Parts, Talk, WarmPool, Worker};
use crate::{executor::Process, launch::Ended};

/// It never ends.
struct Lasting;

#[async_trait]
impl Process for Lasting {
    fn pid(&self) -> u32 {
        0
    }

    fn started_at_us(&self) -> u64 {
        0
    }

    fn kill(&self, _signal: i32) {}

    async fn is_alone(&mut self) -> bool {
        true
    }

    async fn wait(&mut self) -> Ended {
        std::future::pending().await
    }
}

/// A worker, and what keeps its channel and pipes open.
fn worker() -> (Worker, impl Sized) {
    let Parts { stdio, pipes } = Parts::make().expect("a worker's parts");
    let spec = parse_yaml("name: f\nruntime: python\nhandler: main.f").expect("a function");
    let bootstrap = flux_worker::bootstrap::of(spec.runtime).expect("it has workers");
    let first = FirstWords { bootstrap, load: spec.entry().into() };
    let (channel, their_channel) = Channel::pair(first).expect("a channel");
    let version = FunctionVersion { version: 1, digest: None, spec, created_at: Timestamp::default() };
    let worker = Worker {
        process: Box::new(Lasting),
        talk: Talk::Framed(channel),
        pipes,
        served: 0,
        cpu_us: 0,
        oom_kills: None,
        version: Arc::new(version),
        secrets: crate::execution::Secrets::default(),
        _code: None,
    };
    (worker, (stdio, their_channel))
}

fn key() -> Key {
    Key { function: FunctionName::parse("f").expect("a name"), version: 1 }
}

fn serving(pool: &WarmPool) -> u32 {
    pool.state.lock().lines.get(&key()).map_or(0, |line| line.serving)
}

#[tokio::test]
async fn who_waited_in_vain_looks_once_more() {
    let pool = Arc::new(WarmPool::new(1000, 4));
    let (lease, none) = pool.take(&key()).await;
    assert!(none.is_none());
    lease.started(Duration::from_millis(40));
    pool.state.lock().lines.get_mut(&key()).expect("one serves").served(Duration::from_millis(1));
    let key = key();
    let mut taking = Box::pin(pool.take(&key));
    assert!(futures::poll!(&mut taking).is_pending(), "it waits for the one that serves");
    let (worker, _open) = worker();
    pool.state.lock().shelf.push(&key, worker, 1, Instant::now() + Duration::from_secs(60));
    let (second, found) = taking.await;
    assert!(found.is_some(), "it came back");
    assert_eq!((serving(&pool), pool.state.lock().shelf.count()), (2, 0));
    drop((lease, second));
    assert_eq!(serving(&pool), 0);
}

#[tokio::test]
async fn one_that_is_taken_serves_and_one_that_ended_is_passed_over() {
    let pool = Arc::new(WarmPool::new(1000, 4));
    let (ended, open) = worker();
    let (fit, _open) = worker();
    for worker in [fit, ended] {
        pool.state.lock().shelf.push(&key(), worker, 1, Instant::now() + Duration::from_secs(60));
    }
    drop(open);
    let (lease, found) = pool.take(&key()).await;
    assert!(found.is_some_and(|worker| worker.is_quiet()));
    assert_eq!((serving(&pool), pool.state.lock().shelf.count()), (1, 0));
    drop(lease);
    assert_eq!(serving(&pool), 0);
}
