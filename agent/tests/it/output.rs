//! Output: live, in order, told apart, bounded.

use std::{io::Write as _, time::Duration};

use bytes::Bytes;
use flux_protocol::{
    Stream,
    agent::{ControlReply, ControlRequest, OutputMessage},
    limits, subject,
};
use futures::StreamExt as _;

use crate::{
    fake::{End, FakeExecutor},
    world::{SOON, World, invocation},
};

#[tokio::test]
async fn output_is_heard_before_the_end_and_in_order() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let (go, waits) = tokio::sync::watch::channel(false);
    executor.program("f", move |mut call| {
        let mut waits = waits.clone();
        async move {
            call.stdout.write_all(b"one").expect("stdout");
            waits.wait_for(|go| *go).await.expect("told");
            call.stderr.write_all("zwei €".as_bytes()).expect("stderr");
            // Apart in time, so that the order can be seen.
            tokio::time::sleep(Duration::from_millis(60)).await;
            call.stdout.write_all(b"three").expect("stdout");
            End::Exit(0)
        }
    });
    world.deploy("name: f\nhandler: f").await;
    let agent = world.agent(&executor, World::settings()).await;
    let asked = invocation("");
    let id = asked.execution_id.expect("given");
    let mut live = world.broker.listen(&subject::outputs_of(id)).await.expect("a subscription");
    world.publish(&World::queue(flux_protocol::Lane::Invoke, "f"), &asked).await;
    let mut next = async || -> OutputMessage {
        let heard = tokio::time::timeout(SOON, live.next()).await.expect("in time").expect("output");
        assert_eq!(heard.subject, subject::output(agent.agent.id(), id));
        serde_json::from_slice(&heard.body).expect("a chunk")
    };
    let first = next().await;
    assert_eq!((first.attempt, first.chunk.seq, first.chunk.stream), (1, 1, Stream::Stdout));
    assert_eq!(first.chunk.data, "one");
    assert!(world.statuses_of(id).iter().all(|status| !status.is_terminal()), "heard while it runs");
    // Who comes late asks the agent.
    let ControlReply::Tail { attempt, output } =
        world.ask(agent.agent.id(), &ControlRequest::Tail { execution_id: id }).await
    else {
        panic!("it is held")
    };
    assert_eq!((attempt, output.chunks), (1, vec![first.chunk]));
    go.send_replace(true);
    let (second, third) = (next().await, next().await);
    assert_eq!((second.chunk.seq, second.chunk.stream), (2, Stream::Stderr));
    assert_eq!(second.chunk.data, "zwei €");
    assert_eq!((third.chunk.seq, third.chunk.stream), (3, Stream::Stdout));
    let end = world.end_of(id).await;
    assert_eq!(end.outcome.expect("an outcome").output.to_text(), "onezwei €three");
}

#[tokio::test]
async fn many_small_writes_become_few_chunks() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |mut call| async move {
        let written = tokio::task::spawn_blocking(move || {
            for n in 0..20_000 {
                writeln!(call.stdout, "{n}").expect("stdout");
            }
        });
        written.await.expect("written");
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("f", "").await;
    let log = reply.outcome.expect("an outcome").output;
    let expected: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    assert!(log.to_text() == expected);
    assert!(log.chunks.len() < 2_000, "{} chunks", log.chunks.len());
}

#[tokio::test]
async fn the_middle_of_too_much_output_is_dropped_and_counted() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let size = limits::OUTPUT + 8 * limits::MIB;
    executor.program("f", move |mut call| async move {
        let written = tokio::task::spawn_blocking(move || {
            call.stdout.write_all(b"begin").expect("stdout");
            call.stdout.write_all(&vec![b'x'; size]).expect("stdout");
            call.stdout.write_all(b"end").expect("stdout");
        });
        written.await.expect("written");
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("f", "").await;
    let blob = reply.outcome.expect("an outcome").output_ref.expect("by reference");
    let stored = world.broker.get_blob(subject::blob_bucket(&blob.key), &blob.key, 2 * size).await.expect("read");
    let log = flux_protocol::OutputLog::decode(stored.expect("there")).expect("an output");
    assert!(log.len() <= limits::OUTPUT);
    assert_eq!(log.len() as u64 + log.dropped_bytes, (size + 8) as u64);
    let kept: Bytes = log.bytes_of(Stream::Stdout);
    assert!(kept.starts_with(b"begin") && kept.ends_with(b"end"));
}

#[tokio::test]
async fn pipes_that_someone_holds_open_do_not_hold_up_the_outcome() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    let kept = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let keeps = std::sync::Arc::clone(&kept);
    executor.program("f", move |mut call| {
        call.stdout.write_all(b"done").expect("stdout");
        // As a grandchild that went on would.
        keeps.lock().push(call);
        async { End::Exit(0) }
    });
    world.deploy("name: f\nhandler: f").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let began = std::time::Instant::now();
    let reply = world.call("f", "").await;
    assert_eq!(reply.outcome.expect("an outcome").output.to_text(), "done");
    assert!(began.elapsed() >= limits::PIPE_DRAIN, "it waits a little for what is still written");
    assert!(began.elapsed() < Duration::from_secs(5));
}
