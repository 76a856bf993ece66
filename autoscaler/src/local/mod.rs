//! Agents as processes of this machine: to try the autoscaler out, and to use a machine of one's own.
//!
//! A node is a directory: `node.json`, the agent's certificates and configuration, its files. The agent outlives the
//! autoscaler, and is found again by its configuration's path in its arguments. An agent that joined is let in under the node's
//! name with a token that is used up by it.

mod process;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use flux_protocol::{PoolName, Timestamp, time::now};
use flux_provider::{
    Capabilities, ClientToken, ClusterName, ConsoleOutput, LaunchRequest, MicroUsd, Node, NodeId, NodeState, NodeType,
    Provider, ProviderError, TypeDetails, Zone, tag,
};
use serde::{Deserialize, Serialize};

use crate::join::Gateway;

/// A killed agent is gone within this, and one that was asked to go within the first.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What there is to launch.
#[derive(Debug, Clone)]
pub struct LocalType {
    pub tasks: u32,
    pub price_per_hour: f64,
}

pub struct LocalOptions {
    pub cluster: ClusterName,
    /// Below it each node has its directory.
    pub dir: PathBuf,
    /// `flux-agent`.
    pub agent: PathBuf,
    pub types: BTreeMap<String, LocalType>,
    pub gateway: Gateway,
    /// Where the queue is talked to without certificates: its URL. Nobody joins there.
    pub queue_without_certificates: Option<String>,
}

pub struct LocalProvider {
    options: LocalOptions,
    zone: Zone,
    /// One launch or termination at a time.
    changing: tokio::sync::Mutex<()>,
}

/// `node.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    cluster: ClusterName,
    node_type: NodeType,
    pool: PoolName,
    launched_at: Timestamp,
}

impl LocalProvider {
    /// # Errors
    /// Its directory cannot be made.
    pub fn try_new(options: LocalOptions) -> std::io::Result<Self> {
        std::fs::create_dir_all(&options.dir)?;
        let zone = Zone::parse("local").map_err(std::io::Error::other)?;
        Ok(Self { options, zone, changing: tokio::sync::Mutex::new(()) })
    }

    fn dir(&self, token: &str) -> PathBuf {
        self.options.dir.join(token)
    }

    fn written(&self, dir: &Path) -> Option<Written> {
        let text = std::fs::read(dir.join("node.json")).ok()?;
        serde_json::from_slice::<Written>(&text).ok().filter(|written| written.cluster == self.options.cluster)
    }

