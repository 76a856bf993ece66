//! The status log.

use flux_protocol::{Chunk, StatusMessage, Stream};
use futures::StreamExt as _;

use super::{Subject, function, status, within};
use crate::StatusDelivery;

pub async fn statuses_come_in_batches(on: &Subject) {
    const COUNT: usize = 100;
    let function = function();
    let mut sent = Vec::new();
    for _ in 0..COUNT {
        let status = status(&function);
        on.broker.publish_status("agent-7", &status).await.expect("publish");
        sent.push(status);
    }
    let mut log = on.other.statuses(32).await.expect("statuses");
    let mut got: Vec<StatusDelivery> = Vec::new();
    while got.len() < COUNT {
        let batch = within("a batch", log.next()).await.expect("it goes on");
        assert!((1..=32).contains(&batch.len()), "{} in a batch", batch.len());
        got.extend(batch);
    }
    order_grows(on, &got);
    assert!(got.iter().all(|delivery| delivery.sender == "agent-7"));
    for (delivery, sent) in got.into_iter().zip(sent) {
        assert_eq!(delivery.status, sent);
        delivery.ack.ack().await.expect("ack");
    }
    // One that waits for more gets the next at once, alone.
    let alone = status(&function);
    let (batch, published) = tokio::join!(within("a batch", log.next()), on.broker.publish_status("gw-1", &alone));
    published.expect("publish");
    let batch = batch.expect("it goes on");
    assert_eq!(batch.len(), 1);
    for delivery in batch {
        assert_eq!((delivery.sender.as_str(), &delivery.status), ("gw-1", &alone));
        delivery.ack.ack().await.expect("ack");
    }
}

/// Where the engine knows the log's order, a delivery says its place; otherwise none has one.
fn order_grows(on: &Subject, got: &[StatusDelivery]) {
    if on.other.capabilities().ordered_statuses {
        assert!(got.windows(2).all(|pair| pair[0].order < pair[1].order), "the order grows");
        assert!(got.iter().all(|delivery| delivery.order.is_some()));
    } else {
        assert!(got.iter().all(|delivery| delivery.order.is_none()), "a place that cannot be compared is none");
    }
}

