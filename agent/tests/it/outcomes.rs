//! Every way in which an execution can end, and what is said of it.

use std::{sync::Arc, time::Duration};

use flux_agent::CodeError;
use flux_protocol::{ErrorKind, Invocation, Lane, OutcomeStatus, Timestamp, invocation::Payload, time};
use futures::StreamExt as _;

use crate::{
    fake::{End, FakeCode, FakeExecutor, Launch},
    world::{SOON, World, in_the_past, invocation, kind, message},
};

async fn world_with(yaml: &str) -> (World, Arc<FakeExecutor>) {
    let world = World::new().await;
    world.deploy(yaml).await;
    (world, FakeExecutor::new())
}

#[tokio::test]
async fn an_exit_code_a_signal_and_passed_memory_are_told_apart() {
    let (world, executor) = world_with("name: f\nhandler: f\nresources: { cpu: 100, memory: 64 }").await;
    executor.program("f", |mut call| async move {
        let mut what = String::new();
        std::io::Read::read_to_string(&mut call.stdin, &mut what).expect("stdin");
        match what.as_str() {
            "exit" => End::Exit(3),
            "signal" => End::Signal(11),
            _ => End::OutOfMemory,
        }
    });
    let _agent = world.agent(&executor, World::settings()).await;
    let exit = world.call("f", "exit").await.outcome.expect("an outcome").error.expect("an error");
    assert_eq!((exit.kind, exit.exit_code), (ErrorKind::Exit, Some(3)));
    let signal = world.call("f", "signal").await.outcome.expect("an outcome").error.expect("an error");
    assert_eq!((signal.kind, signal.signal), (ErrorKind::Signal, Some(11)));
    assert!(signal.message.contains("SIGSEGV"), "{}", signal.message);
    let memory = world.call("f", "memory").await.outcome.expect("an outcome").error.expect("an error");
    assert_eq!((memory.kind, memory.limit), (ErrorKind::OutOfMemory, Some(64)));
    assert!(memory.message.contains("64 MB"), "{}", memory.message);
}

#[tokio::test]
async fn a_timeout_ends_it_and_says_which() {
    let (world, executor) = world_with("name: f\nhandler: f\ntimeout: 0.2").await;
    executor.program("f", |_call| std::future::pending());
    let _agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("f", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::Timeout));
    assert!(message(&reply).contains("0.2 s"), "{}", message(&reply));
    assert_eq!(executor.running(), 0);
}

#[tokio::test]
async fn a_grace_begins_with_sigterm_and_ends_with_sigkill() {
    let (world, executor) = world_with("name: f\nhandler: f\ntimeout: 0.1\nstop_grace: 200ms").await;
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    executor.program("f", move |call| {
        let (mut signals, noted) = (call.signals.clone(), Arc::clone(&noted));
        async move {
            while signals.changed().await.is_ok() {
                *noted.lock() = signals.borrow().clone();
            }
            End::Exit(0)
        }
    });
    let _agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("f", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::Timeout));
    assert_eq!(seen.lock().first(), Some(&nix::libc::SIGTERM));
    let ran = reply.outcome.expect("an outcome").duration_ms.as_f64();
    assert!(ran >= 290.0, "SIGKILL came after {ran} ms, before the grace was over");
}

#[tokio::test]
async fn a_callers_deadline_ends_what_runs_and_keeps_what_is_late_from_starting() {
    let (world, executor) = world_with("name: f\nhandler: f").await;
    executor.program("f", |_call| std::future::pending());
    let _agent = world.agent(&executor, World::settings()).await;
    let deadline = time::now().plus(Duration::from_millis(300));
    let running = world.call_with("f", Invocation { deadline: Some(deadline), ..invocation("") }).await;
    assert_eq!(kind(&running), Some(ErrorKind::Timeout));
    assert!(message(&running).contains(&deadline.to_string()), "{}", message(&running));
    let late = world.call_with("f", Invocation { deadline: Some(in_the_past()), ..invocation("") }).await;
    assert_eq!(kind(&late), Some(ErrorKind::Expired));
    assert_eq!(executor.started(), 1);
}

#[tokio::test]
async fn an_asynchronous_invocation_that_waited_too_long_expires() {
    let (world, executor) = world_with("name: f\nhandler: f").await;
    executor.program("f", |_call| async { End::Exit(0) });
    let _agent = world.agent(&executor, World::settings()).await;
    let long_ago = Timestamp::from_millis(time::now().as_millis() - 7 * 3_600_000);
    let id = flux_protocol::ExecutionId::derived("test", 1, long_ago);
    let old = Invocation { execution_id: Some(id), ..invocation("") };
    world.publish(&World::queue(Lane::Invoke, "f"), &old).await;
    let status = world.end_of(id).await;
    assert_eq!(kind(&status), Some(ErrorKind::Expired));
    assert_eq!(executor.started(), 0);
}

#[tokio::test]
async fn what_cannot_be_executed_is_the_functions_fault_and_what_cannot_be_built_is_not() {
    let (world, executor) = world_with("name: f\nhandler: f").await;
    world.deploy("name: g\nhandler: g").await;
    executor.launch("f", |_| Launch::Refuse { step: "exec", message: "f: no such file; is it in the archive?" });
    executor.launch("g", |_| Launch::Refuse { step: "cgroup", message: "no room for a cgroup" });
    let _agent = world.agent(&executor, World::settings()).await;
    let reply = world.call("f", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::InvalidFunction));
    assert!(message(&reply).contains("is it in the archive"), "{}", message(&reply));
    assert_eq!(kind(&world.call("g", "").await), Some(ErrorKind::Sandbox));
}

