//! What is seen, and what is not.

use super::Subject;
use crate::{NodeState, tag};

pub async fn a_node_is_listed_with_what_was_asked_for(subject: &Subject) {
    let mut request = subject.request();
    request.tags.insert("team".to_owned(), "crew".to_owned());
    // Ours win.
    request.tags.insert(tag::CLUSTER.to_owned(), "elsewhere".to_owned());
    let launched = subject.provider.launch(&request).await.expect("a node is launched");
    let node = subject.listed(&launched.id, "the node is listed", |_| true).await;
    assert_eq!(node.client_token, Some(request.client_token));
    assert_eq!(node.node_type, request.node_type);
    assert_eq!(node.pool, Some(request.pool));
    assert_eq!(node.zone, launched.zone);
    assert!(node.launched_at.is_some());
    assert_eq!(node.tags.get("team").map(String::as_str), Some("crew"));
    assert_eq!(node.tags.get(tag::CLUSTER).map(String::as_str), Some(subject.cluster.as_str()));
}

pub async fn a_node_runs_and_has_an_address(subject: &Subject) {
    let id = subject.launch().await.id;
    let node = subject.listed(&id, "the node runs", |node| node.state == NodeState::Running).await;
    assert!(node.private_address.or(node.public_address).is_some(), "{node:?}");
}

pub async fn another_clusters_nodes_are_not_seen(subject: &Subject) {
    let theirs = subject.other_cluster.launch(&subject.request()).await.expect("a node is launched");
    let ours = subject.launch().await;
    subject.listed(&ours.id, "ours is listed", |_| true).await;
    let nodes = subject.provider.list().await.expect("nodes are listed");
    assert!(nodes.iter().all(|node| node.id != theirs.id), "{nodes:?}");
    assert!(Subject::ids_alive(&*subject.other_cluster).await.contains(&theirs.id));
}
