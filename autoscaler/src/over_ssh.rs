//! A bare machine becomes an agent over SSH: an identity from the gateway, and `flux_bootstrap` for the rest.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use flux_bootstrap::{AgentFiles, HostKeys, KnownHosts, Machine, Recipe};
use flux_pki::Certs;
use flux_protocol::{AgentId, PoolName, limits};
use flux_provider::{Node, NodeId, SharedProvider};
use flux_runtime::autoscaler_settings::MachineAddress;
use tokio::time::Instant;

use crate::{
    join::Gateway,
    set_up::{NotSetUp, SetUp},
    signals::Heard,
};

/// How the machines of a provider are set up: what `ssh` of the configuration says.
#[derive(Debug, Clone)]
pub struct Ssh {
    pub recipe: Recipe,
    pub port: u16,
    pub address: MachineAddress,
    /// Where host keys are kept that are known from the first use alone; without it they are read from the console.
    pub first_use: Option<PathBuf>,
    /// The queue as machines reach it.
    pub queue_url: String,
    /// Executions at once, by type.
    pub tasks: BTreeMap<String, u32>,
}

pub(crate) struct OverSsh {
    pub(crate) ssh: Ssh,
    pub(crate) provider: SharedProvider,
    pub(crate) gateway: Gateway,
    pub(crate) heard: Heard,
}

impl OverSsh {
    fn address(&self, node: &Node) -> Option<SocketAddr> {
        let address = match self.ssh.address {
            MachineAddress::Public => node.public_address,
            MachineAddress::Private => node.private_address,
        };
        address.map(|address| SocketAddr::new(address, self.ssh.port))
    }

    /// A gateway that is started anew costs no machine.
    async fn join(&self, agent: &AgentId, pool: &PoolName, dir: &Path) -> io::Result<String> {
        let (deadline, mut pause) = (Instant::now() + limits::BOOTSTRAP_IDENTITY, limits::BOOTSTRAP_PAUSE);
        loop {
            match self.gateway.join(agent.as_str(), pool, dir).await {
                Err(error) if Instant::now() + pause < deadline => {
                    tracing::debug!(node = %agent, %error, "no identity yet; asking again");
                }
                joined => return joined,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(limits::BOOTSTRAP_PAUSE_MOST);
        }
    }

    /// An identity and what is written beside it. The key is in a directory of its own for this moment alone.
    async fn files(&self, agent: &AgentId, pool: &PoolName, node: &Node) -> Result<AgentFiles, String> {
        let dir = tempfile::tempdir().map_err(|error| format!("no directory can be made: {error}"))?;
        // Below it: joining makes its directory anew, and this one alone is nobody else's to enter.
        let certs_dir = dir.path().join("certs");
        self.join(agent, pool, &certs_dir).await.map_err(|error| format!("the gateway gave no identity: {error}"))?;
        let mut config = serde_json::json!({ "queue": { "url": self.ssh.queue_url } });
        if let Some(tasks) = self.ssh.tasks.get(node.node_type.as_str()) {
            config["agent"] = serde_json::json!({ "tasks": tasks });
        }
        let files = AgentFiles::read(&Certs::at(&certs_dir), agent.clone(), pool, &self.ssh.recipe, config);
        files.map_err(|error| error.to_string())
    }
}

#[async_trait]
impl SetUp for OverSsh {
    fn lacks(&self, node: &Node) -> Option<String> {
        let (has_not, instead) = match self.ssh.address {
            MachineAddress::Public => ("public", "private"),
            MachineAddress::Private => ("private", "public"),
        };
        let lacks = format!("it runs and has no {has_not} address yet; `ssh.address: {instead}` takes the other");
        self.address(node).is_none().then_some(lacks)
    }

    async fn set_up(&self, agent: &AgentId, pool: &PoolName, node: &Node) -> Result<(), NotSetUp> {
        let ours = |why: String| NotSetUp { why, output: String::new() };
        let address = self.address(node).ok_or_else(|| ours("it has no address".to_owned()))?;
        let host_keys = match &self.ssh.first_use {
            Some(dir) => HostKeys::FirstUse { known: KnownHosts::at(dir), node: node.id.clone() },
            None => HostKeys::Console { provider: Arc::clone(&self.provider), node: node.id.clone() },
        };
        let files = self.files(agent, pool, node).await.map_err(ours)?;
        let machine = Machine { address, host_keys };
        let set_up = Box::pin(flux_bootstrap::bootstrap(&self.ssh.recipe, &machine, &files, &self.heard)).await;
        match set_up {
            Ok(finished) => {
                let took: std::time::Duration = finished.steps.iter().map(|step| step.took).sum();
                tracing::info!(node = %agent, host_key = %finished.host_key, took_ms = took.as_millis(), "a machine is an agent");
                Ok(())
            }
            Err(failed) => Err(NotSetUp { why: failed.to_string(), output: failed.output }),
        }
    }

    fn forget(&self, node: &NodeId) {
        let Some(dir) = &self.ssh.first_use else { return };
        if let Err(error) = KnownHosts::at(dir).forget(node) {
            tracing::warn!(provider_id = %node, %error, "the host key of a machine that is gone is left behind");
        }
    }
}
