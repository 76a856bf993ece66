//! An instance, as the seam has it.

use std::net::IpAddr;

use flux_protocol::PoolName;
use flux_provider::{ClientToken, ClusterName, Node, NodeId, NodeState, NodeType, Zone, tag};
use google_cloud_compute_v1::model::{Instance, instance::Status, scheduling::ProvisioningModel};

use crate::labels;

/// Where an instance is, and its name there: what a node's id is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) zone: String,
    pub(crate) name: String,
}

impl Place {
    /// `None` for what is no id of a node here.
    pub(crate) fn of(id: &NodeId) -> Option<Self> {
        let (zone, name) = id.as_str().split_once('/')?;
        let place = Self { zone: zone.to_owned(), name: name.to_owned() };
        (labels::is_name(zone) && labels::is_name(name)).then_some(place)
    }

    /// `None` for an instance without a zone or a name, which there is not.
    pub(crate) fn of_instance(instance: &Instance) -> Option<Self> {
        Some(Self { zone: last(instance.zone.as_deref()?).to_owned(), name: instance.name.clone()? })
    }

    pub(crate) fn id(&self) -> Option<NodeId> {
        NodeId::parse(&format!("{}/{}", self.zone, self.name)).ok()
    }
}

/// What a URL or a path names.
fn last(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

pub(crate) fn is_of(instance: &Instance, cluster: &ClusterName) -> bool {
    instance.labels.get(tag::CLUSTER).is_some_and(|name| name == cluster.as_str())
}

pub(crate) fn node(instance: &Instance) -> Option<Node> {
    let place = Place::of_instance(instance)?;
    let tags: std::collections::BTreeMap<_, _> = instance.labels.clone().into_iter().collect();
    let labelled = |key: &str| tags.get(key).map(String::as_str);
    let interface = instance.network_interfaces.first();
    let address = |text: Option<&String>| text.and_then(|text| text.parse::<IpAddr>().ok());
    let public =
        interface.and_then(|interface| interface.access_configs.iter().find_map(|access| access.nat_ip.as_ref()));
    let scheduling = instance.scheduling.as_ref();
    Some(Node {
        id: place.id()?,
        client_token: labelled(tag::CLIENT_TOKEN).and_then(|token| ClientToken::parse(token).ok()),
        state: state(instance.status.as_ref()),
        node_type: NodeType::parse(last(instance.machine_type.as_deref()?)).ok()?,
        zone: Zone::parse(&place.zone).ok()?,
        pool: labelled(tag::POOL).and_then(|pool| PoolName::parse(pool).ok()),
        spot: scheduling.is_some_and(|scheduling| {
            scheduling.provisioning_model == Some(ProvisioningModel::Spot) || scheduling.preemptible == Some(true)
        }),
        public_address: address(public),
        private_address: address(interface.and_then(|interface| interface.network_ip.as_ref())),
        launched_at: instance.creation_timestamp.as_deref().and_then(|at| at.parse().ok()),
        price_per_hour: None,
        tags,
    })
}

fn state(status: Option<&Status>) -> NodeState {
    match status {
        Some(Status::Running) => NodeState::Running,
        Some(Status::Stopping | Status::PendingStop | Status::Deprovisioning) => NodeState::Stopping,
        // One that is stopped (`TERMINATED`: by itself, by somebody) stays, and its disk is paid for. It is told as one that is
        // there, so that it is missed where it is silent, and terminated, which a machine on its way out would not be.
        // One that is repaired boots again.
        _ => NodeState::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_zone_and_a_name_and_nothing_else() {
        let place = |id: &str| Place::of(&NodeId::parse(id).expect("an id"));
        let good = place("europe-west3-a/here-1").expect("a place");
        assert_eq!((good.zone.as_str(), good.name.as_str()), ("europe-west3-a", "here-1"));
        assert_eq!(good.id(), NodeId::parse("europe-west3-a/here-1").ok());
        for bad in ["here-1", "/here-1", "europe-west3-a/", "a/../b", "a/b/c", "a/b?c", "i-0123456789abcdef0/B"] {
            assert_eq!(place(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_stopped_stays_until_it_is_terminated() {
        for (status, expected) in [
            ("PROVISIONING", NodeState::Pending),
            ("STAGING", NodeState::Pending),
            ("REPAIRING", NodeState::Pending),
            ("RUNNING", NodeState::Running),
            ("STOPPING", NodeState::Stopping),
            ("TERMINATED", NodeState::Pending),
            ("SUSPENDED", NodeState::Pending),
            ("SOMETHING_NEW", NodeState::Pending),
        ] {
            assert_eq!(state(Some(&Status::from(status))), expected, "{status}");
        }
    }
}
