//! What is stored, what is refused, and what can be known of it.

use std::time::Duration;

use flux_protocol::{ExecutionId, PoolName, invocation::Lane, limits, time::now};
use futures::StreamExt as _;

use super::{Subject, ended, hot_queue, message, pull, queue, take, within};
use crate::{BrokerError, Message, TakenBack};

pub async fn the_same_id_is_stored_once(on: &Subject) {
    for lane in Lane::ALL {
        let queue = hot_queue(on, lane).await;
        let sent = Message { id: Some(format!("{}.1", ExecutionId::new())), ..message("x") };
        let first = on.broker.publish(&queue, sent.clone()).await.expect("publish");
        let second = on.other.publish(&queue, sent).await.expect("publish again");
        assert_eq!(first.position, second.position);
        let stored = if on.broker.capabilities().deduplicates {
            assert!(!first.duplicate && second.duplicate);
            1
        } else {
            // It is there twice and says so of neither, but whoever gets both can tell that they are the same.
            assert!(!first.duplicate && !second.duplicate);
            2
        };
        assert_eq!(on.broker.depth(&queue).await.expect("depth"), stored);
        for _ in 0..stored {
            let delivery = take(&on.broker, &queue).await;
            assert_eq!(delivery.position, first.position);
            delivery.ack.ack().await.expect("ack");
        }
    }
}

