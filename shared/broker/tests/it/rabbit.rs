//! RabbitMQ: every clause on one server, since one takes seconds to start; then what only a real server can do.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flux_broker::{
    Blobs as _, Broker as _, BrokerError, Change, Message, Queue as _, Signals as _, StatusLog as _, Table,
    Tables as _,
    conformance::Subject,
    rabbit::{self, RabbitBroker, RabbitOptions},
};
use flux_pki::{Certs, Credential};
use flux_protocol::{
    AgentId, FunctionName, PoolName,
    invocation::Lane,
    subject::{self, CODE_BUCKET, OUTPUT_BUCKET, QueueName},
};
use flux_runtime::{Shutdown, Tasks, install_tls_provider};
use flux_testkit::{RabbitServer, RabbitTls, eventually};
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{engines::Rabbit, nats::stallable};

type Clause = fn(Arc<Subject>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// The server is busy with several, and each has two connections.
const AT_ONCE: usize = 4;

macro_rules! clauses {
    ($($file:ident: $clause:ident,)*) => {
        [$((
            stringify!($clause),
            (|subject: Arc<Subject>| async move { flux_broker::conformance::$file::$clause(&subject).await }.boxed())
                as Clause,
        ),)*]
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_clause_holds() {
    let engine = Rabbit::start().await;
    let clauses = flux_broker::for_each_clause!(clauses);
    let failed: Vec<_> = futures::stream::iter(clauses)
        .map(|(name, clause)| {
            let engine = &engine;
            async move {
                let subject = Arc::new(engine.subject(name).await);
                // One that panics shows its message by itself, and leaves the others alone.
                let ran = AssertUnwindSafe(clause(Arc::clone(&subject))).catch_unwind().await;
                subject.broker.close().await;
                subject.other.close().await;
                ran.is_err().then_some(name)
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(failed.is_empty(), "{failed:#?}");
}

const PATIENCE: Duration = Duration::from_secs(60);

fn queue(lane: Lane) -> QueueName {
    QueueName::new(lane, PoolName::default(), FunctionName::parse("hello").expect("a valid name"))
}

fn message(id: String) -> Message {
    Message { body: id.clone().into(), id: Some(id), headers: Vec::new() }
}

/// Everything that comes until `wanted` has come.
async fn take_all(agent: &Arc<RabbitBroker>, queue: &QueueName, wanted: &BTreeSet<String>) -> BTreeSet<String> {
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut got = BTreeSet::new();
    while !got.is_superset(wanted) {
        assert!(tokio::time::Instant::now() < until, "missing: {:?}", wanted.difference(&got).collect::<Vec<_>>());
        let Ok(mut pull) = agent.pull(queue, 16, Duration::from_secs(1)).await else { continue };
        while let Some(Ok(delivery)) = pull.next().await {
            got.insert(String::from_utf8_lossy(&delivery.body).into_owned());
            let _ = delivery.ack.ack().await;
        }
    }
    got
}

/// Publishes without end, and remembers what was acknowledged.
fn publish_on(engine: &Rabbit, gateway: &Arc<RabbitBroker>, queue: &QueueName, stop: &CancellationToken) -> Accepted {
    let accepted = Accepted::default();
    let (gateway, queue, stop, told) = (Arc::clone(gateway), queue.clone(), stop.clone(), accepted.clone());
    engine.tasks.spawn("publisher", async move {
        let mut n = 0;
        while !stop.is_cancelled() {
            n += 1;
            let id = format!("m-{n}");
            match gateway.publish(&queue, message(id.clone())).await {
                Ok(_) => {
                    told.ids.lock().insert(id);
                }
                Err(error) => {
                    assert!(matches!(error, BrokerError::Unavailable { .. }), "{error:?}");
                    told.refused.fetch_add(1, Ordering::AcqRel);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    accepted
}

#[derive(Clone, Default)]
struct Accepted {
    ids: Arc<Mutex<BTreeSet<String>>>,
    refused: Arc<AtomicUsize>,
}

impl Accepted {
    /// Until more is accepted than now.
    async fn more(&self) {
        let before = self.ids.lock().len();
        eventually(PATIENCE, "publishes to be accepted", || async { self.ids.lock().len() > before + 5 }).await;
    }
}

async fn connected(broker: &Arc<RabbitBroker>, is_up: bool) {
    let mut connection = broker.connection();
    let changed = tokio::time::timeout(PATIENCE, connection.wait_for(|number| (*number > 0) == is_up)).await;
    changed.unwrap_or_else(|_| panic!("the connection was never {is_up}")).expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_survives_a_server_that_is_killed_and_one_that_stands_still() {
    let mut engine = Rabbit::start().await;
    let (gateway, agent) = (engine.gateway("faults").await, engine.connect("faults", "agent").await);
    let (queue, call) = (queue(Lane::Invoke), queue(Lane::Call));
    gateway.heat(&queue).await.expect("heat");
    gateway.heat(&call).await.expect("heat");
    let in_memory = gateway.publish(&call, message("call".to_owned())).await.expect("publish").position;
    let mut hot = agent.watch(Table::Hot, false).await.expect("watch");
    let mut heard = agent.listen("flux.control.a").await.expect("listen");
    let stop = CancellationToken::new();
    let accepted = publish_on(&engine, &gateway, &queue, &stop);
    accepted.more().await;

    engine.server.until_it_remembers(&["faults.statuses", "faults.unrouted", "faults.invoke.hello"]).await;
    engine.server.kill9();
    connected(&gateway, false).await;
    let refused = accepted.refused.load(Ordering::Acquire);
    eventually(PATIENCE, "a refusal", || async { accepted.refused.load(Ordering::Acquire) > refused }).await;
    engine.server.restart().await;
    connected(&gateway, true).await;
    connected(&agent, true).await;
    assert!(*gateway.connection().borrow() >= 2, "it counts");
    accepted.more().await;
    let epoch = gateway.epoch(Lane::Call, &PoolName::default()).await.expect("epoch");
    assert!(epoch > in_memory.epoch, "what lay in memory is known to be gone");
    assert!(!gateway.is_stored(&call, &in_memory).await.expect("is stored"));

    engine.server.pause();
    connected(&gateway, false).await;
    engine.server.resume();
    connected(&gateway, true).await;
    connected(&agent, true).await;
    accepted.more().await;
    stop.cancel();

    let wanted = accepted.ids.lock().clone();
    let got = take_all(&agent, &queue, &wanted).await;
    assert!(got.is_superset(&wanted));
    // What was listened to and watched before goes on.
    gateway.signal("flux.control.a".to_owned(), "x".into()).await.expect("signal");
    let signal = tokio::time::timeout(PATIENCE, heard.next()).await.expect("a signal").expect("it goes on");
    assert_eq!(&*signal.body, b"x");
    gateway.put(Table::Hot, "call.default.later", "".into()).await.expect("put");
    let told = async {
        while let Some(change) = hot.next().await {
            if matches!(change, Ok(Change::Put(entry)) if entry.key == "call.default.later") {
                return;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the watch goes on");
}

/// The server gives it to another once it has closed the connection, which this process reads later than the delivery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_over_a_connection_that_stood_still_may_be_late() {
    let engine = Rabbit::start().await;
    let near = engine.gateway("late").await;
    let (port, stalled) = stallable(engine.server.port(), &engine.tasks).await;
    let url = engine.server.url().replace(&format!(":{}", engine.server.port()), &format!(":{port}"));
    let options = RabbitOptions {
        namespace: "late".to_owned(),
        connect_within: Duration::from_secs(30),
        ..RabbitOptions::new(url, "far")
    };
    let far = RabbitBroker::connect(options, engine.tasks.clone()).await.expect("connect");
    let queue = queue(Lane::Call);
    near.heat(&queue).await.expect("heat");
    let mut pull = far.pull(&queue, 2, PATIENCE).await.expect("pull");
    near.publish(&queue, message("in time".to_owned())).await.expect("publish");
    let _in_time = pull.next().await.expect("a delivery").expect("it goes on");
    stalled.send_replace(true);
    let since = tokio::time::Instant::now();
    near.publish(&queue, message("late".to_owned())).await.expect("publish");
    // Less than either side needs to close the connection. On a busy machine one may have, and what comes was delivered before.
    let over = Duration::from_millis(2500);
    eventually(PATIENCE, "it to have stood still", || async { since.elapsed() > over }).await;
    stalled.send_replace(false);
    if let Some(Ok(delivery)) = pull.next().await {
        assert!(delivery.maybe_late || delivery.redeliveries > 0, "{delivery:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_said_in_time() {
    let options = RabbitOptions {
        connect_within: Duration::from_millis(300),
        ..RabbitOptions::new(format!("amqp://guest:guest@127.0.0.1:{}", flux_testkit::free_port()), "test")
    };
    let refused = RabbitBroker::connect(options, Tasks::new(Shutdown::new())).await;
    assert!(matches!(refused, Err(BrokerError::Unavailable { .. })), "it connected to nobody");
}

/// A server that takes certificates alone and holds each to what it may do.
struct Secure {
    certs: Certs,
    server: RabbitServer,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Secure {
    async fn start() -> Self {
        install_tls_provider();
        let dir = tempfile::tempdir().expect("a directory");
        let certs = Certs::at(dir.path().join("certs"));
        certs.init(&[]).expect("made");
        for (id, pool) in [("agent-1", "default"), ("gpu-1", "gpu")] {
            let id = AgentId::parse(id).expect("an id");
            certs.mint_agent(&id, vec![PoolName::parse(pool).expect("a name")]).expect("minted");
        }
        let grants: Vec<_> = certs.grants().expect("grants").iter().cloned().collect();
        let definitions = dir.path().join("definitions.json");
        std::fs::write(&definitions, rabbit::definitions(&grants, "/", rabbit::NAMESPACE)).expect("a file");
        let [certificate, key, ca] = certs.queue_files();
        let more = format!(
            "ssl_cert_login_from = subject_alternative_name\nssl_cert_login_san_type = uri\nload_definitions = {}\n",
            definitions.display()
        );
        let server = RabbitServer::start_secure(&RabbitTls { ca, certificate, key }, &more).await;
        Self { certs, server, tasks: Tasks::new(Shutdown::new()), _dir: dir }
    }

    fn options(&self, credential: &Arc<Credential>) -> RabbitOptions {
        RabbitOptions {
            certificate: Some(Arc::new(credential.queue_client().expect("TLS"))),
            connect_within: PATIENCE,
            ..RabbitOptions::new(self.server.url(), credential.identity().to_string())
        }
    }

    async fn agent(&self, id: &str) -> Arc<RabbitBroker> {
        let id = AgentId::parse(id).expect("an id");
        let credential = self.certs.agent(&id).expect("a credential");
        let answers = Some(subject::answers_of_agent(&id));
        let options = RabbitOptions { answers, ..self.options(&credential) };
        RabbitBroker::connect(options, self.tasks.clone()).await.expect("connect")
    }
}

/// What an agent does all day, and what a stolen one may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_can_do_its_work_and_little_else() {
    let secure = Secure::start().await;
    let credential = secure.certs.gateway().expect("a gateway");
    let gateway = RabbitBroker::connect(secure.options(&credential), secure.tasks.clone()).await.expect("connect");
    let gpu = PoolName::parse("gpu").expect("a name");
    gateway.provision(&[PoolName::default(), gpu.clone()]).await.expect("provision");
    let agent = secure.agent("agent-1").await;
    let (mine, theirs) = (queue(Lane::Invoke), QueueName { pool: gpu, ..queue(Lane::Invoke) });
    for queue in [&mine, &theirs] {
        gateway.heat(queue).await.expect("heat");
        gateway.publish(queue, message("m-1".to_owned())).await.expect("publish");
    }
    gateway.put(Table::Functions, "hello", "{}".into()).await.expect("put");
    let code = bytes::Bytes::from(vec![7; 3 << 20]);
    gateway.put_blob(CODE_BUCKET, "digest", code.clone()).await.expect("put");

    let got = take_all(&agent, &mine, &BTreeSet::from(["m-1".to_owned()])).await;
    assert_eq!(got.len(), 1);
    assert!(agent.get(Table::Functions, "hello").await.expect("get").is_some());
    assert_eq!(agent.get_blob(CODE_BUCKET, "digest", 4 << 20).await.expect("get"), Some(code));
    let status = flux_broker::conformance::status(&mine.function);
    agent.publish_status("agent-1", &status).await.expect("status");
    agent.put(Table::Agents, "default.agent-1", "{}".into()).await.expect("heartbeat");
    let id = AgentId::parse("agent-1").expect("an id");
    let output = subject::output_blob(&id, status.execution_id, 1);
    agent.put_blob(OUTPUT_BUCKET, &output, vec![1; 2 << 20].into()).await.expect("output");
    assert!(gateway.get_blob(OUTPUT_BUCKET, &output, 4 << 20).await.expect("get").is_some());
    let mut asked = agent.listen(&subject::control(&id)).await.expect("listen");
    let answering = async {
        let question = asked.next().await.expect("it goes on");
        agent.signal(question.reply_to.expect("an answer is awaited"), "here".into()).await.expect("answer");
    };
    let (answer, ()) = tokio::join!(gateway.ask(subject::control(&id), "?".into(), PATIENCE), answering);
    assert_eq!(&*answer.expect("ask").expect("an answer").body, b"here");

    denied("invoke", || agent.publish(&mine, message("m-2".to_owned()))).await;
    denied("say a status as another", || agent.publish_status("agent-2", &status)).await;
    denied("make a queue hot", || agent.put(Table::Hot, "invoke.default.x", "".into())).await;
    denied("change a function", || agent.put(Table::Functions, "hello", "evil".into())).await;
    denied("be another agent", || agent.put(Table::Agents, "default.agent-2", "{}".into())).await;
    denied("store code", || agent.put_blob(CODE_BUCKET, "digest", "evil".into())).await;
    denied("store another's output", || agent.put_blob(OUTPUT_BUCKET, "agent-2.output", "evil".into())).await;
    denied("hear outputs", || async { agent.listen("flux.output.>").await.map(drop) }).await;
    denied("hear another's control", || async { agent.listen("flux.control.agent-2").await.map(drop) }).await;
    denied("read the status log", || async { agent.statuses(1).await.map(drop) }).await;
    denied("pull another pool's", || async {
        let mut pull = agent.pull(&theirs, 1, Duration::from_secs(1)).await?;
        pull.next().await.unwrap_or(Err(BrokerError::Closed))
    })
    .await;
    assert_eq!(agent.get(Table::Functions, "hello").await.expect("get").expect("it is there").value, "{}");
}

/// The server ends the channel for each of these, so that the next may find no connection for a moment.
async fn denied<T, F: Future<Output = Result<T, BrokerError>>>(what: &str, attempt: impl Fn() -> F) {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Err(BrokerError::Denied { .. }) => return,
            Err(error) if error.is_retryable() && tokio::time::Instant::now() < until => {}
            Err(other) => panic!("{what}: {other:?}"),
            Ok(_) => panic!("it could {what}"),
        }
    }
}