    fn node(&self, token: &ClientToken, written: Written) -> Option<Node> {
        let dir = self.dir(token.as_str());
        let state = if process::of(&dir).is_some() { NodeState::Running } else { NodeState::Gone };
        let price = self.options.types.get(written.node_type.as_str()).map(|of| micros(of.price_per_hour));
        let tags = [(tag::CLUSTER, self.options.cluster.to_string()), (tag::CLIENT_TOKEN, token.to_string())];
        Some(Node {
            id: NodeId::parse(token.as_str()).ok()?,
            client_token: Some(token.clone()),
            state,
            node_type: written.node_type,
            zone: self.zone.clone(),
            pool: Some(written.pool),
            spot: false,
            public_address: None,
            private_address: Some(std::net::Ipv4Addr::LOCALHOST.into()),
            launched_at: Some(written.launched_at),
            price_per_hour: price,
            tags: tags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }

    /// Writes what is not there yet, and starts the agent. Begun anew after a crash it goes on where that was.
    async fn start(&self, request: &LaunchRequest, of: &LocalType) -> Result<(), std::io::Error> {
        let dir = self.dir(request.client_token.as_str());
        std::fs::create_dir_all(&dir)?;
        if self.written(&dir).is_none() {
            let written = Written {
                cluster: self.options.cluster.clone(),
                node_type: request.node_type.clone(),
                pool: request.pool.clone(),
                launched_at: now(),
            };
            write(&dir.join("node.json"), &serde_json::to_vec(&written)?)?;
        }
        let config = process::config_of(&dir);
        if !config.exists() {
            let queue = match &self.options.queue_without_certificates {
                Some(url) => format!("disable_mtls: true\nqueue: {{ url: {url:?} }}\n"),
                None => {
                    let certs = dir.join("certs");
                    let token = request.client_token.as_str();
                    let queue = self.options.gateway.join(token, &request.pool, &certs).await?;
                    format!("certs_dir: {:?}\nqueue: {{ url: {queue:?} }}\n", certs.display().to_string())
                }
            };
            let lines = format!(
                "# Written by flux-autoscaler.\n{queue}agent: {{ id: {:?}, pool: {:?}, work_dir: {:?}, tasks: {} }}\n",
                request.client_token.as_str(),
                request.pool.as_str(),
                dir.join("work").display().to_string(),
                of.tasks,
            );
            write(&config, lines.as_bytes())?;
            process::give(&dir)?;
        }
        process::start(&self.options.agent, &dir)
    }
}

#[async_trait]
impl Provider for LocalProvider {
    fn name(&self) -> &'static str {
        "local"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { needs_bootstrap: false, console: false, user_data: false, spot: false }
    }

    fn zones(&self) -> &[Zone] {
        std::slice::from_ref(&self.zone)
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Node, ProviderError> {
        let token = &request.client_token;
        let attempted = || format!("launch {token} here");
        let refused = |field, why: &str| ProviderError::invalid(field, attempted(), why);
        if request.spot || request.user_data.is_some() {
            return Err(refused("spot", "a process of this machine is neither a spot node nor takes user data"));
        }
        let of = self.options.types.get(request.node_type.as_str());
        let of = of.ok_or_else(|| refused("node_types", "it is not configured"))?;
        let _one = self.changing.lock().await;
        let dir = self.dir(token.as_str());
        let unavailable = |error: std::io::Error| ProviderError::unavailable(attempted(), error);
        if process::of(&dir).is_none() {
            self.start(request, of).await.map_err(unavailable)?;
        }
        let written = self.written(&dir).ok_or_else(|| refused("token", "its directory is another cluster's"))?;
        self.node(token, written).ok_or_else(|| refused("token", "it is no node's name"))
    }

    async fn list(&self) -> Result<Vec<Node>, ProviderError> {
        let failed = |error: std::io::Error| ProviderError::unavailable("list the nodes of this machine", error);
        let mut nodes = Vec::new();
        for entry in std::fs::read_dir(&self.options.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(token) = name.to_str().and_then(|name| ClientToken::parse(name).ok()) else { continue };
            let written = self.written(&self.dir(token.as_str()));
            nodes.extend(written.and_then(|written| self.node(&token, written)));
        }
        Ok(nodes)
    }

    async fn terminate(&self, id: &NodeId) -> Result<(), ProviderError> {
        let _one = self.changing.lock().await;
        // A path's parts are no node's id.
        let Ok(token) = ClientToken::parse(id.as_str()) else { return Ok(()) };
        let dir = self.dir(token.as_str());
        if self.written(&dir).is_none() {
            return Ok(());
        }
        let failed = |error: std::io::Error| ProviderError::unavailable(format!("end {id}"), error);
        process::end(&dir, ENDS_WITHIN, LOOK_AGAIN).await.map_err(failed)?;
        std::fs::remove_dir_all(&dir).map_err(failed)
    }

    async fn console_output(&self, id: &NodeId) -> Result<ConsoleOutput, ProviderError> {
        Err(ProviderError::NotFound { what: format!("a console of {id}") })
    }

    async fn describe_types(&self, types: &[NodeType]) -> Result<Vec<TypeDetails>, ProviderError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpu_millicores = u32::try_from(cores * 1000).unwrap_or(u32::MAX);
        let details = types.iter().filter_map(|name| {
            let of = self.options.types.get(name.as_str())?;
            let price_per_hour = Some(micros(of.price_per_hour));
            Some(TypeDetails {
                node_type: name.clone(),
                cpu_millicores,
                memory_mb: process::memory_mb(),
                price_per_hour,
            })
        });
        Ok(details.collect())
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a price, not negative
fn micros(price: f64) -> MicroUsd {
    MicroUsd((price * 1e6).round() as u64)
}

/// Whole, or not at all.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
