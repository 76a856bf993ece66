//! Ending a node, and ending it again.

use super::{Subject, until};

pub async fn a_terminated_node_goes(subject: &Subject) {
    let (stays, goes) = (subject.launch().await.id, subject.launch().await.id);
    for id in [&stays, &goes] {
        subject.listed(id, "the node is listed", |_| true).await;
    }
    subject.provider.terminate(&goes).await.expect("it is terminated");
    until("the node is gone", async || {
        let alive = Subject::ids_alive(&*subject.provider).await;
        (alive == [stays.clone()]).then_some(())
    })
    .await;
}

pub async fn terminating_again_is_no_error(subject: &Subject) {
    let id = subject.launch().await.id;
    subject.listed(&id, "the node is listed", |_| true).await;
    for _ in 0..3 {
        subject.provider.terminate(&id).await.expect("terminating is idempotent");
    }
    until("the node is gone", async || Subject::ids_alive(&*subject.provider).await.is_empty().then_some(())).await;
    subject.provider.terminate(&id).await.expect("a node that is gone is terminated");
}

pub async fn terminating_what_is_not_there_is_no_error(subject: &Subject) {
    subject.provider.terminate(&subject.no_such_node).await.expect("what is not there is terminated");
}

pub async fn another_clusters_node_is_left_alone(subject: &Subject) {
    let theirs = subject.other_cluster.launch(&subject.request()).await.expect("a node is launched").id;
    let see_theirs = async || Subject::ids_alive(&*subject.other_cluster).await.contains(&theirs).then_some(());
    until("theirs is listed", see_theirs).await;
    subject.provider.terminate(&theirs).await.expect("what is not ours is not there");
    // One of ours that goes shows that terminating is not merely late.
    let ours = subject.launch().await.id;
    subject.listed(&ours, "ours is listed", |_| true).await;
    subject.provider.terminate(&ours).await.expect("it is terminated");
    until("ours is gone", async || Subject::ids_alive(&*subject.provider).await.is_empty().then_some(())).await;
    assert!(see_theirs().await.is_some(), "theirs is still there");
}
