//! A broker with what gateways make in it, agents on it, and what they said.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use flux_agent::{Agent, AgentParts, Code, Executor, Runtimes, Tiers};
use flux_broker::{
    Broker, Capabilities, Message, Stored, Table,
    memory::{MemoryBroker, MemoryLimits},
    nats::{NatsBroker, NatsOptions},
};
use flux_protocol::{
    AgentId, Digest, ExecutionId, FunctionName, FunctionVersion, Invocation, Lane, Phase, PoolName, StatusMessage,
    Timestamp, function, invocation::Payload, subject::QueueName, time,
};
use flux_runtime::{Shutdown, Tasks, settings::AgentSettings};
use flux_testkit::{NatsServer, eventually_some};
use parking_lot::Mutex;

use crate::fake::{FakeCode, FakeExecutor};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Everything but the agents.
pub(crate) struct World {
    pub(crate) nats: NatsServer,
    /// In its place.
    memory: Option<Arc<dyn Broker>>,
    pub(crate) broker: Arc<dyn Broker>,
    statuses: Arc<Mutex<Vec<StatusMessage>>>,
    pub(crate) tasks: Tasks,
}

/// An agent with tasks of its own, so that ending one ends nothing else.
pub(crate) struct TestAgent {
    pub(crate) agent: Agent,
    pub(crate) tasks: Tasks,
    pub(crate) broker: Arc<dyn Broker>,
    _work_dir: tempfile::TempDir,
}

impl TestAgent {
    /// As `kill -9` does: nothing is said, acked or given back.
    pub(crate) async fn vanish(self) {
        self.broker.close().await;
        self.tasks.shutdown().start_kill();
        drop(self.agent);
    }
}

fn log() {
    static LOG: OnceLock<()> = OnceLock::new();
    LOG.get_or_init(|| {
        if let Some(level) = std::env::var_os("FLUX_TEST_LOG") {
            flux_runtime::telemetry::init(flux_runtime::telemetry::LogFormat::Pretty, &level.to_string_lossy())
                .expect("a level");
        }
    });
}

impl World {
    pub(crate) async fn new() -> Self {
        log();
        let nats = NatsServer::start().await;
        let tasks = Tasks::new(Shutdown::new());
        let broker: Arc<dyn Broker> =
            NatsBroker::connect(NatsOptions::new(nats.url(), "test"), tasks.clone()).await.expect("a connection");
        Self::over(nats, broker, None, tasks).await
    }

    /// Over an engine that takes no message back, as RabbitMQ's.
    pub(crate) async fn without_take_back() -> Self {
        let less = Capabilities { take_back: false, ..Capabilities::all() };
        Self::in_memory(MemoryBroker::with_capabilities(MemoryLimits::default(), less)).await
    }

    pub(crate) async fn in_memory(broker: MemoryBroker) -> Self {
        log();
        let broker: Arc<dyn Broker> = Arc::new(broker);
        let nats = NatsServer::start().await;
        Self::over(nats, Arc::clone(&broker), Some(broker), Tasks::new(Shutdown::new())).await
    }

    async fn over(nats: NatsServer, broker: Arc<dyn Broker>, memory: Option<Arc<dyn Broker>>, tasks: Tasks) -> Self {
        broker.provision(&[PoolName::default()]).await.expect("streams");
        let statuses: Arc<Mutex<Vec<StatusMessage>>> = Arc::default();
        let mut batches = broker.statuses(256).await.expect("statuses");
        let heard = Arc::clone(&statuses);
        tasks.spawn("recorder", async move {
            while let Some(batch) = batches.next().await {
                for delivery in batch {
                    heard.lock().push(delivery.status);
                    let _ = delivery.ack.ack().await;
                }
            }
        });
        Self { nats, memory, broker, statuses, tasks }
    }

    pub(crate) fn settings() -> AgentSettings {
        AgentSettings { tasks: Some(8), cpu: Some(8_000), memory: Some(4_000), ..AgentSettings::default() }
    }

    /// An agent whose functions are closures.
    pub(crate) async fn agent(&self, executor: &Arc<FakeExecutor>, settings: AgentSettings) -> TestAgent {
        let code = FakeCode { folder: PathBuf::from("/"), error: None };
        self.agent_with(executor.clone(), Arc::new(code), settings).await
    }