pub async fn a_full_queue_says_so_and_loses_nothing(on: &Subject) {
    let queue = hot_queue(on, Lane::Call).await;
    let mut stored = Vec::new();
    let error = loop {
        assert!(stored.len() < on.fill_tries, "it never was full");
        let body = vec![u8::try_from(stored.len() % 251).unwrap_or(0); on.fill_size];
        match on.broker.publish(&queue, message(body)).await {
            Ok(at) => stored.push(at.position),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, BrokerError::Full { .. }) && error.is_retryable(), "{error:?}");
    assert_eq!(on.broker.depth(&queue).await.expect("depth"), stored.len() as u64);
    // The oldest are still there; and with one gone there is room for one.
    for (n, position) in stored.iter().enumerate().take(3) {
        let delivery = take(&on.broker, &queue).await;
        assert_eq!(delivery.position, *position);
        assert_eq!(delivery.body.first().copied(), u8::try_from(n).ok());
        delivery.ack.ack().await.expect("ack");
    }
    on.broker.ping().await.expect("ping");
    within("room", async {
        while on.broker.publish(&queue, message(vec![1; on.fill_size])).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub async fn too_large_is_refused(on: &Subject) {
    let queue = queue(Lane::Invoke);
    let error = on.broker.publish(&queue, message(vec![0; limits::MESSAGE + 1])).await.expect_err("too large");
    let BrokerError::TooLarge { size, limit } = error else { panic!("{error:?}") };
    assert_eq!((size, limit), (limits::MESSAGE + 1, limits::MESSAGE));
    assert_eq!(on.broker.depth(&queue).await.expect("depth"), 0);
}

pub async fn a_delayed_message_comes_when_it_is_due(on: &Subject) {
    let queue = hot_queue(on, Lane::Invoke).await;
    let due = now().plus(Duration::from_millis(1200));
    if !on.broker.capabilities().delayed_publish {
        return is_unsupported(on.broker.publish_at(&queue, message("later"), due).await);
    }
    let id = ExecutionId::new();
    let sent = Message {
        headers: vec![("Flux-Execution-Id", id.to_string()), ("Flux-Attempt", "2".to_owned())],
        id: Some(format!("{id}.2")),
        ..message("later")
    };
    let stored = on.broker.publish_at(&queue, sent.clone(), due).await.expect("publish at");
    assert!(on.broker.is_stored(&queue, &stored.position).await.expect("is stored"));
    assert_eq!(on.broker.depth(&queue).await.expect("depth"), 0, "it is not visible yet");
    let delivery = take(&on.other, &queue).await;
    let late = now().since(due);
    assert!(now() >= due, "it came {:?} too early", due.since(now()));
    assert!(late < Duration::from_secs(1), "it came {late:?} late");
    assert_eq!(&*delivery.body, b"later");
    assert_eq!(delivery.header("Flux-Execution-Id"), Some(id.to_string().as_str()));
    assert_eq!(delivery.header("Flux-Attempt"), Some("2"));
    delivery.ack.ack().await.expect("ack");
    assert!(!on.broker.is_stored(&queue, &stored.position).await.expect("is stored"));
    // It is stored under the id that it was given.
    let again = on.broker.publish(&queue, sent).await.expect("publish");
    assert!(again.duplicate);
}

/// What an engine says that it cannot do, it refuses, and does not do by half.
fn is_unsupported<T: std::fmt::Debug>(done: Result<T, BrokerError>) {
    assert!(matches!(done, Err(BrokerError::Unsupported { .. })), "{done:?}");
}

pub async fn a_delayed_message_can_be_taken_back(on: &Subject) {
    let capabilities = on.broker.capabilities();
    if !capabilities.delayed_publish || !capabilities.take_back {
        return;
    }
    let queue = hot_queue(on, Lane::Invoke).await;
    let due = now().plus(Duration::from_millis(1500));
    let stored = on.broker.publish_at(&queue, message("x"), due).await.expect("publish at");
    let taken = on.broker.take_back(&queue, &stored.position).await.expect("take back");
    assert_eq!(taken, TakenBack::NeverDelivered);
    let mut pull = pull(&on.broker, &queue, 1, Duration::from_millis(2000)).await;
    ended(&mut pull).await;
}

pub async fn what_was_not_delivered_can_be_taken_back(on: &Subject) {
    if !on.broker.capabilities().take_back {
        let queue = hot_queue(on, Lane::Invoke).await;
        let position = on.broker.publish(&queue, message("x")).await.expect("publish").position;
        return is_unsupported(on.other.take_back(&queue, &position).await);
    }
    for (lane, hot) in [(Lane::Call, true), (Lane::Invoke, true), (Lane::Invoke, false)] {
        let queue = if hot { hot_queue(on, lane).await } else { queue(lane) };
        let first = on.broker.publish(&queue, message("1")).await.expect("publish").position;
        let second = on.broker.publish(&queue, message("2")).await.expect("publish").position;
        assert_eq!(on.other.was_delivered(&queue, &first).await.expect("was delivered"), Some(false));
        assert_eq!(on.other.take_back(&queue, &first).await.expect("take back"), TakenBack::NeverDelivered);
        assert!(!on.broker.is_stored(&queue, &first).await.expect("is stored"));
        assert!(on.broker.is_stored(&queue, &second).await.expect("is stored"));
        on.broker.heat(&queue).await.expect("heat");
        let delivery = take(&on.broker, &queue).await;
        assert_eq!(delivery.position, second, "the other is untouched");
        delivery.ack.ack().await.expect("ack");
    }
}

pub async fn what_was_delivered_is_said_to_be(on: &Subject) {
    let queue = hot_queue(on, Lane::Call).await;
    let position = on.broker.publish(&queue, message("x")).await.expect("publish").position;
    let delivery = take(&on.other, &queue).await;
    let told = on.broker.was_delivered(&queue, &position).await.expect("was delivered");
    if on.broker.capabilities().positions {
        assert_eq!(told, Some(true));
    } else {
        assert_eq!(told, None, "it cannot be told");
        is_unsupported(on.broker.is_stored(&queue, &position).await);
    }
    if on.broker.capabilities().take_back {
        assert_eq!(on.broker.take_back(&queue, &position).await.expect("take back"), TakenBack::Delivered);
    }
    delivery.ack.ack().await.expect("ack");
    // Of a stream that was made anew nothing can be told.
    let other = flux_protocol::execution::QueuePosition {
        epoch: position.epoch.plus(Duration::from_secs(1)),
        ..position.clone()
    };
    assert_eq!(on.broker.was_delivered(&queue, &other).await.expect("was delivered"), None);
    assert!(!on.broker.is_stored(&queue, &other).await.expect("is stored"));
    let taken = on.broker.take_back(&queue, &other).await;
    assert!(matches!(taken, Err(BrokerError::NotFound { .. })), "{taken:?}");
    let epoch = on.other.epoch(Lane::Call, &PoolName::default()).await.expect("epoch");
    assert_eq!(epoch, position.epoch);
}

pub async fn depths_count_what_is_stored(on: &Subject) {
    let (a, b) = (hot_queue(on, Lane::Invoke).await, queue(Lane::Invoke));
    for _ in 0..3 {
        on.broker.publish(&a, message("x")).await.expect("publish");
    }
    on.broker.publish(&b, message("x")).await.expect("publish");
    let delivery = take(&on.broker, &a).await;
    // One that is worked on counts, where it can be seen.
    let counted = if on.broker.capabilities().counts_held { 3 } else { 2 };
    let depths = on.other.depths(Lane::Invoke, &PoolName::default()).await.expect("depths");
    let of = |queue| depths.iter().find(|depth| depth.queue == queue).map_or(0, |depth| depth.messages);
    assert_eq!((of(a.clone()), of(b.clone())), (counted, 1));
    assert_eq!(on.other.depth(&a).await.expect("depth"), counted);
    assert_eq!(on.other.depth(&queue(Lane::Invoke)).await.expect("depth"), 0);
    delivery.ack.ack().await.expect("ack");
}

pub async fn progress_tells_what_nobody_was_given(on: &Subject) {
    let (a, b) = (hot_queue(on, Lane::Invoke).await, queue(Lane::Invoke));
    let functions = [a.function.clone(), b.function.clone()];
    let look = || on.other.progress(Lane::Invoke, &a.pool, &functions);
    if !on.broker.capabilities().counts_deliveries {
        return is_unsupported(look().await);
    }
    let mut stored = Vec::new();
    for _ in 0..3 {
        stored.push(on.broker.publish(&a, message("x")).await.expect("publish").position.sequence);
    }
    // One that nobody pulls, cold as it is.
    stored.push(on.broker.publish(&b, message("x")).await.expect("publish").position.sequence);
    let before = look().await.expect("progress");
    assert_eq!(before.iter().map(|one| &one.queue).collect::<Vec<_>>(), [&a, &b]);
    assert_eq!(before.iter().map(|one| (one.waiting, one.delivered)).collect::<Vec<_>>(), [(3, 0), (1, 0)]);
    assert!(before.iter().all(|one| one.stored_to == stored[3] && one.delivered_to < stored[0]), "{before:?}");
    let first = take(&on.broker, &a).await;
    let second = take(&on.broker, &a).await;
    first.ack.ack().await.expect("ack");
    let after = look().await.expect("progress");
    // Done or worked on is the same here.
    assert_eq!((after[0].waiting, after[0].delivered, after[0].delivered_to), (1, 2, stored[1]), "{after:?}");
    assert_eq!(after[1], before[1]);
    second.ack.ack().await.expect("ack");
}

pub async fn a_stored_message_rings_one_gateway(on: &Subject) {
    let mut one = on.broker.rings().await.expect("rings");
    let mut two = on.other.rings().await.expect("rings");
    let queue = queue(Lane::Invoke);
    on.broker.publish(&queue, message("x")).await.expect("publish");
    let ring = within("a ring", async {
        loop {
            let ring = tokio::select! { ring = one.next() => ring, ring = two.next() => ring }.expect("rings go on");
            if ring.queue == queue {
                break ring;
            }
        }
    })
    .await;
    assert_eq!(ring.queue, queue);
}

pub async fn one_can_be_taken_where_nobody_pulls(on: &Subject) {
    let queue = queue(Lane::Invoke);
    assert!(within("nothing", on.broker.take_one(&queue)).await.expect("take one").is_none());
    on.broker.publish(&queue, message("1")).await.expect("publish");
    on.broker.publish(&queue, message("2")).await.expect("publish");
    for expected in ["1", "2"] {
        let delivery = within("a delivery", on.other.take_one(&queue)).await.expect("take one").expect("one waits");
        assert_eq!(&*delivery.body, expected.as_bytes());
        delivery.ack.ack().await.expect("ack");
    }
    assert!(within("nothing", on.broker.take_one(&queue)).await.expect("take one").is_none());
    assert_eq!(on.broker.get(crate::Table::Hot, &queue.key()).await.expect("get").map(|entry| entry.key), None);
}
