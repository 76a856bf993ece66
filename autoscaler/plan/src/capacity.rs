//! How many executions machines take at once.

use crate::{Node, NodeType, Policy, Snapshot};

/// A type whose nodes are less than half full says nothing yet about how many executions fill one.
const TELLS_FROM: f64 = 0.5;

/// Slots of a node, ready or not.
pub(crate) fn slots(node: &Node, snapshot: &Snapshot, policy: &Policy) -> f64 {
    let said = node.load.map(|load| f64::from(load.slots));
    let configured = policy
        .provider(&node.provider)
        .and_then(|provider| provider.node_type(&node.node_type))
        .map_or(1.0, |of| f64::from(of.slots));
    filled(&node.provider, &node.node_type, snapshot, said.unwrap_or(configured)).max(1.0)
}

/// Slots of a node that would be bought.
pub(crate) fn slots_of_type(provider: &str, of: &NodeType, snapshot: &Snapshot) -> f64 {
    let loads = snapshot.managed().filter(|node| node.provider == provider && node.node_type == of.name);
    let said = loads.filter_map(|node| node.load).map(|load| load.slots).max();
    filled(provider, &of.name, snapshot, f64::from(said.unwrap_or(of.slots))).max(1.0)
}

/// A budget of tasks is an upper bound: functions that ask for much CPU or memory fill a node earlier. How many fill one is
/// seen from nodes of the type that are well used.
fn filled(provider: &str, node_type: &str, snapshot: &Snapshot, tasks: f64) -> f64 {
    let (mut nodes, mut running, mut used) = (0.0, 0.0, 0.0);
    let of_type = snapshot.managed().filter(|node| node.provider == provider && node.node_type == node_type);
    for load in of_type.filter_map(|node| node.load) {
        nodes += 1.0;
        running += f64::from(load.running);
        used += load.used;
    }
    if running == 0.0 || used < TELLS_FROM * nodes { tasks } else { (running / used).min(tasks) }
}
