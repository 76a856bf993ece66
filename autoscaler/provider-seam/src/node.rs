//! What is asked of a provider, and what it has.

use std::{collections::BTreeMap, net::IpAddr};

use flux_protocol::{PoolName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{ClientToken, NodeId, NodeType, Zone};

/// Millionths of a US dollar: prices per hour are added up, which binary fractions do not bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MicroUsd(pub u64);

/// One node, asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchRequest {
    pub client_token: ClientToken,
    pub node_type: NodeType,
    /// One of [`crate::Provider::zones`]; without it, the first.
    pub zone: Option<Zone>,
    pub pool: PoolName,
    /// An interruptible node at a lower price.
    pub spot: bool,
    /// Beyond those of [`crate::tag`], which win.
    pub tags: BTreeMap<String, String>,
    /// A script or cloud-config that the machine runs at its first boot. It can be read by whoever may describe the
    /// node: no secret belongs in it.
    pub user_data: Option<String>,
}

impl LaunchRequest {
    /// One node on demand, in the preferred zone.
    pub fn new(client_token: ClientToken, node_type: NodeType, pool: PoolName) -> Self {
        Self { client_token, node_type, zone: None, pool, spot: false, tags: BTreeMap::new(), user_data: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Bought, and booting.
    Pending,
    /// The machine is on; nothing is said about what runs on it.
    Running,
    /// On its way out, and never comes back.
    Stopping,
    /// Ended: costs nothing, and is forgotten soon.
    Gone,
}

impl NodeState {
    /// Whether it is there, or will be.
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

/// A node as its provider tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// Absent where somebody tagged a machine by hand.
    pub client_token: Option<ClientToken>,
    pub state: NodeState,
    pub node_type: NodeType,
    pub zone: Zone,
    pub pool: Option<PoolName>,
    pub spot: bool,
    pub public_address: Option<IpAddr>,
    pub private_address: Option<IpAddr>,
    pub launched_at: Option<Timestamp>,
    /// What an hour of it costs, if the provider tells.
    pub price_per_hour: Option<MicroUsd>,
    /// All of its tags, those of [`crate::tag`] too.
    pub tags: BTreeMap<String, String>,
}

/// A size of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeDetails {
    pub node_type: NodeType,
    pub cpu_millicores: u32,
    pub memory_mb: u32,
    /// On demand, if the provider tells.
    pub price_per_hour: Option<MicroUsd>,
}
