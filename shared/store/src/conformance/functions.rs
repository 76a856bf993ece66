//! Functions and versions.

use flux_protocol::limits;

use super::{at, digest, name, spec};
use crate::{Store, StoreError};

pub async fn a_new_function_has_version_one_without_code(store: &dyn Store) {
    assert_eq!(store.function(&name("f")).await.expect("read"), None);
    let made = store.register(&spec("f", 64), at(1)).await.expect("register");
    assert!(made.changed);
    assert_eq!((made.version.version, made.version.digest), (1, None));
    assert_eq!(made.version.spec, spec("f", 64));
    let function = store.function(&name("f")).await.expect("read").expect("it is there");
    assert_eq!(function.current, made.version);
    assert_eq!(function.versions.len(), 1);
    assert_eq!(function.versions[0].created_at, at(1));
}

pub async fn the_same_configuration_changes_nothing(store: &dyn Store) {
    let first = store.register(&spec("f", 64), at(1)).await.expect("register");
    let again = store.register(&spec("f", 64), at(2)).await.expect("register");
    assert!(!again.changed);
    assert_eq!(again.version, first.version);
    let deployed = store.deploy(&name("f"), digest("a"), None, at(3)).await.expect("deploy");
    let again = store.deploy(&name("f"), digest("a"), Some(&spec("f", 64)), at(4)).await.expect("deploy");
    assert!(!again.changed);
    assert_eq!(again.version, deployed.version);
}

pub async fn another_configuration_is_a_new_version_with_the_same_code(store: &dyn Store) {
    store.deploy(&name("f"), digest("a"), Some(&spec("f", 64)), at(1)).await.expect("deploy");
    let other = store.register(&spec("f", 65), at(2)).await.expect("register");
    assert!(other.changed);
    assert_eq!((other.version.version, other.version.digest), (2, Some(digest("a"))));
    let old = store.function_version(&name("f"), 1).await.expect("read").expect("it is kept");
    assert_eq!(old.spec, spec("f", 64), "a version does not change");
    // What was current before is a new version when it comes back.
    let back = store.register(&spec("f", 64), at(3)).await.expect("register");
    assert_eq!((back.changed, back.version.version), (true, 3));
}

pub async fn the_first_code_fills_the_version_that_has_none(store: &dyn Store) {
    store.register(&spec("f", 64), at(1)).await.expect("register");
    let deployed = store.deploy(&name("f"), digest("a"), None, at(2)).await.expect("deploy");
    assert!(deployed.changed);
    assert_eq!((deployed.version.version, deployed.version.digest), (1, Some(digest("a"))));
    assert_eq!(store.function_version(&name("f"), 1).await.expect("read"), Some(deployed.version));
}

pub async fn another_archive_is_a_new_version(store: &dyn Store) {
    store.deploy(&name("f"), digest("a"), Some(&spec("f", 64)), at(1)).await.expect("deploy");
    let second = store.deploy(&name("f"), digest("b"), None, at(2)).await.expect("deploy");
    assert_eq!((second.changed, second.version.version), (true, 2));
    let third = store.deploy(&name("f"), digest("b"), Some(&spec("f", 65)), at(3)).await.expect("deploy");
    assert_eq!((third.changed, third.version.version), (true, 3));
    let function = store.function(&name("f")).await.expect("read").expect("it is there");
    assert_eq!(function.current, third.version);
    assert_eq!(function.versions.iter().map(|v| v.version).collect::<Vec<_>>(), [1, 2, 3], "oldest first");
    assert_eq!(function.versions[0].digest, Some(digest("a")));
}

pub async fn deploying_needs_a_function_or_a_configuration(store: &dyn Store) {
    let refused = store.deploy(&name("f"), digest("a"), None, at(1)).await;
    assert!(matches!(refused, Err(StoreError::NotFound { .. })), "{refused:?}");
    assert_eq!(store.function(&name("f")).await.expect("read"), None, "a refused call leaves nothing");
    let made = store.deploy(&name("f"), digest("a"), Some(&spec("f", 64)), at(2)).await.expect("deploy");
    assert_eq!((made.version.version, made.version.digest), (1, Some(digest("a"))));
}

pub async fn rolling_back_makes_an_old_version_current(store: &dyn Store) {
    assert_eq!(store.rollback(&name("f"), 1).await.expect("roll back"), None);
    let first = store.deploy(&name("f"), digest("a"), Some(&spec("f", 64)), at(1)).await.expect("deploy");
    store.deploy(&name("f"), digest("b"), None, at(2)).await.expect("deploy");
    assert_eq!(store.rollback(&name("f"), 3).await.expect("roll back"), None);
    assert_eq!(store.rollback(&name("f"), 1).await.expect("roll back"), Some(first.version.clone()));
    let function = store.function(&name("f")).await.expect("read").expect("it is there");
    assert_eq!(function.current, first.version);
    assert_eq!(function.versions.len(), 2, "the newer one stays");
    let next = store.deploy(&name("f"), digest("c"), None, at(3)).await.expect("deploy");
    assert_eq!(next.version.version, 3, "numbers are never given twice");
}

