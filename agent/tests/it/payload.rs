//! Payloads of every size, both ways, and what a function is told.

use std::io::{Read as _, Write as _};

use flux_protocol::{
    Digest, ErrorKind, Invocation, OutputLog, StatusMessage, Stream, execution::BlobRef, invocation::Payload, limits,
    subject,
};

use crate::{
    end_to_end::echo,
    fake::{End, FakeExecutor},
    world::{World, invocation, kind, message},
};

fn bytes(size: usize) -> Vec<u8> {
    flux_testkit::Seed::new(size as u64).bytes(size)
}

/// What it wrote, wherever it lies.
async fn output(world: &World, status: &StatusMessage) -> OutputLog {
    let outcome = status.outcome.as_ref().expect("an outcome");
    match &outcome.output_ref {
        None => outcome.output.clone(),
        Some(blob) => {
            assert!(outcome.output.is_empty());
            let most = usize::try_from(blob.size).expect("it fits");
            let stored = world.broker.get_blob(subject::blob_bucket(&blob.key), &blob.key, most).await.expect("read");
            let stored = stored.expect("it is there");
            assert_eq!(Digest::of(&stored), blob.digest);
            OutputLog::decode(stored).expect("an output")
        }
    }
}

#[tokio::test]
async fn every_size_comes_back_whole() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    // A thread of its own: it waits for whoever reads its pipe.
    executor.program("echo", |mut call| async move {
        let copied = tokio::task::spawn_blocking(move || {
            let mut payload = Vec::new();
            call.stdin.read_to_end(&mut payload).expect("stdin");
            call.stdout.write_all(&payload).expect("stdout");
        });
        copied.await.expect("copied");
        End::Exit(0)
    });
    world.deploy("name: echo\nhandler: echo").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let sizes = [
        0,
        1,
        64 * limits::KIB - 1,
        64 * limits::KIB,
        64 * limits::KIB + 1,
        limits::INLINE_OUTPUT,
        limits::INLINE_OUTPUT + 1,
        limits::INLINE_PAYLOAD,
    ];
    for size in sizes {
        let payload = bytes(size);
        let reply = world.call("echo", payload.clone()).await;
        let log = output(&world, &reply).await;
        assert_eq!(Digest::of(&log.bytes_of(Stream::Stdout)), Digest::of(&payload), "{size} bytes");
        assert_eq!(log.dropped_bytes, 0);
    }
}

async fn by_reference(world: &World, payload: Vec<u8>) -> Invocation {
    let base = invocation("");
    let key = subject::payload_blob(base.execution_id.expect("given"));
    let (digest, size) = (Digest::of(&payload), payload.len() as u64);
    world.broker.put_blob(subject::BLOB_BUCKET, &key, payload.into()).await.expect("stored");
    Invocation { payload: Payload::Blob(BlobRef { key, digest, size }), ..base }
}

#[tokio::test]
async fn the_largest_payload_and_output_go_by_reference() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("echo", |mut call| async move {
        let copied = tokio::task::spawn_blocking(move || std::io::copy(&mut call.stdin, &mut call.stdout));
        copied.await.expect("copied").expect("written");
        End::Exit(0)
    });
    world.deploy("name: echo\nhandler: echo").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let payload = bytes(limits::PAYLOAD);
    let digest = Digest::of(&payload);
    let invocation = by_reference(&world, payload).await;
    let reply = world.call_with("echo", invocation).await;
    let log = output(&world, &reply).await;
    assert_eq!((Digest::of(&log.bytes_of(Stream::Stdout)), log.dropped_bytes), (digest, 0));
}

#[tokio::test]
async fn a_payload_that_is_gone_or_another_is_said_so() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    echo(&executor, "echo");
    world.deploy("name: echo\nhandler: echo").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let gone = by_reference(&world, bytes(100)).await;
    let key = subject::payload_blob(gone.execution_id.expect("given"));
    world.broker.delete_blob(subject::BLOB_BUCKET, &key).await.expect("deleted");
    let reply = world.call_with("echo", gone).await;
    assert_eq!(kind(&reply), Some(ErrorKind::Expired));
    assert!(message(&reply).contains(&key), "{}", message(&reply));
    let other = by_reference(&world, bytes(100)).await;
    let key = subject::payload_blob(other.execution_id.expect("given"));
    world.broker.put_blob(subject::BLOB_BUCKET, &key, bytes(99).into()).await.expect("stored");
    assert!(message(&world.call_with("echo", other).await).contains("digest"));
    assert_eq!(executor.started(), 0);
}

#[tokio::test]
async fn a_function_is_told_who_it_is() {
    let world = World::new().await;
    let executor = FakeExecutor::new();
    executor.program("f", |mut call| async move {
        let told: Vec<String> =
            ["FLUX_FUNCTION", "FLUX_VERSION", "FLUX_ATTEMPT", "FLUX_NODE_PRIVATE_IP", "PAYLOAD", "LEVEL"]
                .iter()
                .map(|name| call.env(name).unwrap_or("-").to_owned())
                .chain(call.request.args.clone())
                .chain([call.env("FLUX_EXECUTION_ID").unwrap_or("-").to_owned()])
                .collect();
        write!(call.stdout, "{}", told.join(" ")).expect("stdout");
        let trace = call.env("traceparent").unwrap_or("-").to_owned();
        write!(call.stderr, "{trace}").expect("stderr");
        End::Exit(0)
    });
    world.deploy("name: f\nhandler: f\nenv: { LEVEL: info }").await;
    let _agent = world.agent(&executor, World::settings()).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let asked = Invocation {
        args: vec!["a b".to_owned(), "c".to_owned()],
        traceparent: Some(trace.to_owned()),
        ..invocation("hi")
    };
    let id = asked.execution_id.expect("given");
    let reply = world.call_with("f", asked).await;
    let log = &reply.outcome.as_ref().expect("an outcome").output;
    let told = log.bytes_of(Stream::Stdout);
    assert_eq!(String::from_utf8_lossy(&told), format!("f 1 1 10.0.0.7 hi info a b c {id}"));
    // The same trace, a span of its own.
    let child = String::from_utf8_lossy(&log.bytes_of(Stream::Stderr)).into_owned();
    assert!(child.starts_with(&trace[..36]) && child != trace, "{child}");
    assert_eq!(reply.traceparent.as_deref(), Some(trace));
}
