//! What only a real server can do to an engine: die, come back without its memory or its disk, and be late.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use flux_broker::nats::{NatsBroker, NatsOptions};
use flux_broker::{
    Broker as _, BrokerError, Change, Message, Queue as _, Signals as _, StatusLog as _, Table, Tables as _,
};
use flux_protocol::{FunctionName, PoolName, invocation::Lane, limits, subject, subject::QueueName};
use flux_runtime::Tasks;
use flux_testkit::eventually;
use futures::StreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use crate::engines::Nats;

const PATIENCE: Duration = Duration::from_secs(20);

fn queue(lane: Lane) -> QueueName {
    QueueName::new(lane, PoolName::default(), FunctionName::parse("hello").expect("a valid name"))
}

fn message(id: &str) -> Message {
    Message { id: Some(id.to_owned()), body: "x".into(), headers: Vec::new() }
}

fn default_pool() -> [PoolName; 1] {
    [PoolName::default()]
}

/// The next delivery, however often a pull ends meanwhile; as agents do.
async fn next(broker: &Arc<NatsBroker>, queue: &QueueName) -> flux_broker::Delivery {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(mut pull) = broker.pull(queue, 1, Duration::from_secs(2)).await
            && let Some(Ok(delivery)) = pull.next().await
        {
            return delivery;
        }
        tokio::task::yield_now().await;
    }
    panic!("nothing came within {PATIENCE:?}");
}

