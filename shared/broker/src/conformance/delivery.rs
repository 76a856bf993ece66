//! What becomes of a message that was handed out.

use std::time::Duration;

use flux_protocol::{PoolName, invocation::Lane, time::now};

use super::{PATIENCE, Subject, hot_queue, message, next, pull, queue, take};
use crate::Message;

pub async fn a_message_is_delivered_as_it_was_stored(on: &Subject) {
    for lane in Lane::ALL {
        let queue = hot_queue(on, lane).await;
        let before = now();
        let sent = Message {
            headers: vec![("Flux-Args", "[\"a\",\"ü\"]".to_owned()), ("traceparent", "00-1-2-3".to_owned())],
            body: vec![0, 255, 10, 13].into(),
            id: Some(format!("{}.1", queue.function)),
        };
        let stored = on.broker.publish(&queue, sent).await.expect("publish");
        let delivery = take(&on.other, &queue).await;
        assert_eq!(delivery.queue, queue);
        assert_eq!(delivery.position, stored.position);
        assert_eq!(&*delivery.body, &[0, 255, 10, 13]);
        assert_eq!(delivery.header("flux-args"), Some("[\"a\",\"ü\"]"), "header names have no case");
        assert_eq!(delivery.header("traceparent"), Some("00-1-2-3"));
        assert_eq!(delivery.redeliveries, 0);
        // Two clocks, of one machine.
        assert!(
            delivery.stored_at.since(before) < PATIENCE && before.since(delivery.stored_at) < Duration::from_secs(1)
        );
        delivery.ack.ack().await.expect("ack");
    }
}

pub async fn deliveries_are_in_order(on: &Subject) {
    const COUNT: u32 = 200;
    let queue = hot_queue(on, Lane::Invoke).await;
    for n in 0..COUNT {
        on.broker.publish(&queue, message(n.to_string())).await.expect("publish");
    }
    let mut got = Vec::new();
    while got.len() < COUNT as usize {
        let mut pull = pull(&on.other, &queue, 32, Duration::from_secs(1)).await;
        while let Some(delivery) = pull.next().await {
            let delivery = delivery.expect("a delivery");
            got.push(String::from_utf8_lossy(&delivery.body).into_owned());
            delivery.ack.ack().await.expect("ack");
        }
    }
    assert_eq!(got, (0..COUNT).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub async fn an_unacked_delivery_goes_to_another(on: &Subject) {
    for lane in Lane::ALL {
        let queue = hot_queue(on, lane).await;
        on.broker.publish(&queue, message("x")).await.expect("publish");
        let lost = take(&on.broker, &queue).await;
        let position = lost.position.clone();
        let taken_at = tokio::time::Instant::now();
        // It dies with it.
        drop(lost);
        let again = take(&on.other, &queue).await;
        assert!(taken_at.elapsed() + Duration::from_millis(100) >= on.ack_wait, "it came again too soon");
        assert_eq!((again.position, again.redeliveries), (position, 1));
        again.ack.ack().await.expect("ack");
    }
}

pub async fn progress_keeps_a_delivery(on: &Subject) {
    let queue = hot_queue(on, Lane::Invoke).await;
    on.broker.publish(&queue, message("x")).await.expect("publish");
    let kept = take(&on.broker, &queue).await;
    // Marked in progress over two ack waits; nobody else gets it meanwhile.
    let mut others = pull(&on.other, &queue, 1, on.ack_wait * 2).await;
    let mut every = tokio::time::interval(on.ack_wait / 3);
    loop {
        tokio::select! {
            other = others.next() => {
                assert!(other.is_none(), "another got it: {other:?}");
                break;
            }
            _ = every.tick() => kept.ack.progress().await.expect("progress"),
        }
    }
    kept.ack.ack().await.expect("ack");
}

pub async fn an_acked_delivery_is_gone(on: &Subject) {
    let queue = hot_queue(on, Lane::Call).await;
    let stored = on.broker.publish(&queue, message("x")).await.expect("publish");
    take(&on.broker, &queue).await.ack.ack().await.expect("ack");
    // Longer than the ack wait: it does not come again.
    let mut pull = pull(&on.broker, &queue, 1, on.ack_wait + Duration::from_millis(300)).await;
    super::ended(&mut pull).await;
    if on.broker.capabilities().positions {
        assert!(!on.other.is_stored(&queue, &stored.position).await.expect("is stored"));
    }
    assert_eq!(on.other.depth(&queue).await.expect("depth"), 0);
}

pub async fn a_delivery_given_back_comes_again(on: &Subject) {
    let queue = hot_queue(on, Lane::Invoke).await;
    on.broker.publish(&queue, message("x")).await.expect("publish");
    let first = take(&on.broker, &queue).await;
    first.ack.nack(None).await.expect("nack");
    let begun = tokio::time::Instant::now();
    let second = take(&on.other, &queue).await;
    assert!(begun.elapsed() < on.ack_wait, "at once, not after the ack wait");
    assert_eq!(second.redeliveries, 1);

    let pause = Duration::from_millis(400);
    second.ack.nack(Some(pause)).await.expect("nack");
    let begun = tokio::time::Instant::now();
    let third = take(&on.other, &queue).await;
    assert!(begun.elapsed() + Duration::from_millis(50) >= pause, "too soon: {:?}", begun.elapsed());
    assert_eq!(third.redeliveries, 2);
    third.ack.ack().await.expect("ack");
}

pub async fn lanes_and_pools_are_apart(on: &Subject) {
    let pool = PoolName::parse("gpu").expect("a valid name");
    on.broker.provision(&[PoolName::default(), pool.clone()]).await.expect("provision");
    let mut call = queue(Lane::Call);
    let mut all = vec![call.clone()];
    call.lane = Lane::Invoke;
    all.push(call.clone());
    call.pool = pool;
    all.push(call);
    for (n, queue) in all.iter().enumerate() {
        on.broker.heat(queue).await.expect("heat");
        on.broker.publish(queue, message(n.to_string())).await.expect("publish");
    }
    for (n, queue) in all.iter().enumerate() {
        let mut pull = pull(&on.broker, queue, 2, Duration::from_millis(500)).await;
        let delivery = next(&mut pull).await;
        assert_eq!(&*delivery.body, n.to_string().as_bytes());
        assert_eq!(delivery.position.stream, queue.stream());
        delivery.ack.ack().await.expect("ack");
        super::ended(&mut pull).await;
    }
}
