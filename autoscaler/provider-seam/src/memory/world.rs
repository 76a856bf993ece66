//! What nodes there truly are.

use std::collections::{BTreeMap, HashMap};

use flux_protocol::{PoolName, Timestamp};

use super::MemoryOptions;
use crate::{
    ClientToken, ClusterName, ConsoleOutput, Fingerprint, LaunchRequest, MicroUsd, Node, NodeId, NodeState, NodeType,
    ProviderError, Zone, tag,
};

/// A node that was launched, from its first moment to its last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bought {
    pub id: NodeId,
    pub cluster: ClusterName,
    pub client_token: ClientToken,
    pub node_type: NodeType,
    pub zone: Zone,
    pub pool: PoolName,
    pub spot: bool,
    pub price_per_hour: Option<MicroUsd>,
    pub launched_at: Timestamp,
    /// When it was told to end, or did so by itself.
    pub ended_at: Option<Timestamp>,
    tags: BTreeMap<String, String>,
}

#[derive(Default)]
pub(super) struct World {
    bought: Vec<Bought>,
    pub(super) capacity: HashMap<(Zone, NodeType), usize>,
}

/// How long a provider still tells of a node that is gone.
const GONE_KNOWN: std::time::Duration = std::time::Duration::from_secs(3600);

impl World {
    pub(super) fn launch(
        &mut self,
        options: &MemoryOptions,
        request: &LaunchRequest,
        now: Timestamp,
    ) -> Result<Node, ProviderError> {
        let attempted = || format!("launch a node of type {}", request.node_type);
        let Some(details) = options.types.iter().find(|details| details.node_type == request.node_type) else {
            return Err(ProviderError::invalid("node_types", attempted(), "there is no such type"));
        };
        let zone = request.zone.as_ref().or_else(|| options.zones.first());
        let Some(zone) = zone.filter(|zone| options.zones.contains(zone)) else {
            return Err(ProviderError::invalid("zones", attempted(), "there is no such zone"));
        };
        let alive = || self.bought.iter().filter(|one| one.ended_at.is_none());
        let same = |one: &&Bought| one.client_token == request.client_token && one.cluster == options.cluster;
        if let Some(known) = alive().find(same).filter(|_| options.honours_tokens) {
            return Ok(known.as_node(options, now));
        }
        if alive().count() >= options.quota {
            return Err(ProviderError::quota(attempted(), "as many nodes as the quota allows are alive"));
        }
        let here = alive().filter(|one| one.zone == *zone && one.node_type == request.node_type).count();
        if self.capacity.get(&(zone.clone(), request.node_type.clone())).is_some_and(|room| here >= *room) {
            return Err(ProviderError::capacity(attempted(), "the zone is full"));
        }
        let mut tags = request.tags.clone();
        tags.insert(tag::CLUSTER.to_owned(), options.cluster.to_string());
        tags.insert(tag::CLIENT_TOKEN.to_owned(), request.client_token.to_string());
        tags.insert(tag::POOL.to_owned(), request.pool.to_string());
        let bought = Bought {
            id: NodeId::parse(&format!("m-{}", self.bought.len() + 1))
                .map_err(|e| ProviderError::unavailable(attempted(), e))?,
            cluster: options.cluster.clone(),
            client_token: request.client_token.clone(),
            node_type: request.node_type.clone(),
            zone: zone.clone(),
            pool: request.pool.clone(),
            spot: request.spot,
            price_per_hour: details.price_per_hour,
            launched_at: now,
            ended_at: None,
            tags,
        };
        let node = bought.as_node(options, now);
        self.bought.push(bought);
        Ok(node)
    }

    pub(super) fn of_cluster(&self, cluster: &ClusterName) -> Vec<Bought> {
        self.bought.iter().filter(|one| one.cluster == *cluster).cloned().collect()
    }

    pub(super) fn find(&self, cluster: &ClusterName, id: &NodeId) -> Option<&Bought> {
        self.bought.iter().find(|one| one.id == *id && one.cluster == *cluster)
    }

    pub(super) fn end(&mut self, id: &NodeId, now: Timestamp) {
        if let Some(one) = self.bought.iter_mut().find(|one| one.id == *id) {
            one.ended_at.get_or_insert(now);
        }
    }

    /// As it was at `then`.
    pub(super) fn seen_by(&self, options: &MemoryOptions, then: Timestamp) -> Vec<Node> {
        let known = |one: &&Bought| {
            one.cluster == options.cluster
                && one.launched_at <= then
                && one.ended_at.is_none_or(|ended| then.since(ended) < GONE_KNOWN)
        };
        self.bought.iter().filter(known).map(|one| one.as_node(options, then)).collect()
    }
}

impl Bought {
    fn state(&self, options: &MemoryOptions, then: Timestamp) -> NodeState {
        match self.ended_at {
            Some(ended) if ended.plus(options.stops_in) <= then => NodeState::Gone,
            Some(ended) if ended <= then => NodeState::Stopping,
            _ if self.launched_at.plus(options.boots_in) <= then => NodeState::Running,
            _ => NodeState::Pending,
        }
    }

    fn as_node(&self, options: &MemoryOptions, then: Timestamp) -> Node {
        let state = self.state(options, then);
        Node {
            id: self.id.clone(),
            client_token: Some(self.client_token.clone()),
            state,
            node_type: self.node_type.clone(),
            zone: self.zone.clone(),
            pool: Some(self.pool.clone()),
            spot: self.spot,
            public_address: None,
            private_address: (state == NodeState::Running).then_some(std::net::Ipv4Addr::LOCALHOST.into()),
            launched_at: Some(self.launched_at),
            price_per_hour: self.price_per_hour,
            tags: self.tags.clone(),
        }
    }

    pub(super) fn console(&self, options: &MemoryOptions, now: Timestamp) -> ConsoleOutput {
        if self.launched_at.plus(options.boots_in) > now {
            return ConsoleOutput::default();
        }
        let print = Fingerprint::of_key(self.id.as_str().as_bytes());
        ConsoleOutput::parse(format!(
            "-----BEGIN SSH HOST KEY FINGERPRINTS-----\n256 {print} root@{} (ED25519)\n-----END SSH HOST KEY FINGERPRINTS-----\n",
            self.id
        ))
    }
}
