//! For how long something waits, on a real queue.

use std::{sync::Arc, time::Duration};

use flux_autoscaler::signals::Signals;
use flux_broker::{
    Broker as _, Message, Queue as _,
    nats::{NatsBroker, NatsOptions},
};
use flux_protocol::{FunctionName, Lane, PoolName, Timestamp, subject::QueueName};
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::NatsServer;

fn queue(lane: Lane, function: &str) -> QueueName {
    QueueName::new(lane, PoolName::default(), FunctionName::parse(function).expect("a name"))
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_micros(1_000_000_000_000_000).plus(Duration::from_secs(second))
}

/// Looks are told when they are: what waits was there at one of them or was not, however fast this machine is.
#[tokio::test]
async fn the_oldest_that_nobody_was_given_says_how_long_a_function_waits() {
    let server = NatsServer::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let broker = NatsBroker::connect(NatsOptions::new(server.url(), "test"), tasks.clone()).await.expect("connected");
    broker.provision(&[PoolName::default()]).await.expect("provisioned");
    let signals = Signals::start(Arc::clone(&broker) as _, PoolName::default(), Duration::from_secs(60), &tasks);
    let (slow, quick, call) = (queue(Lane::Invoke, "slow"), queue(Lane::Invoke, "quick"), queue(Lane::Call, "slow"));
    let publish = async |queue: &QueueName| {
        let message = Message { body: "payload".into(), ..Message::default() };
        broker.publish(queue, message).await.expect("published");
    };
    let give = async |queue: &QueueName| {
        let delivery = broker.take_one(queue).await.expect("taken").expect("one waits");
        delivery.ack.ack().await.expect("acked");
    };
    let look = async |second: u64| {
        // A server that stalls tells nothing: it is asked again for the same moment.
        let seen = loop {
            let seen = signals.look(at(second)).await.expect("a queue that answers");
            if !seen.untold {
                break seen;
            }
        };
        let waits = seen.waits.into_iter().map(|wait| (wait.function.to_string(), wait.waiting, wait.oldest.as_secs()));
        waits.collect::<Vec<_>>()
    };
    let of = |function: &str, waiting: u64, seconds: u64| (function.to_owned(), waiting, seconds);

    assert_eq!(look(0).await, []);
    // Nobody pulls these, cold as they are.
    publish(&slow).await;
    publish(&slow).await;
    assert_eq!(look(10).await, [of("slow", 2, 0)]);
    publish(&quick).await;
    assert_eq!(sorted(look(40).await), [of("quick", 1, 0), of("slow", 2, 30)]);
    publish(&slow).await;
    give(&slow).await;
    give(&quick).await;
    assert_eq!(look(70).await, [of("slow", 2, 60)], "the second waits as long as the first did");
    give(&slow).await;
    assert_eq!(look(80).await, [of("slow", 1, 10)], "the third was seen first at the look before");
    publish(&call).await;
    assert_eq!(sorted(look(90).await), [of("slow", 1, 0), of("slow", 1, 20)], "lanes are apart");
    give(&slow).await;
    assert_eq!(look(200).await, [of("slow", 1, 110)]);
    give(&call).await;
    assert_eq!(look(210).await, []);
}

fn sorted(mut waits: Vec<(String, u64, u64)>) -> Vec<(String, u64, u64)> {
    waits.sort();
    waits
}
