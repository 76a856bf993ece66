//! What a machine wrote while it booted.

use super::Subject;
use crate::{ConsoleOutput, ErrorKind, NodeState};

pub async fn a_console_has_host_keys_or_nothing(subject: &Subject) {
    let id = subject.launch().await.id;
    subject.listed(&id, "the node runs", |node| node.state == NodeState::Running).await;
    match subject.provider.console_output(&id).await {
        Ok(console) => {
            assert!(subject.provider.capabilities().console);
            assert_eq!(console, ConsoleOutput::parse(console.text.clone()), "its host keys are those in its text");
        }
        Err(error) => {
            assert!(!subject.provider.capabilities().console && error.kind() == ErrorKind::NotFound, "{error}")
        }
    }
}

pub async fn there_is_no_console_of_what_is_not_there(subject: &Subject) {
    let theirs = subject.other_cluster.launch(&subject.request()).await.expect("a node is launched").id;
    for id in [&subject.no_such_node, &theirs] {
        let error = subject.provider.console_output(id).await.expect_err("it is not there");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}
