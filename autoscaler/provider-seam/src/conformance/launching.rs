//! Launching, and launching again.

use std::collections::BTreeSet;

use super::Subject;
use crate::{ErrorKind, NodeState, NodeType, Zone};

pub async fn a_launch_gives_a_node_with_what_was_asked_for(subject: &Subject) {
    let mut request = subject.request();
    request.tags.insert("team".to_owned(), "crew".to_owned());
    let node = subject.provider.launch(&request).await.expect("a node is launched");
    assert_eq!(node.client_token, Some(request.client_token));
    assert_eq!(node.node_type, request.node_type);
    assert_eq!(node.pool, Some(request.pool));
    assert_eq!(node.zone, subject.first_zone(), "without a zone, it is the first");
    assert_eq!(node.tags.get("team").map(String::as_str), Some("crew"));
    assert!(matches!(node.state, NodeState::Pending | NodeState::Running), "{:?}", node.state);
}

pub async fn the_same_token_buys_one_node(subject: &Subject) {
    let request = subject.request();
    let first = subject.provider.launch(&request).await.expect("a node is launched");
    let again = subject.provider.launch(&request).await.expect("the same launch is no error");
    assert_eq!(first.id, again.id);
    assert_eq!(subject.alive_now().await, [first.id]);
}

pub async fn of_eight_at_once_with_one_token_all_get_one_node(subject: &Subject) {
    let request = subject.request();
    let mut launches = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (provider, request) = (subject.provider.clone(), request.clone());
        launches.spawn(async move { provider.launch(&request).await });
    }
    let mut ids = BTreeSet::new();
    for launched in launches.join_all().await {
        match launched {
            Ok(node) => {
                ids.insert(node.id);
            }
            // A provider may say that the same request is under way.
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    assert_eq!(ids.len(), 1, "one token, one node: {ids:?}");
    let again = subject.provider.launch(&request).await.expect("the same launch is no error");
    assert!(ids.contains(&again.id));
    assert_eq!(subject.alive_now().await, [again.id]);
}

pub async fn the_same_token_with_another_request_is_still_one_node(subject: &Subject) {
    let mut request = subject.request();
    let first = subject.provider.launch(&request).await.expect("a node is launched");
    request.node_type = subject.large.clone();
    let again = subject.provider.launch(&request).await.expect("the token's node is returned");
    assert_eq!((first.id, first.node_type), (again.id, again.node_type));
}

pub async fn another_token_buys_another_node(subject: &Subject) {
    let (one, other) = (subject.launch().await, subject.launch().await);
    assert_ne!(one.id, other.id);
    subject.listed(&one.id, "the first is listed", |_| true).await;
    subject.listed(&other.id, "the second is listed", |_| true).await;
}

pub async fn an_unknown_type_is_invalid_and_names_the_setting(subject: &Subject) {
    let mut request = subject.request();
    request.node_type = NodeType::parse("no-such-type").expect("a name");
    let refused = subject.provider.launch(&request).await.expect_err("there is no such type");
    let crate::ProviderError::Invalid { field, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(field, "node_types");
    assert_eq!(subject.alive_now().await, []);
}

pub async fn an_unknown_zone_is_invalid_and_names_the_setting(subject: &Subject) {
    let mut request = subject.request();
    request.zone = Some(Zone::parse("no-such-zone").expect("a name"));
    let refused = subject.provider.launch(&request).await.expect_err("there is no such zone");
    let crate::ProviderError::Invalid { field, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(field, "zones");
    assert_eq!(subject.alive_now().await, []);
}

pub async fn what_it_cannot_do_is_refused(subject: &Subject) {
    let capabilities = subject.provider.capabilities();
    let (mut spot, mut user_data) = (subject.request(), subject.request());
    spot.spot = true;
    user_data.user_data = Some("#!/bin/sh\n".to_owned());
    for (can, request) in [(capabilities.spot, spot), (capabilities.user_data, user_data)] {
        match subject.provider.launch(&request).await {
            Ok(node) => assert!(can && node.spot == request.spot, "{node:?}"),
            Err(error) => assert!(!can && error.kind() == ErrorKind::Invalid, "{error:?}"),
        }
    }
}