pub async fn versions_beyond_the_history_are_gone(store: &dyn Store) {
    let most = limits::VERSION_HISTORY;
    for n in 1..=most + 3 {
        let archive = digest(&n.to_string());
        store.deploy(&name("f"), archive, Some(&spec("f", 64)), at(i64::from(n))).await.expect("deploy");
    }
    let function = store.function(&name("f")).await.expect("read").expect("it is there");
    assert_eq!(function.versions.len(), most as usize);
    assert_eq!(function.versions[0].version, 4);
    assert_eq!(function.current.version, most + 3);
    assert_eq!(store.function_version(&name("f"), 3).await.expect("read"), None);
    assert_eq!(store.rollback(&name("f"), 3).await.expect("roll back"), None);
    // The oldest one, made current again, is not the one that the next version pushes out unnoticed.
    store.rollback(&name("f"), 4).await.expect("roll back").expect("it is kept");
    let next = store.register(&spec("f", 65), at(1000)).await.expect("register");
    let function = store.function(&name("f")).await.expect("read").expect("it is there");
    assert_eq!(function.current, next.version);
    assert_eq!(next.version.digest, Some(digest("4")));
}

pub async fn a_deleted_function_is_gone_and_goes_on_counting(store: &dyn Store) {
    assert!(!store.delete_function(&name("f")).await.expect("delete"));
    store.deploy(&name("f"), digest("a"), Some(&spec("f", 64)), at(1)).await.expect("deploy");
    store.deploy(&name("f"), digest("b"), None, at(2)).await.expect("deploy");
    let running = super::queued(super::id(1, 1), "f", 1);
    store.insert_queued(running.clone()).await.expect("insert");
    assert!(store.delete_function(&name("f")).await.expect("delete"));
    assert!(!store.delete_function(&name("f")).await.expect("delete"));
    assert_eq!(store.function(&name("f")).await.expect("read"), None);
    assert_eq!(store.function_version(&name("f"), 2).await.expect("read"), None);
    assert_eq!(store.functions("", None, 10).await.expect("list"), []);
    assert_eq!(store.digests().await.expect("list"), []);
    assert!(store.execution(running.execution_id).await.expect("read").is_some(), "its executions stay");
    let refused = store.deploy(&name("f"), digest("a"), None, at(3)).await;
    assert!(matches!(refused, Err(StoreError::NotFound { .. })), "{refused:?}");
    let anew = store.register(&spec("f", 64), at(4)).await.expect("register");
    assert_eq!((anew.changed, anew.version.version, anew.version.digest), (true, 3, None));
}

pub async fn functions_are_listed_by_prefix_in_pages(store: &dyn Store) {
    for function in ["b2", "a", "b10", "B", "b_", "b-", "c", "b"] {
        store.register(&spec(function, 64), at(1)).await.expect("register");
    }
    let names = async |prefix: &str, cursor: Option<&str>, limit| -> Vec<String> {
        let cursor = cursor.map(name);
        let page = store.functions(prefix, cursor.as_ref(), limit).await.expect("list");
        page.iter().map(|version| version.name().to_string()).collect()
    };
    assert_eq!(names("", None, 100).await, ["B", "a", "b", "b-", "b10", "b2", "b_", "c"]);
    assert_eq!(names("b", None, 100).await, ["b", "b-", "b10", "b2", "b_"]);
    assert_eq!(names("b", None, 2).await, ["b", "b-"]);
    assert_eq!(names("b", Some("b-"), 2).await, ["b10", "b2"]);
    assert_eq!(names("b", Some("b_"), 2).await, [""; 0]);
    assert_eq!(names("b1", None, 2).await, ["b10"]);
    assert_eq!(names("%", None, 2).await, [""; 0]);
}

pub async fn digests_are_those_of_kept_versions(store: &dyn Store) {
    store.register(&spec("none", 64), at(1)).await.expect("register");
    for (function, archive) in [("f", "a"), ("f", "b"), ("g", "a"), ("f", "a")] {
        store.deploy(&name(function), digest(archive), Some(&spec(function, 64)), at(1)).await.expect("deploy");
    }
    let mut digests = store.digests().await.expect("list");
    digests.sort_unstable();
    let mut wanted = [digest("a"), digest("b")];
    wanted.sort_unstable();
    assert_eq!(digests, wanted);
    store.delete_function(&name("f")).await.expect("delete");
    assert_eq!(store.digests().await.expect("list"), [digest("a")]);
}
