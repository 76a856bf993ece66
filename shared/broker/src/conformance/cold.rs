//! Hot and cold queues.

use std::time::Duration;

use flux_protocol::invocation::Lane;

use super::{PATIENCE, Subject, hot_queue, message, pull, queue, take, within};
use crate::{BrokerError, Table};

pub async fn a_cold_queue_takes_messages_and_cannot_be_pulled(on: &Subject) {
    for lane in Lane::ALL {
        let queue = queue(lane);
        on.broker.publish(&queue, message("x")).await.expect("publish");
        let mut cold = pull(&on.other, &queue, 1, PATIENCE).await;
        match within("the refusal", cold.next()).await {
            Some(Err(BrokerError::NotFound { .. })) => {}
            other => panic!("{other:?}"),
        }
        assert!(cold.next().await.is_none(), "its credit is free");
        on.broker.heat(&queue).await.expect("heat");
        take(&on.other, &queue).await.ack.ack().await.expect("ack");
    }
}

pub async fn heating_twice_is_heating_once(on: &Subject) {
    let queue = queue(Lane::Invoke);
    let heats = (0..20).map(|n| {
        let broker = if n % 2 == 0 { &on.broker } else { &on.other };
        broker.heat(&queue)
    });
    for heated in futures::future::join_all(heats).await {
        heated.expect("heat");
    }
    assert!(on.other.get(Table::Hot, &queue.key()).await.expect("get").is_some());
    on.broker.publish(&queue, message("x")).await.expect("publish");
    let delivery = take(&on.broker, &queue).await;
    assert_eq!(delivery.redeliveries, 0);
    delivery.ack.ack().await.expect("ack");
}

pub async fn a_queue_with_work_stays_hot(on: &Subject) {
    let queue = hot_queue(on, Lane::Invoke).await;
    on.broker.publish(&queue, message("x")).await.expect("publish");
    assert!(!on.other.cool(&queue).await.expect("cool"), "one waits");
    let delivery = take(&on.broker, &queue).await;
    // Who cannot see that asks heartbeats before.
    if on.other.capabilities().counts_held {
        assert!(!on.other.cool(&queue).await.expect("cool"), "one is worked on");
    }
    assert!(!on.broker.cool(&queue).await.expect("cool"), "one is worked on by this very process");
    assert!(on.broker.get(Table::Hot, &queue.key()).await.expect("get").is_some());
    delivery.ack.ack().await.expect("ack");
    within("the queue to be idle", async {
        while !on.other.cool(&queue).await.expect("cool") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub async fn an_idle_queue_is_cooled(on: &Subject) {
    for lane in Lane::ALL {
        let queue = hot_queue(on, lane).await;
        let mut waiting = pull(&on.broker, &queue, 1, PATIENCE).await;
        assert!(on.other.cool(&queue).await.expect("cool"));
        match within("the end of an open pull", waiting.next()).await {
            Some(Err(BrokerError::NotFound { .. })) => {}
            other => panic!("{other:?}"),
        }
        assert!(on.broker.get(Table::Hot, &queue.key()).await.expect("get").is_none());
        assert!(on.other.cool(&queue).await.expect("cool"), "cooling what is cold changes nothing");
        // The one that made it hot must not believe that it still is.
        on.broker.publish(&queue, message("x")).await.expect("publish");
        within("the queue to be pulled again", async {
            loop {
                on.broker.heat(&queue).await.expect("heat");
                let mut pull = pull(&on.other, &queue, 1, Duration::from_millis(500)).await;
                if let Some(Ok(delivery)) = pull.next().await {
                    break delivery.ack.ack().await.expect("ack");
                }
            }
        })
        .await;
    }
}

pub async fn what_comes_while_cooling_is_not_stranded(on: &Subject) {
    for round in 0..20 {
        let lane = Lane::ALL[round % 2];
        let queue = hot_queue(on, lane).await;
        // A gateway that publishes as they all do, while another cools.
        let publishing = async {
            on.broker.heat(&queue).await.expect("heat");
            on.broker.publish(&queue, message("x")).await.expect("publish");
        };
        let (_, _cooled) = tokio::join!(publishing, on.other.cool(&queue));
        // It is pulled by agents if it is hot, and the reconciler heats what has messages.
        within("the message", async {
            loop {
                if on.broker.depth(&queue).await.expect("depth") > 0 {
                    on.broker.heat(&queue).await.expect("heat");
                }
                let mut pull = pull(&on.other, &queue, 1, Duration::from_secs(1)).await;
                if let Some(Ok(delivery)) = pull.next().await {
                    assert_eq!(delivery.redeliveries, 0);
                    break delivery.ack.ack().await.expect("ack");
                }
            }
        })
        .await;
    }
}