#[tokio::test]
async fn code_that_is_missing_is_the_functions_fault() {
    let (world, executor) = world_with("name: f\nhandler: f").await;
    let code = FakeCode {
        folder: "/".into(),
        error: Some(|| CodeError::Unusable { message: "the archive is nowhere".to_owned() }),
    };
    let _agent = world.agent_with(executor.clone(), Arc::new(code), World::settings()).await;
    let reply = world.call("f", "").await;
    assert_eq!(kind(&reply), Some(ErrorKind::InvalidFunction));
    assert_eq!(message(&reply), "the archive is nowhere");
}

/// There once its table is, as after a wiped queue: gateways put functions back before all of their code.
struct PutBack(std::sync::atomic::AtomicU32);

#[async_trait::async_trait]
impl flux_agent::Code for PutBack {
    async fn ensure(&self, _digest: &flux_protocol::Digest) -> Result<flux_agent::CodeFolder, CodeError> {
        if self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 3 {
            return Err(CodeError::Missing { message: "the archive is nowhere".to_owned() });
        }
        Ok(flux_agent::CodeFolder { path: "/".into(), hold: Arc::new(()) })
    }

    fn cached(&self) -> u32 {
        0
    }
}

#[tokio::test]
async fn code_that_a_new_queue_does_not_have_yet_is_waited_for() {
    let (world, executor) = world_with("name: f\nhandler: f").await;
    executor.program("f", |_call| async { End::Exit(0) });
    let _agent = world.agent_with(executor.clone(), Arc::new(PutBack(0.into())), World::settings()).await;
    let reply = world.call("f", "").await;
    assert_eq!(kind(&reply), None, "{reply:?}");
    assert_eq!(executor.started(), 1);
}

#[tokio::test]
async fn only_an_asynchronous_failure_with_attempts_left_is_to_be_retried() {
    let (world, executor) = world_with("name: f\nhandler: f\nretry: { max_attempts: 2, backoff: 1s }").await;
    executor.program("f", |_call| async { End::Exit(1) });
    let _agent = world.agent(&executor, World::settings()).await;
    let queue = World::queue(Lane::Invoke, "f");
    let inbox = "_INBOX.retry.test";
    let mut replies = world.broker.listen(inbox).await.expect("a subscription");
    let first = Invocation { reply_to: Some(inbox.to_owned()), ..invocation("x") };
    world.publish(&queue, &first).await;
    let status = world.end_of(first.execution_id.expect("given")).await;
    let outcome = status.outcome.as_ref().expect("an outcome");
    assert!(outcome.will_retry && !status.is_terminal());
    let carried = status.invocation.as_ref().expect("what the next attempt is made of");
    assert_eq!((carried.execution_id, &carried.payload), (first.execution_id, &Payload::Inline("x".into())));
    // Its last failure is terminal, carries its invocation for the dead letter, and is what the producer hears.
    let last = Invocation { attempt: 2, failures: 1, ..first.clone() };
    world.publish(&queue, &last).await;
    let reply = tokio::time::timeout(SOON, replies.next()).await.expect("in time").expect("a reply");
    let status: flux_protocol::StatusMessage = serde_json::from_slice(&reply.body).expect("a status");
    assert!(status.is_terminal() && status.invocation.is_some());
    assert_eq!(status.attempt, 2);
    // A call is its caller's to repeat.
    let call = world.call("f", "").await;
    assert!(call.is_terminal() && call.invocation.is_none());
}

#[tokio::test]
async fn replies_go_only_where_producers_may_point_them() {
    let (world, executor) = world_with("name: f\nhandler: f").await;
    executor.program("f", |_call| async { End::Exit(0) });
    let _agent = world.agent(&executor, World::settings()).await;
    let mut stolen = world.broker.listen("flux.control.victim").await.expect("a subscription");
    let aimed = Invocation { reply_to: Some("flux.control.victim".to_owned()), ..invocation("") };
    world.publish(&World::queue(Lane::Invoke, "f"), &aimed).await;
    let status = world.end_of(aimed.execution_id.expect("given")).await;
    assert_eq!(status.outcome.as_ref().expect("an outcome").status, OutcomeStatus::Success);
    assert!(status.notes.iter().any(|note| note.contains("Flux-Reply-To")), "{:?}", status.notes);
    // The reply leaves before the status: had it gone there it would have been heard by now.
    assert!(tokio::time::timeout(Duration::from_millis(50), stolen.next()).await.is_err());
}

#[tokio::test]
async fn running_is_said_only_of_what_lasts() {
    let (world, executor) = world_with("name: f\nhandler: f").await;
    executor.program("f", |mut call| async move {
        let mut what = String::new();
        std::io::Read::read_to_string(&mut call.stdin, &mut what).expect("stdin");
        if what == "long" {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        End::Exit(0)
    });
    let agent = world.agent(&executor, World::settings()).await;
    let (short, long) = (world.invoke("f", "short").await, world.invoke("f", "long").await);
    let running = world.until_running(long).await;
    assert_eq!(running.agent_id.as_ref(), Some(agent.agent.id()));
    assert!(running.outcome.is_none() && running.started_at.is_some());
    world.end_of(short).await;
    world.end_of(long).await;
    assert_eq!(world.statuses_of(short).len(), 1);
    assert_eq!(world.statuses_of(long).len(), 2);
}
