//! A server that takes certificates alone, with identities of its own, and that everything legitimate works on it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions};
use flux_broker::{
    Blobs as _, Broker as _, BrokerError, Change, Message, Queue as _, Signals as _, StatusLog as _, Table,
    Tables as _,
    nats::{NatsAuth, NatsBroker, NatsOptions, accounts, server_tls},
};
use flux_pki::{Certs, Credential};
use flux_protocol::{
    AgentId, ExecutionId, FunctionGlob, FunctionName, Lane, PoolName,
    identity::Identity,
    limits,
    subject::{self, QueueName},
};
use flux_runtime::{Shutdown, Tasks, install_tls_provider};
use flux_testkit::{NatsServer, eventually};
use futures::StreamExt as _;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn agent(id: &str) -> AgentId {
    AgentId::parse(id).expect("an id")
}

pub(crate) fn pool(name: &str) -> PoolName {
    PoolName::parse(name).expect("a name")
}

pub(crate) fn queue(lane: Lane, pool: PoolName, function: &str) -> QueueName {
    QueueName::new(lane, pool, FunctionName::parse(function).expect("a name"))
}

pub(crate) fn message(id: &str) -> Message {
    Message { id: Some(id.to_owned()), body: "payload".into(), headers: Vec::new() }
}

pub(crate) struct Secure {
    pub(crate) certs: Certs,
    pub(crate) server: NatsServer,
    pub(crate) tasks: Tasks,
    _dir: tempfile::TempDir,
}

/// Pools, agents, a producer: `agent-1` and `agent-2` are of the default pool, `gpu-1` of another.
pub(crate) async fn secure() -> Secure {
    install_tls_provider();
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::at(dir.path().join("certs"));
    certs.init(&[]).expect("made");
    for (id, of) in [("agent-1", PoolName::default()), ("agent-2", PoolName::default()), ("gpu-1", pool("gpu"))] {
        certs.mint_agent(&agent(id), vec![of]).expect("minted");
    }
    let glob = FunctionGlob::parse("resize*").expect("a glob");
    certs.mint_producer(&agent("shop"), vec![glob]).expect("minted");
    let tls = certs.gateway().expect("a gateway").queue_client().expect("TLS");
    let server = NatsServer::start_secure(&configuration(&certs), tls).await;
    Secure { certs, server, tasks: Tasks::new(Shutdown::new()), _dir: dir }
}

pub(crate) fn pools() -> [PoolName; 2] {
    [PoolName::default(), pool("gpu")]
}

fn configuration(certs: &Certs) -> String {
    let functions = [(FunctionName::parse("resize-big").expect("a name"), PoolName::default())];
    let grants: Vec<_> = certs.grants().expect("grants").iter().cloned().collect();
    format!("{}{}", server_tls(&certs.queue_files()), accounts(grants, &pools(), &functions))
}

impl Secure {
    /// What the keeper in a gateway does.
    pub(crate) async fn reload(&self) {
        self.server.reload(&configuration(&self.certs));
        // What a new account imports works from the second time on that the server reads of it.
        let times = || self.server.log().matches("Reloaded server configuration").count();
        let before = times();
        eventually(PATIENCE, "the server to read it", || async { times() > before }).await;
        self.server.reload(&configuration(&self.certs));
    }

    pub(crate) fn options(&self, credential: &Arc<Credential>) -> NatsOptions {
        let tls = Arc::new(credential.queue_client().expect("TLS"));
        let answers = (credential.identity() == Identity::Gateway).then(|| subject::answers_of_gateway(rand::random()));
        let own_account = answers.is_none();
        let answers = answers.or_else(|| credential.identity().agent().map(subject::answers_of_agent));
        NatsOptions {
            auth: NatsAuth::Certificate(tls),
            answers,
            own_account,
            ..NatsOptions::new(self.server.url(), "test")
        }
    }

    pub(crate) async fn connect(&self, credential: &Arc<Credential>) -> Arc<NatsBroker> {
        NatsBroker::connect(self.options(credential), self.tasks.clone()).await.expect("connected")
    }

    pub(crate) async fn gateway(&self) -> Arc<NatsBroker> {
        let broker = self.connect(&self.certs.gateway().expect("a gateway")).await;
        broker.provision(&pools()).await.expect("provisioned");
        broker
    }