pub async fn an_unacked_status_comes_again(on: &Subject) {
    let status = status(&function());
    on.broker.publish_status("agent-7", &status).await.expect("publish");
    let first = {
        let mut log = on.broker.statuses(8).await.expect("statuses");
        within("a batch", log.next()).await.expect("it goes on")
    };
    assert_eq!(first.len(), 1);
    let order = first[0].order;
    drop(first);
    within("one that is out to count", async {
        while on.other.backlog().await.expect("backlog") != 1 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut log = on.other.statuses(8).await.expect("statuses");
    let second = within("the batch again", log.next()).await.expect("it goes on");
    assert_eq!(second.iter().map(|delivery| &delivery.status).collect::<Vec<_>>(), [&status]);
    assert_eq!(second[0].order, order);
    for delivery in second {
        delivery.ack.ack().await.expect("ack");
    }
    emptied(on).await;
}

pub async fn the_same_status_is_stored_once(on: &Subject) {
    let (status, marker) = (status(&function()), status(&function()));
    for broker in [&on.broker, &on.other, &on.broker] {
        broker.publish_status("agent-7", &status).await.expect("publish");
    }
    on.broker.publish_status("agent-7", &marker).await.expect("publish");
    let mut log = on.other.statuses(8).await.expect("statuses");
    let mut got = Vec::new();
    while got.last() != Some(&marker) {
        for delivery in within("a batch", log.next()).await.expect("it goes on") {
            got.push(delivery.status.clone());
            delivery.ack.ack().await.expect("ack");
        }
    }
    if on.other.capabilities().deduplicates {
        assert_eq!(got, [status, marker]);
    } else {
        // Recording one again changes nothing.
        got.dedup();
        assert_eq!(got, [status, marker]);
    }
}

pub async fn watchers_hear_statuses(on: &Subject) {
    let status = status(&function());
    let mut heard = on.other.listen(&flux_protocol::subject::statuses_of(status.execution_id)).await.expect("listen");
    let encoded = serde_json::to_vec(&status).expect("encode");
    on.broker.publish_status_bytes("agent-7", &status, encoded.clone().into()).await.expect("publish");
    let signal = within("the status", heard.next()).await.expect("it goes on");
    assert_eq!(signal.subject, flux_protocol::subject::status("agent-7", status.execution_id));
    assert_eq!(&*signal.body, encoded.as_slice());
}

pub async fn watchers_hear_of_large_statuses(on: &Subject) {
    let mut status = status(&function());
    let printed = Chunk { seq: 1, stream: Stream::Stdout, data: vec![b'x'; 100_000].into() };
    status.outcome.as_mut().expect("an end").output.chunks.push(printed);
    let mut heard = on.other.listen(&flux_protocol::subject::statuses_of(status.execution_id)).await.expect("listen");
    on.broker.publish_status("agent-7", &status).await.expect("publish");
    let signal = within("the status", heard.next()).await.expect("it goes on");
    let heard: flux_protocol::StatusMessage = serde_json::from_slice(&signal.body).expect("a status");
    assert_eq!((heard.execution_id, heard.is_terminal()), (status.execution_id, status.is_terminal()));
    let mut log = on.other.statuses(8).await.expect("statuses");
    let stored = within("a batch", log.next()).await.expect("it goes on");
    assert_eq!(stored.iter().map(|delivery| &delivery.status).collect::<Vec<_>>(), [&status], "the log has all of it");
    for delivery in stored {
        delivery.ack.ack().await.expect("ack");
    }
}

/// Publishes so many in one moment, as an agent does whose executions end together.
async fn publish_at_once(on: &Subject, count: usize) -> Vec<StatusMessage> {
    let function = function();
    let sent: Vec<_> = (0..count).map(|_| status(&function)).collect();
    let published = sent.iter().map(|status| on.broker.publish_status("agent-7", status));
    for published in futures::future::join_all(published).await {
        published.expect("publish");
    }
    sent
}

pub async fn statuses_published_at_once_all_come(on: &Subject) {
    const COUNT: usize = 600;
    let sent = publish_at_once(on, COUNT).await;
    let mut log = on.other.statuses(32).await.expect("statuses");
    let mut got: Vec<StatusDelivery> = Vec::new();
    while got.len() < COUNT {
        let batch = within("a batch", log.next()).await.expect("it goes on");
        assert!((1..=32).contains(&batch.len()), "{} in a batch", batch.len());
        got.extend(batch);
    }
    order_grows(on, &got);
    let mut missing: std::collections::HashMap<_, _> =
        sent.iter().map(|status| (status.execution_id, status)).collect();
    for delivery in got {
        let sent = missing.remove(&delivery.status.execution_id).expect("each comes once");
        assert_eq!((delivery.sender.as_str(), &delivery.status), ("agent-7", sent));
        delivery.ack.ack().await.expect("ack");
    }
    emptied(on).await;
}

pub async fn what_is_not_acked_of_many_comes_again(on: &Subject) {
    const COUNT: usize = 40;
    let sent = publish_at_once(on, COUNT).await;
    let mut log = on.other.statuses(8).await.expect("statuses");
    let (mut seen, mut kept) = (0, Vec::new());
    while seen < COUNT {
        for delivery in within("a batch", log.next()).await.expect("it goes on") {
            seen += 1;
            // One of each kind of place: the first, some in the middle, not the last.
            if seen % 7 == 1 {
                kept.push(delivery);
            } else {
                delivery.ack.ack().await.expect("ack");
            }
        }
    }
    let mut missing: std::collections::HashSet<_> =
        kept.drain(..).map(|delivery| delivery.status.execution_id).collect();
    assert_eq!(missing.len(), COUNT.div_ceil(7));
    while !missing.is_empty() {
        for delivery in within("what was not acked", log.next()).await.expect("it goes on") {
            assert!(sent.contains(&delivery.status), "only what was published");
            missing.remove(&delivery.status.execution_id);
            delivery.ack.ack().await.expect("ack");
        }
    }
    // What shared a message with it may still be on its way again.
    while on.other.backlog().await.expect("backlog") > 0 {
        if let Ok(batch) = tokio::time::timeout(std::time::Duration::from_millis(20), log.next()).await {
            for delivery in batch.expect("it goes on") {
                delivery.ack.ack().await.expect("ack");
            }
        }
    }
}

/// Acks are not confirmed.
async fn emptied(on: &Subject) {
    within("an empty log", async {
        while on.other.backlog().await.expect("backlog") > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}