/// Provisions again whenever the connection came back, as gateways do.
fn provision_on_reconnect(engine: &Nats, broker: &Arc<NatsBroker>) {
    let (broker, mut connection) = (Arc::clone(broker), broker.connection());
    connection.mark_unchanged();
    engine.tasks.spawn("provision", async move {
        while connection.changed().await.is_ok() {
            if *connection.borrow_and_update() > 0 {
                let _ = broker.provision(&default_pool()).await;
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_and_pulls_survive_a_killed_server() {
    let mut engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let agent = engine.connect("agent").await;
    provision_on_reconnect(&engine, &gateway);
    let queue = queue(Lane::Invoke);
    gateway.heat(&queue).await.expect("heat");

    // Someone publishes all the time; each publish that was acknowledged must be there in the end.
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = {
        let (gateway, queue, stop) = (Arc::clone(&gateway), queue.clone(), Arc::clone(&stop));
        async move {
            let (mut stored, mut longest) = (0_u64, Duration::ZERO);
            while !stop.load(Ordering::SeqCst) {
                let begun = Instant::now();
                gateway.publish(&queue, message(&format!("m.{stored}"))).await.expect("a publish is tried again");
                longest = longest.max(begun.elapsed());
                stored += 1;
            }
            (stored, longest)
        }
    };
    let killing = async {
        let begun = Instant::now();
        eventually(PATIENCE, "some messages", || async { gateway.depth(&queue).await.is_ok_and(|depth| depth > 50) })
            .await;
        engine.server.kill9();
        eventually(PATIENCE, "the loss to be seen", || async { *gateway.connection().borrow() == 0 }).await;
        engine.server.restart().await;
        let before = gateway.depth(&queue).await.expect("depth");
        eventually(PATIENCE, "more messages", || async {
            gateway.depth(&queue).await.is_ok_and(|depth| depth > before + 50)
        })
        .await;
        stop.store(true, Ordering::SeqCst);
        begun.elapsed()
    };
    let ((stored, longest), _) = tokio::join!(publishing, killing);
    assert!(longest < Duration::from_secs(5), "the longest publish took {longest:?}");
    assert_eq!(gateway.depth(&queue).await.expect("depth"), stored, "each is stored, and once");

    // Its consumer is on disk; agents go on without anyone's help.
    let delivery = next(&agent, &queue).await;
    assert_eq!(delivery.position.sequence, 1);
    delivery.ack.ack().await.expect("ack");
}

/// However many agents there are, the server has so many pulls to look at with each message of a queue, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enough_pulls_wait_at_a_queue() {
    let engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let queue = queue(Lane::Call);
    gateway.heat(&queue).await.expect("heat");
    let mut waiting = Vec::new();
    for _ in 0..limits::PULLS_WAITING {
        waiting.push(gateway.pull(&queue, 1, limits::PULL_EXPIRES_IDLE).await.expect("a pull"));
    }
    let agent = engine.connect("agent").await;
    let mut one_more = agent.pull(&queue, 1, limits::PULL_EXPIRES_IDLE).await.expect("a pull");
    let end = tokio::time::timeout(limits::PULL_EXPIRES_IDLE / 2, one_more.next()).await.expect("told at once");
    assert!(matches!(end, Some(Err(BrokerError::Full { .. }))), "{end:?}");

    // One of them is filled: there is room for another.
    gateway.publish(&queue, message("c.1")).await.expect("publish");
    let served = futures::future::select_all(waiting.iter_mut().map(|pull| Box::pin(pull.next()))).await.0;
    served.expect("a delivery").expect("a delivery").ack.ack().await.expect("ack");
    let mut again = agent.pull(&queue, 1, Duration::from_millis(300)).await.expect("a pull");
    assert!(again.next().await.is_none(), "it waited until its time was over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_another_release_made_is_used_as_it_is() {
    let engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let queue = queue(Lane::Invoke);
    let (stream, name, filter) = (queue.stream(), queue.consumer(), queue.subject());
    let config = serde_json::json!({
        "name": name, "durable_name": name, "filter_subject": filter, "ack_policy": "explicit", "max_waiting": 9_999,
    });
    let body = serde_json::json!({ "stream_name": stream, "config": config }).to_string();
    let client = engine.server.client().await;
    let made = client.request(format!("$JS.API.CONSUMER.CREATE.{stream}.{name}.{filter}"), body.into()).await;
    assert!(!String::from_utf8_lossy(&made.expect("an answer").payload).contains("error"));

    gateway.heat(&queue).await.expect("heat");
    gateway.publish(&queue, message("i.1")).await.expect("publish");
    next(&gateway, &queue).await.ack.ack().await.expect("ack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_memory_is_noticed() {
    let mut engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let agent = engine.connect("agent").await;
    let queue = queue(Lane::Call);
    gateway.heat(&queue).await.expect("heat");
    let mut hot = agent.watch(Table::Hot, false).await.expect("watch");
    while !matches!(next_change(&mut hot).await, Change::Put(_)) {}
    let stored = gateway.publish(&queue, message("c.1")).await.expect("publish");
    let mut waiting = agent.pull(&QueueName { lane: Lane::Invoke, ..queue.clone() }, 1, Duration::from_secs(30)).await;
    let connects = *gateway.connection().borrow();
    assert_eq!(connects, 1);

    engine.server.kill9();
    eventually(PATIENCE, "the loss to be seen", || async { *agent.connection().borrow() == 0 }).await;
    if let Ok(pull) = &mut waiting {
        let end = pull.next().await;
        assert!(matches!(end, Some(Err(_))), "an open pull ends when the connection is lost: {end:?}");
    }
    let error = agent.pull(&queue, 1, Duration::from_secs(1)).await.err();
    assert!(error.as_ref().is_some_and(BrokerError::is_retryable), "{error:?}");
    engine.server.restart().await;
    eventually(PATIENCE, "the connection to be back", || async { *gateway.connection().borrow() == 2 }).await;
    gateway.provision(&default_pool()).await.expect("provision");

    // What was in memory is lost, and that can be told.
    assert_eq!(gateway.was_delivered(&queue, &stored.position).await.expect("was delivered"), None);
    assert!(!gateway.is_stored(&queue, &stored.position).await.expect("is stored"));
    // The same id is a new message there, of another epoch; heating is not skipped.
    gateway.heat(&queue).await.expect("heat");
    let again = gateway.publish(&queue, message("c.1")).await.expect("publish");
    assert!(!again.duplicate && again.position.epoch > stored.position.epoch);
    let delivery = next(&agent, &queue).await;
    assert_eq!(delivery.position, again.position);
    delivery.ack.ack().await.expect("ack");
    // The watch goes on: the table was made anew.
    let mut synced_again = false;
    while !synced_again {
        synced_again = matches!(next_change(&mut hot).await, Change::Synced);
    }
}

async fn next_change(watch: &mut flux_broker::Watch) -> Change {
    let next = tokio::time::timeout(PATIENCE, watch.next()).await.expect("a change in time");
    next.expect("it goes on").expect("a change")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_store_is_provisioned_again() {
    let mut engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let agent = engine.connect("agent").await;
    let queue = queue(Lane::Invoke);
    gateway.heat(&queue).await.expect("heat");
    gateway.put(Table::Functions, "kept", "1".into()).await.expect("put");
    gateway.put(Table::Functions, "lost", "1".into()).await.expect("put");
    let stored = gateway.publish(&queue, message("i.1")).await.expect("publish");
    let mut functions = agent.watch(Table::Functions, true).await.expect("watch");
    let mut log = gateway.statuses(8).await.expect("statuses");
    for _ in 0..2 {
        assert!(matches!(next_change(&mut functions).await, Change::Put(_)));
    }
    assert!(matches!(next_change(&mut functions).await, Change::Synced));

    let mut status = flux_protocol::StatusMessage {
        execution_id: flux_protocol::ExecutionId::new(),
        function: queue.function.clone(),
        version: 1,
        attempt: 1,
        lane: Lane::Invoke,
        pool: PoolName::default(),
        phase: flux_protocol::Phase::Running,
        agent_id: None,
        queued_at: flux_protocol::time::now(),
        started_at: None,
        at: flux_protocol::time::now(),
        deadline: None,
        traceparent: None,
        outcome: None,
        invocation: None,
        notes: Vec::new(),
    };
    agent.publish_status("agent-1", &status).await.expect("publish");
    let before = tokio::time::timeout(PATIENCE, log.next()).await.expect("a batch").expect("it is open")[0].order;

    engine.server.wipe_store();
    engine.server.restart().await;
    eventually(PATIENCE, "the connection to be back", || async { *gateway.connection().borrow() == 2 }).await;
    gateway.provision(&default_pool()).await.expect("provision");
    gateway.put(Table::Functions, "kept", "2".into()).await.expect("put");
    // A watcher hears all of the new table, and that the other key is gone.
    let mut heard = Vec::new();
    loop {
        match next_change(&mut functions).await {
            Change::Put(entry) => heard.push(format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value))),
            Change::Deleted { key, .. } => heard.push(format!("-{key}")),
            Change::Synced => heard.push("synced".to_owned()),
        }
        if heard.contains(&"kept=2".to_owned()) && heard.contains(&"-lost".to_owned()) {
            break;
        }
    }
    assert!(!gateway.is_stored(&queue, &stored.position).await.expect("is stored"));
    gateway.heat(&queue).await.expect("heat");
    gateway.publish(&queue, message("i.1")).await.expect("publish");
    next(&agent, &queue).await.ack.ack().await.expect("ack");
    // The log's consumer is made again by whoever reads it.
    status.notes.push("after".to_owned());
    agent.publish_status("agent-1", &status).await.expect("publish");
    let batch = tokio::time::timeout(PATIENCE, log.next()).await.expect("a batch").expect("it goes on");
    assert_eq!(batch[0].status, status);
    assert!(batch[0].order > before, "what comes after the log was lost would win over what came before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_for_an_ended_pull_is_given_back_at_once() {
    let engine = Nats::start().await;
    let (gateway, agent) = (engine.gateway().await, engine.connect("agent").await);
    let queue = queue(Lane::Call);
    gateway.heat(&queue).await.expect("heat");
    // The server still has the request; its reader has gone.
    drop(agent.pull(&queue, 1, Duration::from_secs(30)).await.expect("pull"));
    agent.ping().await.expect("ping");
    gateway.publish(&queue, message("c.1")).await.expect("publish");
    let begun = Instant::now();
    let delivery = next(&gateway, &queue).await;
    assert_eq!(delivery.redeliveries, 1);
    assert_eq!(agent.late_messages(), 1);
    assert!(begun.elapsed() < Duration::from_secs(1), "that is not the ack wait: {:?}", begun.elapsed());
    delivery.ack.ack().await.expect("ack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_queue_that_lost_its_consumer_is_made_hot_again() {
    let engine = Nats::start().await;
    let (gateway, agent) = (engine.gateway().await, engine.connect("agent").await);
    let queue = queue(Lane::Call);
    gateway.heat(&queue).await.expect("heat");
    let mut rings = gateway.rings().await.expect("rings");
    // As the server does with one that nobody pulled for an hour.
    let raw = engine.server.client().await;
    let delete = format!("$JS.API.CONSUMER.DELETE.{}.{}", queue.stream(), queue.consumer());
    raw.request(delete, "".into()).await.expect("delete the consumer");
    gateway.publish(&queue, message("c.1")).await.expect("publish");
    let mut pull = agent.pull(&queue, 1, Duration::from_secs(30)).await.expect("pull");
    assert!(matches!(pull.next().await, Some(Err(BrokerError::NotFound { .. }))));
    let ring = tokio::time::timeout(PATIENCE, rings.next()).await.expect("a ring").expect("rings go on");
    gateway.heat(&ring.queue).await.expect("heat");
    let delivery = next(&agent, &queue).await;
    delivery.ack.ack().await.expect("ack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_cannot_be_read_blocks_nothing() {
    let engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let raw = engine.server.client().await;
    let mut log = gateway.statuses(8).await.expect("statuses");
    for _ in 0..3 {
        raw.request("flux.statuses.default.agent-1", "not a status\nnor this".into()).await.expect("it is stored");
    }
    let mut unread = Box::pin(log.next());
    let streams = || async { stream_messages(&raw, subject::STATUS_STREAM).await == 0 };
    tokio::select! {
        batch = &mut unread => panic!("a batch of nothing: {}", batch.map_or(0, |batch| batch.len())),
        () = eventually(PATIENCE, "the unreadable to be gone", streams) => {}
    }
}

async fn stream_messages(raw: &async_nats::Client, stream: &str) -> u64 {
    let answer = raw.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await.expect("info");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    info["state"]["messages"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_made_once_and_changed_where_they_differ() {
    let engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let raw = engine.server.client().await;
    let epoch = gateway.epoch(Lane::Invoke, &PoolName::default()).await.expect("epoch");
    let begun = Instant::now();
    gateway.provision(&default_pool()).await.expect("provision");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?} for what is there already", begun.elapsed());
    assert_eq!(gateway.epoch(Lane::Invoke, &PoolName::default()).await.expect("epoch"), epoch);

    // One that may be changed, changed by hand.
    let stream = subject::stream(Lane::Invoke, &PoolName::default());
    let answer = raw.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await.expect("info");
    let mut info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    info["config"]["max_msgs_per_subject"] = 5.into();
    let update = info["config"].to_string();
    raw.request(format!("$JS.API.STREAM.UPDATE.{stream}"), update.into()).await.expect("update");
    gateway.provision(&default_pool()).await.expect("provision");
    let queue = queue(Lane::Invoke);
    for n in 0..10 {
        gateway.publish(&queue, message(&format!("i.{n}"))).await.expect("the limit is ours again");
    }

    // One that may not: another storage.
    raw.request(format!("$JS.API.STREAM.DELETE.{}", subject::DLQ_STREAM), "".into()).await.expect("delete");
    let other = serde_json::json!({ "name": subject::DLQ_STREAM, "subjects": ["flux.dlq.*"], "storage": "memory" });
    raw.request(format!("$JS.API.STREAM.CREATE.{}", subject::DLQ_STREAM), other.to_string().into())
        .await
        .expect("create");
    let error = gateway.provision(&default_pool()).await.expect_err("it cannot be changed");
    assert!(matches!(error, BrokerError::Refused { .. }) && !error.is_retryable());
    let source = std::error::Error::source(&error).expect("a source").to_string();
    assert!(source.contains(subject::DLQ_STREAM), "it names the stream: {source}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_of_one_function_leaves_others_room() {
    let engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let raw = engine.server.client().await;
    let stream = subject::stream(Lane::Invoke, &PoolName::default());
    let answer = raw.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await.expect("info");
    let mut info: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    info["config"]["max_msgs_per_subject"] = 3.into();
    raw.request(format!("$JS.API.STREAM.UPDATE.{stream}"), info["config"].to_string().into()).await.expect("update");
    let queue = queue(Lane::Invoke);
    for n in 0..3 {
        gateway.publish(&queue, message(&format!("i.{n}"))).await.expect("publish");
    }
    let error = gateway.publish(&queue, message("i.3")).await.expect_err("full");
    assert!(matches!(error, BrokerError::Full { .. }), "{error:?}");
    assert_eq!(gateway.depth(&queue).await.expect("depth"), 3);
    let other = QueueName { function: FunctionName::parse("other").expect("a valid name"), ..queue };
    gateway.publish(&other, message("o.1")).await.expect("publish");
}

/// Whether each thread of a process is stopped; the signal alone does not say so.
fn is_stopped(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|state| state.starts_with('T'))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_server_is_an_error_in_time() {
    let engine = Nats::start().await;
    let gateway = engine.gateway().await;
    engine.server.pause();
    eventually(PATIENCE, "the server to stand still", || async { is_stopped(engine.server.pid()) }).await;
    let begun = Instant::now();
    let error = gateway.publish(&queue(Lane::Call), message("c.1")).await.expect_err("nobody answers");
    assert!(matches!(error, BrokerError::Unavailable { .. }) && error.is_retryable(), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    engine.server.resume();
    let stored = gateway.publish(&queue(Lane::Call), message("c.1")).await.expect("publish");
    // Whether the first try arrived or not: it is one.
    assert_eq!(gateway.depth(&queue(Lane::Call)).await.expect("depth"), 1);
    assert_eq!(stored.position.sequence, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_waits_for_a_server_and_not_for_ever() {
    let mut engine = Nats::start().await;
    engine.server.kill9();
    let options =
        NatsOptions { connect_within: Duration::from_millis(700), ..NatsOptions::new(engine.server.url(), "x") };
    let begun = Instant::now();
    let error = NatsBroker::connect(options, engine.tasks.clone()).await.err().expect("nobody is there");
    assert!(matches!(error, BrokerError::Unavailable { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));

    let tasks = engine.tasks.clone();
    let options = NatsOptions::new(engine.server.url(), "early");
    let (connected, ()) = tokio::join!(NatsBroker::connect(options, tasks), engine.server.restart());
    let broker = connected.expect("connect");
    broker.ping().await.expect("ping");
    broker.close().await;
    assert!(matches!(broker.ping().await, Err(BrokerError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_sends_what_is_buffered() {
    let engine = Nats::start().await;
    let gateway = engine.gateway().await;
    let other = engine.connect("other").await;
    let mut heard = other.listen("flux.control.x").await.expect("listen");
    for n in 0..1000 {
        gateway.signal("flux.control.x".to_owned(), n.to_string().into()).await.expect("signal");
    }
    gateway.close().await;
    for n in 0..1000 {
        let signal = tokio::time::timeout(PATIENCE, heard.next()).await.expect("in time").expect("it goes on");
        assert_eq!(&*signal.body, n.to_string().as_bytes());
    }
    assert!(matches!(gateway.signal("flux.control.x".to_owned(), "x".into()).await, Err(BrokerError::Closed)));
}

/// Between a client and its server: what is sent waits while it is stalled, as on a network that comes back.
pub(crate) async fn stallable(server: u16, tasks: &Tasks) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (stalled, watched) = watch::channel(false);
    let shared = tasks.clone();
    tasks.spawn("relay", async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            shared.spawn("there", pump(from_client, to_server, watched.clone()));
            shared.spawn("back", pump(from_server, to_client, watched.clone()));
        }
    });
    (port, stalled)
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut stalled: watch::Receiver<bool>) {
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        if stalled.wait_for(|stalled| !stalled).await.is_err() || to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}

/// Its agent was taken for dead meanwhile, and another one has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_was_on_its_way_for_longer_than_the_ack_wait_is_left_to_others() {
    let engine = Nats::start().await;
    let (port, stalled) = stallable(engine.server.port(), &engine.tasks).await;
    let options = NatsOptions::new(format!("nats://127.0.0.1:{port}"), "far");
    let far = NatsBroker::connect(options, engine.tasks.clone()).await.expect("connected");
    let near = engine.gateway().await;
    let queue = queue(Lane::Invoke);
    near.heat(&queue).await.expect("hot");
    // What comes in time is delivered, however long the pull has waited.
    let mut pull = far.pull(&queue, 2, Duration::from_secs(30)).await.expect("pulled");
    let waited = Instant::now();
    eventually(PATIENCE, "the pull to be old", || async { waited.elapsed() > limits::ACK_WAIT * 2 }).await;
    near.publish(&queue, message("first")).await.expect("stored");
    let first = pull.next().await.expect("a delivery").expect("in time");
    first.ack.ack().await.expect("acked");
    eventually(PATIENCE, "the ack to be there", || async { near.depth(&queue).await.expect("a count") == 0 }).await;

    stalled.send_replace(true);
    near.publish(&queue, message("second")).await.expect("stored");
    let second = next(&near, &queue).await;
    assert_eq!(second.redeliveries, 1, "it was the other's first");
    stalled.send_replace(false);
    let late = tokio::time::timeout(limits::ACK_WAIT * 2, pull.next()).await;
    assert!(!matches!(late, Ok(Some(Ok(_)))), "{late:?}");
    drop(pull);
    second.ack.ack().await.expect("acked");
    near.publish(&queue, message("third")).await.expect("stored");
    let third = next(&far, &queue).await;
    assert_eq!((third.position.sequence, third.redeliveries), (second.position.sequence + 1, 0));
}

/// The same where its pull was given up meanwhile, and another one is open when it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_delivery_of_a_pull_that_was_given_up_is_not_taken_for_that_of_the_next() {
    let engine = Nats::start().await;
    let (port, stalled) = stallable(engine.server.port(), &engine.tasks).await;
    let options = NatsOptions::new(format!("nats://127.0.0.1:{port}"), "far");
    let far = NatsBroker::connect(options, engine.tasks.clone()).await.expect("connected");
    let near = engine.gateway().await;
    let queue = queue(Lane::Invoke);
    near.heat(&queue).await.expect("hot");
    let mut pull = far.pull(&queue, 1, Duration::from_secs(1)).await.expect("pulled");
    // It is at the server, and an answer would be in time.
    far.ping().await.expect("a round trip");
    stalled.send_replace(true);
    near.publish(&queue, message("first")).await.expect("stored");
    let first = next(&near, &queue).await;
    assert_eq!(first.redeliveries, 1, "it was the other's first");
    assert!(pull.next().await.is_none_or(|ended| ended.is_err()), "nothing comes while it is stalled");
    let mut pull = far.pull(&queue, 1, Duration::from_secs(1)).await.expect("pulled");
    stalled.send_replace(false);
    let late = tokio::time::timeout(limits::ACK_WAIT * 2, pull.next()).await;
    assert!(!matches!(late, Ok(Some(Ok(_)))), "{late:?}");
    first.ack.ack().await.expect("acked");
}
