//! Who connects to the queue, by the name in its certificate, and what that name was given.

use std::fmt;

use crate::{
    access::FunctionGlob,
    id::{AgentId, PoolName},
};

const TRUST_DOMAIN: &str = "spiffe://flux/";

/// A producer's name has the form of an agent's id.
pub type ProducerName = AgentId;

/// What a certificate says of its holder.
///
/// `grant` counts how often the name was let in: who was revoked and is let in again is another identity, so that what it
/// had before stays shut out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    Gateway,
    /// The broker's own servers.
    Queue,
    /// Who buys machines.
    Autoscaler,
    Agent {
        id: AgentId,
        grant: u32,
    },
    Producer {
        name: ProducerName,
        grant: u32,
    },
}

impl Identity {
    /// The URI that certificates carry, and that the broker maps to a user.
    pub fn uri(&self) -> String {
        match self {
            Self::Gateway => format!("{TRUST_DOMAIN}gateway"),
            Self::Queue => format!("{TRUST_DOMAIN}queue"),
            Self::Autoscaler => format!("{TRUST_DOMAIN}autoscaler"),
            Self::Agent { id, grant } => format!("{TRUST_DOMAIN}agent/{id}/{grant}"),
            Self::Producer { name, grant } => format!("{TRUST_DOMAIN}producer/{name}/{grant}"),
        }
    }

    pub fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(TRUST_DOMAIN)?.split('/');
        let kind = parts.next()?;
        let mut named = || Some((AgentId::parse(parts.next()?).ok()?, parts.next()?.parse().ok()?));
        let identity = match kind {
            "gateway" => Self::Gateway,
            "queue" => Self::Queue,
            "autoscaler" => Self::Autoscaler,
            "agent" => named().map(|(id, grant)| Self::Agent { id, grant })?,
            "producer" => named().map(|(name, grant)| Self::Producer { name, grant })?,
            _ => return None,
        };
        // One name has one spelling.
        (identity.uri() == uri).then_some(identity)
    }

    pub fn agent(&self) -> Option<&AgentId> {
        match self {
            Self::Agent { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The account that it has on the broker. Gateways share one; the autoscaler is in it too, with less leave.
    pub fn account(&self) -> String {
        match self {
            Self::Gateway | Self::Queue | Self::Autoscaler => GATEWAYS_ACCOUNT.to_owned(),
            Self::Agent { id, .. } => format!("agent-{id}"),
            Self::Producer { name, .. } => format!("producer-{name}"),
        }
    }
}

/// The account that holds the streams.
pub const GATEWAYS_ACCOUNT: &str = "FLUX";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("gateway"),
            Self::Queue => f.write_str("queue"),
            Self::Autoscaler => f.write_str("autoscaler"),
            Self::Agent { id, .. } => write!(f, "agent {id}"),
            Self::Producer { name, .. } => write!(f, "producer {name}"),
        }
    }
}

/// What an agent or a producer was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    Agent { id: AgentId, grant: u32, pools: Vec<PoolName> },
    Producer { name: ProducerName, grant: u32, invoke: Vec<FunctionGlob> },
}

impl Grant {
    pub fn identity(&self) -> Identity {
        match self {
            Self::Agent { id, grant, .. } => Identity::Agent { id: id.clone(), grant: *grant },
            Self::Producer { name, grant, .. } => Identity::Producer { name: name.clone(), grant: *grant },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        let agent = Identity::Agent { id: AgentId::parse("a-1").expect("an id"), grant: 3 };
        assert_eq!(agent.uri(), "spiffe://flux/agent/a-1/3");
        for identity in [Identity::Gateway, Identity::Queue, Identity::Autoscaler, agent] {
            assert_eq!(Identity::from_uri(&identity.uri()), Some(identity));
        }
        for other in [
            "spiffe://flux/agent/a-1",
            "spiffe://flux/agent/a-1/03",
            "spiffe://flux/agent/a-1/3/",
            "spiffe://flux/agent/../3",
            "spiffe://flux/gateway/1",
            "spiffe://other/gateway",
            "spiffe://flux/root",
        ] {
            assert_eq!(Identity::from_uri(other), None, "{other}");
        }
    }
}
