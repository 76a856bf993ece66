//! When a pull ends, and what it may bring until then: an agent's budget stands on this.

use std::time::Duration;

use flux_protocol::invocation::Lane;
use tokio::time::Instant;

use super::{PATIENCE, Subject, ended, hot_queue, message, next, pull, take, within};

pub async fn a_pull_ends_when_it_is_filled(on: &Subject) {
    let queue = hot_queue(on, Lane::Call).await;
    for _ in 0..5 {
        on.broker.publish(&queue, message("x")).await.expect("publish");
    }
    let begun = Instant::now();
    let mut pull = pull(&on.broker, &queue, 3, PATIENCE).await;
    for left in (2..5).rev() {
        let delivery = next(&mut pull).await;
        // It may not count what was stored just now.
        assert!(delivery.pending.is_none_or(|pending| pending <= left), "{:?} instead of {left}", delivery.pending);
        delivery.ack.ack().await.expect("ack");
    }
    ended(&mut pull).await;
    assert!(begun.elapsed() < PATIENCE / 2, "the end came with the expiry, not when it was filled");
}

pub async fn a_pull_ends_when_its_time_passed(on: &Subject) {
    let queue = hot_queue(on, Lane::Call).await;
    on.broker.publish(&queue, message("x")).await.expect("publish");
    let expires = Duration::from_millis(300);
    let begun = Instant::now();
    let mut pull = pull(&on.broker, &queue, 5, expires).await;
    next(&mut pull).await.ack.ack().await.expect("ack");
    ended(&mut pull).await;
    let took = begun.elapsed();
    assert!(took + Duration::from_millis(50) >= expires && took < expires + Duration::from_secs(2), "{took:?}");
    // It has ended: what comes now is for others.
    on.broker.publish(&queue, message("y")).await.expect("publish");
    assert!(pull.next().await.is_none());
    let mut after = super::pull(&on.other, &queue, 1, PATIENCE).await;
    let delivery = next(&mut after).await;
    assert_eq!(delivery.redeliveries, 0, "nobody had it in between");
    delivery.ack.ack().await.expect("ack");
}

pub async fn a_batch_is_never_exceeded(on: &Subject) {
    let queue = hot_queue(on, Lane::Call).await;
    for _ in 0..50 {
        on.broker.publish(&queue, message("x")).await.expect("publish");
    }
    let mut got = 0;
    for batch in [1, 2, 7, 13, 27] {
        let mut pull = pull(&on.broker, &queue, batch, Duration::from_secs(1)).await;
        let mut of_this = 0;
        while let Some(delivery) = within("a delivery or the end", pull.next()).await {
            delivery.expect("a delivery").ack.ack().await.expect("ack");
            of_this += 1;
        }
        assert_eq!(of_this, batch);
        got += of_this;
    }
    assert_eq!(got, 50);
}

pub async fn a_pull_waits_for_what_comes(on: &Subject) {
    for lane in Lane::ALL {
        let queue = hot_queue(on, lane).await;
        let mut pull = pull(&on.broker, &queue, 1, PATIENCE).await;
        let (delivery, _) = tokio::join!(next(&mut pull), async {
            tokio::task::yield_now().await;
            on.other.publish(&queue, message("x")).await.expect("publish")
        });
        delivery.ack.ack().await.expect("ack");
        ended(&mut pull).await;
    }
}

pub async fn pulls_of_one_queue_get_no_more_than_they_asked_for(on: &Subject) {
    let queue = hot_queue(on, Lane::Call).await;
    // As an agent does that has a long pull open when it learns that there is more.
    let mut long = pull(&on.broker, &queue, 2, Duration::from_secs(2)).await;
    let mut short = pull(&on.broker, &queue, 3, Duration::from_millis(500)).await;
    for n in 0..9 {
        on.other.publish(&queue, message(n.to_string())).await.expect("publish");
    }
    let mut got = 0;
    for pull in [&mut long, &mut short] {
        while let Some(delivery) = within("a delivery or the end", pull.next()).await {
            delivery.expect("a delivery").ack.ack().await.expect("ack");
            got += 1;
        }
    }
    assert_eq!(got, 5, "what was asked for, by both together");
    for _ in 0..4 {
        let rest = take(&on.other, &queue).await;
        assert_eq!(rest.redeliveries, 0, "nobody had it in between");
        rest.ack.ack().await.expect("ack");
    }
}

pub async fn a_dropped_pull_keeps_nothing(on: &Subject) {
    let queue = hot_queue(on, Lane::Invoke).await;
    drop(pull(&on.broker, &queue, 3, PATIENCE).await);
    for _ in 0..3 {
        on.broker.publish(&queue, message("x")).await.expect("publish");
    }
    for _ in 0..3 {
        let begun = Instant::now();
        let delivery = take(&on.other, &queue).await;
        assert!(begun.elapsed() < on.ack_wait * 2, "it was kept for {:?}", begun.elapsed());
        delivery.ack.ack().await.expect("ack");
    }
}
