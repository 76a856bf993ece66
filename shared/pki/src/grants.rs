//! Who was let in, with what: kept beside the certificate, since it is not the certificate's holder who may say it.

use std::collections::BTreeMap;

use flux_protocol::{
    AgentId, FunctionGlob, PoolName,
    identity::{Grant, Identity},
};
use serde::{Deserialize, Serialize};

/// `grant.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Granted {
    /// How often the name was let in.
    pub(crate) grant: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pools: Vec<PoolName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) invoke: Vec<FunctionGlob>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) revoked: bool,
}

/// Everyone who is let in now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    agents: BTreeMap<AgentId, Grant>,
    producers: BTreeMap<AgentId, Grant>,
}

impl Grants {
    pub(crate) fn insert(&mut self, grant: Grant) {
        match &grant {
            Grant::Agent { id, .. } => self.agents.insert(id.clone(), grant),
            Grant::Producer { name, .. } => self.producers.insert(name.clone(), grant),
        };
    }

    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.agents.values().chain(self.producers.values())
    }

    /// Whether a name that a certificate carries is still let in.
    pub fn admits(&self, identity: &Identity) -> bool {
        match identity {
            Identity::Gateway | Identity::Queue | Identity::Autoscaler => true,
            Identity::Agent { id, .. } => self.agents.get(id).is_some_and(|grant| grant.identity() == *identity),
            Identity::Producer { name, .. } => {
                self.producers.get(name).is_some_and(|grant| grant.identity() == *identity)
            }
        }
    }

    pub fn agent(&self, id: &AgentId) -> Option<&Grant> {
        self.agents.get(id)
    }

    pub fn is_empty(&self) -> bool {
        self.agents.is_empty() && self.producers.is_empty()
    }
}
