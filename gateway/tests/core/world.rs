//! Gateways, agents, and what they share.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_artifacts::{BlobArtifacts, Filesystem, Tiered};
use flux_broker::{
    Broker, Capabilities,
    memory::{MemoryBroker, MemoryLimits},
};
use flux_gateway::core::{Gateway, GatewayParts, InvokeRequest};
use flux_pki::Certs;
use flux_protocol::{ExecutionId, ExecutionRecord, FunctionName, PoolName, function::parse_yaml};
use flux_runtime::{
    Shutdown, Tasks,
    settings::{Durability, GatewaySettings},
};
use flux_store::{SharedStore, Tuning};
use flux_testkit::{File, archive};
use tokio::sync::Notify;

use crate::fake_agent::{Act, FakeAgent, Job};

pub(crate) struct World {
    pub(crate) broker: Arc<MemoryBroker>,
    pub(crate) store: SharedStore,
    pub(crate) settings: GatewaySettings,
    /// Beside the default one.
    pub(crate) pools: Vec<PoolName>,
    /// Agents have certificates.
    pub(crate) certs: Option<Certs>,
    shutdown: Arc<Shutdown>,
    pub(crate) artifacts: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_limits(MemoryLimits::default()).await
    }

    pub(crate) async fn with_limits(limits: MemoryLimits) -> Self {
        Self::over(MemoryBroker::new(limits)).await
    }

    /// Over an engine that keeps no time and tells no places, as RabbitMQ's.
    #[allow(dead_code)] // by the HTTP tests
    pub(crate) async fn with_less() -> Self {
        let less = Capabilities {
            delayed_publish: false,
            positions: false,
            take_back: false,
            ordered_statuses: false,
            ..Capabilities::all()
        };
        Self::over(MemoryBroker::with_capabilities(MemoryLimits::default(), less)).await
    }

    async fn over(broker: MemoryBroker) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter("flux_gateway=debug").with_test_writer().try_init();
        let artifacts = tempfile::tempdir().unwrap();
        Self {
            broker: Arc::new(broker),
            store: flux_store::open("sqlite::memory:", &Tuning::default()).await.unwrap(),
            settings: GatewaySettings {
                secrets_key: Some(artifacts.path().join("secrets.key")),
                ..GatewaySettings::default()
            },
            pools: Vec::new(),
            certs: None,
            shutdown: Shutdown::new(),
            artifacts,
        }
    }

    pub(crate) async fn gateway(&self) -> Gateway {
        self.gateway_over(Arc::clone(&self.store)).await
    }

    pub(crate) async fn gateway_over(&self, store: SharedStore) -> Gateway {
        Gateway::start(self.parts(store)).await.unwrap()
    }

    pub(crate) fn parts(&self, store: SharedStore) -> GatewayParts {
        let broker: Arc<dyn Broker> = self.broker.clone();
        let origin = Filesystem::open(self.artifacts.path()).unwrap();
        GatewayParts {
            store,
            artifacts: Arc::new(Tiered::new(Arc::new(origin), Arc::new(BlobArtifacts::new(Arc::clone(&broker))))),
            broker,
            settings: self.settings.clone(),
            history: Duration::from_secs(3600),
            pools: self.pools.clone(),
            durability: Durability::default(),
            certs: self.certs.clone(),
            queue_url: String::new(),
            tasks: Tasks::new(Arc::clone(&self.shutdown)),
        }
    }

    /// An agent with four slots; a test that wants more or fewer says so.
    pub(crate) async fn agent(&self, id: &str, script: impl Fn(&Job) -> Act + Send + Sync + 'static) -> FakeAgent {
        self.agent_with(id, 4, 1, script).await
    }

    /// An agent whose executions run until they are let go, one for each notification.
    pub(crate) async fn agent_that_holds(&self, tasks: u32) -> (FakeAgent, Arc<Notify>) {
        let end = Arc::new(Notify::new());
        let ends = Arc::clone(&end);
        (self.agent_with("a", tasks, 1, move |_| Act::Hold(Arc::clone(&ends))).await, end)
    }

    pub(crate) async fn agent_with(
        &self,
        id: &str,
        tasks: u32,
        max_attempts: u32,
        script: impl Fn(&Job) -> Act + Send + Sync + 'static,
    ) -> FakeAgent {
        FakeAgent::start(&self.broker, id, tasks, max_attempts, Arc::new(script)).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.start_kill();
    }
}

pub(crate) fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).unwrap()
}

pub(crate) fn code() -> Bytes {
    archive(&[File::executable("run", "#!/bin/sh\ncat\n")]).into()
}

/// Registers and deploys a function; `more` is further YAML.
pub(crate) async fn deploy(gateway: &Gateway, function: &str, more: &str) {
    let spec = parse_yaml(&format!("name: {function}\nhandler: run\n{more}")).unwrap();
    gateway.register(spec).await.unwrap();
    gateway.deploy(&name(function), code()).await.unwrap();
}

pub(crate) fn payload(text: &str) -> InvokeRequest {
    InvokeRequest { payload: Bytes::copy_from_slice(text.as_bytes()), ..InvokeRequest::default() }
}

pub(crate) fn keyed(text: &str, key: &str) -> InvokeRequest {
    InvokeRequest { idempotency_key: Some(key.to_owned()), ..payload(text) }
}

/// Waits until every agent named is known to the gateway as online.
pub(crate) async fn knows(gateway: &Gateway, agents: &[&FakeAgent]) {
    eventually("the gateway knows the agents", || async {
        let online = gateway.agents();
        agents.iter().all(|agent| {
            online.iter().any(|view| {
                view.heartbeat.agent_id == *agent.id() && view.status != flux_protocol::agent::AgentStatus::Offline
            })
        })
    })
    .await;
}

/// Waits until the condition holds, and fails if it never does.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("never so: {what}"));
}

/// The record once it is terminal.
pub(crate) async fn ended(world: &World, id: ExecutionId) -> ExecutionRecord {
    eventually(&format!("{id} ended"), || async {
        world.store.execution(id).await.unwrap().is_some_and(|record| record.is_terminal())
    })
    .await;
    world.store.execution(id).await.unwrap().unwrap()
}

/// The record once it exists.
pub(crate) async fn recorded(world: &World, id: ExecutionId) -> ExecutionRecord {
    eventually(&format!("{id} has a record"), || async { world.store.execution(id).await.unwrap().is_some() }).await;
    world.store.execution(id).await.unwrap().unwrap()
}