    pub(crate) async fn agent(&self, id: &str) -> Arc<NatsBroker> {
        self.connect(&self.certs.agent(&agent(id)).expect("an agent")).await
    }

    /// A client of NATS' own, which says what it likes.
    pub(crate) async fn raw(&self, credential: &Arc<Credential>) -> Client {
        raw(&self.server.url(), credential).await.expect("connected")
    }
}

pub(crate) async fn raw(url: &str, credential: &Arc<Credential>) -> Result<Client, async_nats::ConnectError> {
    let tls = credential.queue_client().expect("TLS");
    ConnectOptions::new().tls_client_config(tls).require_tls(true).connect(url).await
}

async fn next_change(changes: &mut flux_broker::Watch) -> Change {
    tokio::time::timeout(PATIENCE, changes.next()).await.expect("in time").expect("it goes on").expect("a change")
}

pub(crate) async fn next(broker: &Arc<NatsBroker>, queue: &QueueName) -> flux_broker::Delivery {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_does_all_of_its_work_from_an_account_of_its_own() {
    let secure = secure().await;
    let gateway = secure.gateway().await;
    let worker = secure.agent("agent-1").await;
    let default = PoolName::default();

    // Functions: those that are there, those that come, and one by its name.
    gateway.put(Table::Functions, "hello", "1".into()).await.expect("put");
    gateway.put(Table::Versions, "hello.1", "1".into()).await.expect("put");
    let mut functions = worker.watch(Table::Functions, true).await.expect("watch");
    assert!(matches!(next_change(&mut functions).await, Change::Put(entry) if &*entry.value == b"1"));
    assert!(matches!(next_change(&mut functions).await, Change::Synced));
    let revision = gateway.put(Table::Functions, "hello", "2".into()).await.expect("put");
    let changed = next_change(&mut functions).await;
    assert!(
        matches!(&changed, Change::Put(entry) if entry.revision == revision && &*entry.value == b"2"),
        "{changed:?}"
    );
    gateway.delete(Table::Functions, "hello").await.expect("deleted");
    assert!(matches!(next_change(&mut functions).await, Change::Deleted { key, .. } if key == "hello"));
    assert!(worker.get(Table::Versions, "hello.1").await.expect("get").is_some());
    assert!(worker.get(Table::Versions, "hello.2").await.expect("get").is_none());
    gateway.put(Table::Cancelled, "exc-1", "why".into()).await.expect("put");
    assert!(worker.get(Table::Cancelled, "exc-1").await.expect("get").is_some());

    // Queues: hot ones are heard of, pulled, kept and acked.
    let mut hot = worker.watch(Table::Hot, false).await.expect("watch");
    assert!(matches!(next_change(&mut hot).await, Change::Synced));
    for lane in Lane::ALL {
        let queue = queue(lane, default.clone(), "hello");
        gateway.heat(&queue).await.expect("heat");
        let heard = next_change(&mut hot).await;
        assert!(matches!(&heard, Change::Put(entry) if entry.key == queue.key()), "{heard:?}");
        // Several in one pull, and one that waits for what comes.
        for n in 0..20 {
            gateway.publish(&queue, message(&format!("m.{n}"))).await.expect("publish");
        }
        let mut pull = worker.pull(&queue, 20, Duration::from_secs(10)).await.expect("pull");
        for _ in 0..20 {
            let delivery =
                tokio::time::timeout(PATIENCE, pull.next()).await.expect("in time").expect("one").expect("one");
            delivery.ack.progress().await.expect("progress");
            delivery.ack.ack().await.expect("ack");
        }
        let mut pull = worker.pull(&queue, 1, Duration::from_secs(20)).await.expect("pull");
        worker.ping().await.expect("the pull is at the server");
        gateway.publish(&queue, message("m.late")).await.expect("publish");
        let late = tokio::time::timeout(PATIENCE, pull.next()).await.expect("in time").expect("one").expect("one");
        late.ack.ack().await.expect("ack");
        eventually(PATIENCE, "the acks to be heard", || async {
            gateway.depth(&queue).await.is_ok_and(|depth| depth == 0)
        })
        .await;
        gateway.cool(&queue).await.expect("cool");
        assert!(matches!(next_change(&mut hot).await, Change::Deleted { .. }));
    }

    // What it says of itself, and of an execution.
    let mut beats = gateway.listen(subject::heartbeats()).await.expect("listen");
    worker.signal(subject::heartbeat(&PoolName::default(), &agent("agent-1")), "beat".into()).await.expect("signal");
    assert!(tokio::time::timeout(PATIENCE, beats.next()).await.expect("in time").is_some());
    worker.put(Table::Agents, "default.agent-1", "beat".into()).await.expect("heartbeat");
    assert!(gateway.get(Table::Agents, "default.agent-1").await.expect("get").is_some());
    worker.delete(Table::Agents, "default.agent-1").await.expect("it takes itself out");
    let id = ExecutionId::new();
    let mut outputs = gateway.listen(&subject::outputs_of(id)).await.expect("listen");
    worker.signal(subject::output(&agent("agent-1"), id), "chunk".into()).await.expect("signal");
    assert!(tokio::time::timeout(PATIENCE, outputs.next()).await.expect("in time").is_some());

    // What it is asked and told, all agents or it alone.
    for heard_on in [subject::control(&agent("agent-1")), subject::control_all().to_owned(), subject::cancel(id)] {
        let mut asked = worker.listen(&heard_on.replace(&id.to_string(), "*")).await.expect("listen");
        let answering = async {
            let question = tokio::time::timeout(PATIENCE, asked.next()).await.expect("in time").expect("a question");
            worker.signal(question.reply_to.expect("it is asked"), "answer".into()).await.expect("signal");
        };
        let (answer, ()) = tokio::join!(gateway.ask(heard_on, "?".into(), PATIENCE), answering);
        assert_eq!(answer.expect("asked").map(|answer| answer.body), Some("answer".into()));
    }
    // And what it asks.
    let mut questions = gateway.listen_in_group(&subject::questions("renewal"), "g").await.expect("listen");
    let answering = async {
        let question = tokio::time::timeout(PATIENCE, questions.next()).await.expect("in time").expect("a question");
        assert_eq!(subject::sender(&question.subject), Some("agent-1"));
        gateway.signal(question.reply_to.expect("it is asked"), "yes".into()).await.expect("signal");
    };
    let own = subject::question(&agent("agent-1"), subject::RENEWAL);
    let (answer, ()) = tokio::join!(worker.ask(own, "?".into(), PATIENCE), answering);
    assert_eq!(answer.expect("asked").map(|answer| answer.body), Some("yes".into()));

    // And others of its pool ask it, and answer it.
    let other = secure.agent("agent-2").await;
    let mut asked = other.listen(&subject::holders_of(&default)).await.expect("listen");
    let answering = async {
        let question = tokio::time::timeout(PATIENCE, asked.next()).await.expect("in time").expect("a question");
        assert_eq!(subject::agent_of_holders(&question.subject), Some(agent("agent-1")));
        other.signal(question.reply_to.expect("it is asked"), "no".into()).await.expect("signal");
    };
    let own = subject::holders(&default, &agent("agent-1"));
    let (answer, ()) = tokio::join!(worker.ask(own, "?".into(), PATIENCE), answering);
    assert_eq!(answer.expect("asked").map(|answer| answer.body), Some("no".into()));

    // Code, payloads, outputs, of several chunks each.
    let content = bytes::Bytes::from(vec![7; 3 * limits::MIB]);
    for bucket in [subject::CODE_BUCKET, subject::BLOB_BUCKET] {
        gateway.put_blob(bucket, "content", content.clone()).await.expect("put");
        assert_eq!(worker.get_blob(bucket, "content", 1 << 23).await.expect("get"), Some(content.clone()), "{bucket}");
    }
    let key = subject::output_blob(&agent("agent-1"), id, 1);
    worker.put_blob(subject::OUTPUT_BUCKET, &key, content.clone()).await.expect("put");
    assert_eq!(gateway.get_blob(subject::OUTPUT_BUCKET, &key, 1 << 23).await.expect("get"), Some(content));
    gateway.delete_blob(subject::OUTPUT_BUCKET, &key).await.expect("delete");
    assert!(!gateway.has_blob(subject::OUTPUT_BUCKET, &key).await.expect("asked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_go_through_accounts_and_their_senders_are_known() {
    let secure = secure().await;
    let gateway = secure.gateway().await;
    let worker = secure.agent("agent-1").await;
    let mut batches = gateway.statuses(10).await.expect("statuses");
    let status = flux_broker::conformance::status(&FunctionName::parse("hello").expect("a name"));
    worker.publish_status("agent-1", &status).await.expect("stored");
    let batch = tokio::time::timeout(PATIENCE, batches.next()).await.expect("in time").expect("a batch");
    assert_eq!(batch[0].sender, "agent-1");
    let error = worker.publish_status("agent-2", &status).await.expect_err("another's");
    assert!(matches!(error, BrokerError::Denied { .. } | BrokerError::Unavailable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_invokes_what_its_globs_match_and_hears_the_outcome() {
    let secure = secure().await;
    let gateway = secure.gateway().await;
    let shop = secure.raw(&secure.certs.producer(&agent("shop")).expect("a producer")).await;
    let mut outcomes = shop.subscribe("flux.reply.producer-shop.*").await.expect("subscribed");
    let acked = shop.request("flux.invoke.resize-big", "{}".into()).await.expect("stored");
    assert!(acked.payload.windows(5).any(|part| part == b"\"seq\""), "{acked:?}");
    gateway.signal("flux.reply.producer-shop.1".to_owned(), "done".into()).await.expect("signal");
    let mut heard = async || {
        let outcome = tokio::time::timeout(PATIENCE, outcomes.next()).await.expect("in time").expect("an outcome");
        String::from_utf8_lossy(&outcome.payload).into_owned()
    };
    assert_eq!(heard().await, "done");
    // From those who run its functions too, each once, and not from those of other pools.
    let stranger = secure.agent("gpu-1").await;
    stranger.signal("flux.reply.producer-shop.2".to_owned(), "a stranger's".into()).await.expect("signal");
    stranger.ping().await.expect("the server has it");
    for id in ["agent-1", "agent-2"] {
        let worker = secure.agent(id).await;
        for number in 0..2 {
            worker
                .signal("flux.reply.producer-shop.3".to_owned(), format!("{id} {number}").into())
                .await
                .expect("sent");
        }
        for number in 0..2 {
            assert_eq!(heard().await, format!("{id} {number}"));
        }
    }
    for subject in
        ["flux.invoke.hello", "flux.call.resize-big", "flux.invoke-gpu.resize-big", "$KV.flux_functions.hello"]
    {
        shop.request(subject, "{}".into()).await.expect_err(subject);
    }
    let depth = gateway.depths(Lane::Invoke, &PoolName::default()).await.expect("depths");
    assert_eq!(depth.iter().map(|depth| depth.messages).sum::<u64>(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_is_let_in_and_who_is_revoked_is_cut_off_while_others_pull_on() {
    let secure = secure().await;
    let gateway = secure.gateway().await;
    let queue = queue(Lane::Invoke, PoolName::default(), "hello");
    gateway.heat(&queue).await.expect("heat");
    let (stays, goes) = (secure.agent("agent-1").await, secure.agent("agent-2").await);
    let mut open = stays.pull(&queue, 1, Duration::from_secs(30)).await.expect("pull");
    stays.ping().await.expect("the pull is at the server");

    secure.certs.mint_agent(&agent("new-1"), vec![PoolName::default()]).expect("minted");
    let old = secure.certs.agent(&agent("agent-2")).expect("an agent");
    secure.certs.revoke_agent(&agent("agent-2")).expect("revoked");
    let begun = Instant::now();
    secure.reload().await;
    let mut connection = goes.connection();
    tokio::time::timeout(PATIENCE, connection.wait_for(|connects| *connects == 0))
        .await
        .expect("cut off")
        .expect("told");
    eprintln!("cut off after {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    let newcomer = secure.agent("new-1").await;
    assert!(newcomer.get(Table::Functions, "nothing").await.expect("it is let in").is_none());
    // A pull that was open lives on, and so does the connection.
    gateway.publish(&queue, message("m.1")).await.expect("publish");
    let delivery = tokio::time::timeout(PATIENCE, open.next()).await.expect("in time").expect("one").expect("one");
    delivery.ack.ack().await.expect("ack");
    assert_eq!(*stays.connection().borrow(), 1);

    // Let in again under the same name, what it had before opens nothing.
    secure.certs.mint_agent(&agent("agent-2"), vec![PoolName::default()]).expect("minted");
    secure.reload().await;
    let again = secure.agent("agent-2").await;
    assert!(again.get(Table::Functions, "nothing").await.expect("it is let in").is_none());
    raw(&secure.server.url(), &old).await.expect_err("its old certificate is shut out");
}