    pub(crate) async fn agent_with(
        &self,
        executor: Arc<dyn Executor>,
        code: Arc<dyn Code>,
        settings: AgentSettings,
    ) -> TestAgent {
        self.agent_with_runtimes(executor, code, settings, Runtimes::default()).await
    }

    pub(crate) async fn agent_with_runtimes(
        &self,
        executor: Arc<dyn Executor>,
        code: Arc<dyn Code>,
        settings: AgentSettings,
        runtimes: Runtimes,
    ) -> TestAgent {
        self.agent_with_tiers(executor, code, settings, runtimes, |_| Tiers::default()).await
    }

    pub(crate) async fn agent_with_tiers(
        &self,
        executor: Arc<dyn Executor>,
        code: Arc<dyn Code>,
        settings: AgentSettings,
        runtimes: Runtimes,
        tiers: impl FnOnce(&Tasks) -> Tiers,
    ) -> TestAgent {
        let tasks = Tasks::new(Shutdown::new());
        let options = NatsOptions::new(self.nats.url(), "test agent");
        let broker: Arc<dyn Broker> = match &self.memory {
            Some(memory) => Arc::clone(memory),
            None => NatsBroker::connect(options, tasks.clone()).await.expect("a connection"),
        };
        let work_dir = tempfile::tempdir().expect("a directory");
        let parts = AgentParts {
            broker: Arc::clone(&broker),
            settings,
            credential: None,
            work_dir: work_dir.path().to_owned(),
            private_ip: Some("10.0.0.7".to_owned()),
            public_ip: None,
            runtimes,
            tiers: tiers(&tasks),
            tasks: tasks.clone(),
        };
        let agent = Agent::start_with(parts, executor, code).expect("an agent");
        TestAgent { agent, tasks, broker, _work_dir: work_dir }
    }

    pub(crate) async fn deploy(&self, yaml: &str) -> FunctionName {
        self.deploy_version(yaml, 1).await
    }

    /// As a gateway does: the version by itself, then as the current one.
    pub(crate) async fn deploy_version(&self, yaml: &str, version: u32) -> FunctionName {
        self.deploy_code(yaml, version, Digest::of(b"code")).await
    }

    pub(crate) async fn deploy_code(&self, yaml: &str, version: u32, digest: Digest) -> FunctionName {
        let spec = function::parse_yaml(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
        let name = spec.name.clone();
        self.put_version(&FunctionVersion { version, digest: Some(digest), spec, created_at: time::now() }).await;
        name
    }

    pub(crate) async fn put_version(&self, version: &FunctionVersion) {
        let value = Bytes::from(serde_json::to_vec(version).expect("JSON"));
        let key = format!("{}.{}", version.name(), version.version);
        self.broker.put(Table::Versions, &key, value.clone()).await.expect("a version");
        self.broker.put(Table::Functions, version.name().as_str(), value).await.expect("a function");
    }

    pub(crate) fn queue(lane: Lane, function: &str) -> QueueName {
        QueueName::new(lane, PoolName::default(), FunctionName::parse(function).expect("a name"))
    }

    pub(crate) async fn publish(&self, queue: &QueueName, invocation: &Invocation) -> Stored {
        self.broker.heat(queue).await.expect("hot");
        let message = Message { headers: invocation.headers(), body: invocation.body(), id: invocation.message_id() };
        self.broker.publish(queue, message).await.expect("stored")
    }

    /// Publishes an asynchronous invocation.
    pub(crate) async fn invoke(&self, function: &str, payload: impl Into<Bytes>) -> ExecutionId {
        let invocation = invocation(payload);
        self.publish(&Self::queue(Lane::Invoke, function), &invocation).await;
        invocation.execution_id.expect("given")
    }

    /// Calls as a gateway does, and waits for the reply.
    pub(crate) async fn call(&self, function: &str, payload: impl Into<Bytes>) -> StatusMessage {
        self.call_with(function, invocation(payload)).await
    }

    pub(crate) async fn call_with(&self, function: &str, mut invocation: Invocation) -> StatusMessage {
        use futures::StreamExt as _;
        let gateway = flux_protocol::GatewayId::random();
        let reply_to = flux_protocol::subject::reply(&gateway);
        let mut replies = self.broker.listen(&reply_to).await.expect("a subscription");
        invocation.reply_to = Some(reply_to);
        self.publish(&Self::queue(Lane::Call, function), &invocation).await;
        loop {
            let reply = tokio::time::timeout(SOON, replies.next()).await.expect("a reply in time").expect("a reply");
            let status: StatusMessage = serde_json::from_slice(&reply.body).expect("a status");
            if status.phase == Phase::Ended {
                return status;
            }
        }
    }

    pub(crate) fn statuses_of(&self, id: ExecutionId) -> Vec<StatusMessage> {
        self.statuses.lock().iter().filter(|status| status.execution_id == id).cloned().collect()
    }

    pub(crate) fn ended(&self) -> Vec<StatusMessage> {
        self.statuses.lock().iter().filter(|status| status.phase == Phase::Ended).cloned().collect()
    }

    /// The first recorded end of an execution.
    pub(crate) async fn end_of(&self, id: ExecutionId) -> StatusMessage {
        eventually_some(SOON, format!("the end of {id}"), || {
            let ended = self.statuses_of(id).into_iter().find(|status| status.phase == Phase::Ended);
            std::future::ready(ended)
        })
        .await
    }

    pub(crate) async fn until_running(&self, id: ExecutionId) -> StatusMessage {
        eventually_some(SOON, format!("{id} to run"), || {
            let running = self.statuses_of(id).into_iter().find(|status| status.phase == Phase::Running);
            std::future::ready(running)
        })
        .await
    }

    /// Nothing is stored or being worked on any more.
    pub(crate) async fn until_empty(&self, lane: Lane, function: &str) {
        let queue = Self::queue(lane, function);
        flux_testkit::eventually(SOON, format!("{function} to be empty"), || async {
            self.broker.depth(&queue).await.is_ok_and(|depth| depth == 0)
        })
        .await;
    }

    /// What an agent answers on its control subject.
    pub(crate) async fn ask(
        &self,
        agent: &AgentId,
        request: &flux_protocol::agent::ControlRequest,
    ) -> flux_protocol::agent::ControlReply {
        let body = bytes::Bytes::from(serde_json::to_vec(request).expect("JSON"));
        let subject = flux_protocol::subject::control(agent);
        // An agent that just started may not hear yet.
        let answer = eventually_some(SOON, "an answer", || async {
            self.broker.ask(subject.clone(), body.clone(), SOON).await.expect("asked")
        })
        .await;
        serde_json::from_slice(&answer.body).expect("a reply")
    }

    pub(crate) async fn cancel(&self, id: ExecutionId, timeout: Duration) -> Option<flux_protocol::agent::CancelReply> {
        let body = br#"{"reason":"cancelled by the test"}"#.to_vec();
        let answer = self.broker.ask(flux_protocol::subject::cancel(id), body.into(), timeout).await.expect("asked");
        answer.map(|answer| serde_json::from_slice(&answer.body).expect("a reply"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.shutdown().start_kill();
    }
}

pub(crate) fn invocation(payload: impl Into<Bytes>) -> Invocation {
    Invocation {
        execution_id: Some(ExecutionId::new()),
        attempt: 1,
        version: Some(1),
        payload: Payload::Inline(payload.into()),
        ..Invocation::default()
    }
}

pub(crate) fn in_the_past() -> Timestamp {
    Timestamp::from_micros(time::now().as_micros() - 1_000)
}

pub(crate) fn text(status: &StatusMessage) -> String {
    status.outcome.as_ref().expect("an outcome").output.to_text()
}

pub(crate) fn kind(status: &StatusMessage) -> Option<flux_protocol::ErrorKind> {
    status.outcome.as_ref().expect("an outcome").error.as_ref().map(|error| error.kind)
}

pub(crate) fn message(status: &StatusMessage) -> String {
    status.outcome.as_ref().expect("an outcome").error.as_ref().map_or_else(String::new, |error| error.message.clone())
}
