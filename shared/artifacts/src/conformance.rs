//! What every place for archives must do: one function per clause of [`ArtifactStore`]'s documentation. An engine's test hands
//! [`every_clause`] a way to open empty stores. Clauses panic where an engine does not hold them, and wait for nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flux_protocol::Digest;

use crate::{ArtifactError, ArtifactStore, Origin};

/// What an engine says that it cannot do.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    pub lists: bool,
}

/// Every clause, each on a store of its own that is empty.
pub async fn every_clause<S: ArtifactStore>(engine: Engine, open: impl AsyncFn() -> S) {
    what_was_put_is_there(&open().await).await;
    what_is_not_there_is_none(&open().await).await;
    no_more_is_read_than_was_asked_for(&open().await).await;
    nothing_is_content_too(&open().await).await;
    the_largest_is_whole(&open().await).await;
    putting_again_is_putting_once(&open().await).await;
    many_put_the_same_at_once(Arc::new(open().await)).await;
    deleting_is_of_one_and_idempotent(&open().await).await;
    all_are_listed_in_order(engine, &open().await).await;
    putting_again_renews_its_time(engine, &open().await).await;
}

async fn what_was_put_is_there(store: &dyn ArtifactStore) {
    let content = Bytes::from_static(b"an archive");
    let digest = store.put(content.clone()).await.expect("put");
    assert_eq!(digest, Digest::of(&content));
    assert!(store.has(digest).await.expect("has"));
    assert_eq!(store.get(digest, 100).await.expect("get"), Some(content));
}

async fn what_is_not_there_is_none(store: &dyn ArtifactStore) {
    let other = Digest::of(b"another");
    for _ in 0..2 {
        assert!(!store.has(other).await.expect("has"));
        assert_eq!(store.get(other, 100).await.expect("get"), None);
        store.put(Bytes::from_static(b"an archive")).await.expect("put");
    }
}

async fn no_more_is_read_than_was_asked_for(store: &dyn ArtifactStore) {
    let content = Bytes::from_static(b"an archive");
    let digest = store.put(content.clone()).await.expect("put");
    assert_eq!(store.get(digest, content.len()).await.expect("get"), Some(content.clone()));
    for most in [content.len() - 1, 0] {
        let refused = store.get(digest, most).await.expect_err("it is larger");
        assert!(matches!(refused, ArtifactError::TooLarge { limit, .. } if limit == most), "{refused:?}");
        assert!(!refused.is_retryable());
    }
}

async fn nothing_is_content_too(store: &dyn ArtifactStore) {
    assert_eq!(store.put(Bytes::new()).await.expect("put"), Digest::of(b""));
    assert_eq!(store.get(Digest::of(b""), 0).await.expect("get"), Some(Bytes::new()));
}

/// Larger than any engine sends at once, and not a multiple of anything.
async fn the_largest_is_whole(store: &dyn ArtifactStore) {
    let content: Bytes =
        (0..17_000_001_u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect::<Vec<_>>().into();
    let digest = store.put(content.clone()).await.expect("put");
    assert!(store.get(digest, content.len()).await.expect("get").is_some_and(|found| found == content));
}

async fn putting_again_is_putting_once(store: &dyn ArtifactStore) {
    for _ in 0..3 {
        assert_eq!(store.put(Bytes::from_static(b"again")).await.expect("put"), Digest::of(b"again"));
    }
    store.delete(Digest::of(b"again")).await.expect("delete");
    assert!(!store.has(Digest::of(b"again")).await.expect("has"));
}

async fn many_put_the_same_at_once(store: Arc<dyn ArtifactStore>) {
    let content = Bytes::from(vec![7; 100_000]);
    let mut puts = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, content) = (Arc::clone(&store), content.clone());
        puts.spawn(async move { store.put(content).await.expect("put") });
    }
    let digests = puts.join_all().await;
    assert!(digests.iter().all(|digest| *digest == Digest::of(&content)));
    assert_eq!(store.get(digests[0], content.len()).await.expect("get"), Some(content));
}

async fn deleting_is_of_one_and_idempotent(store: &dyn ArtifactStore) {
    let first = store.put(Bytes::from_static(b"first")).await.expect("put");
    let second = store.put(Bytes::from_static(b"second")).await.expect("put");
    for _ in 0..2 {
        store.delete(first).await.expect("delete");
        assert_eq!(store.get(first, 100).await.expect("get"), None);
        assert!(!store.has(first).await.expect("has") && store.has(second).await.expect("has"));
    }
    store.put(Bytes::from_static(b"first")).await.expect("put");
    assert!(store.has(first).await.expect("has"), "it can be put again");
}

async fn all_are_listed_in_order(engine: Engine, store: &dyn ArtifactStore) {
    assert_eq!(store.list().await.expect("list"), engine.lists.then(Vec::new));
    let mut all = Vec::new();
    for content in ["one", "two", "three"] {
        all.push((store.put(Bytes::from_static(content.as_bytes())).await.expect("put"), content.len() as u64));
    }
    all.sort_unstable();
    let listed = store.list().await.expect("list");
    assert_eq!(listed.is_some(), engine.lists);
    let Some(listed) = listed else { return };
    assert_eq!(listed.iter().map(|stored| (stored.digest, stored.bytes)).collect::<Vec<_>>(), all);
}

/// Whole seconds are what every engine counts in.
const SECOND: Duration = Duration::from_secs(1);

async fn putting_again_renews_its_time(engine: Engine, store: &dyn ArtifactStore) {
    if !engine.lists {
        return;
    }
    let content = Bytes::from_static(b"an archive");
    let put_at =
        async || store.list().await.expect("list").and_then(|all| Some(all.first()?.put_at)).expect("it is there");
    store.put(content.clone()).await.expect("put");
    let first = put_at().await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while put_at().await.since(first) < SECOND {
        assert!(std::time::Instant::now() < deadline, "its time stays {first}");
        store.put(content.clone()).await.expect("put");
    }
}

/// The clauses of an [`Origin`], each on a store of its own that is empty.
pub async fn every_clause_of_an_origin<S: Origin>(open: impl AsyncFn() -> S) {
    what_is_aside_is_out_of_its_place_and_not_lost(&open().await).await;
    what_is_put_meanwhile_stays(&open().await).await;
    what_is_gone_already_is_left_so(&open().await).await;
}

async fn what_is_aside_is_out_of_its_place_and_not_lost(store: &dyn Origin) {
    let content = Bytes::from_static(b"an archive");
    let digest = store.put(content.clone()).await.expect("put");
    let before = store.list().await.expect("list").expect("an origin lists");
    let aside = store.set_aside(digest).await.expect("set aside").expect("it is there");
    assert_eq!(before, [aside.stored], "its time and size are still what they were");
    assert!(!store.has(digest).await.expect("has"));
    assert_eq!(store.list().await.expect("list"), Some(Vec::new()));
    assert_eq!(store.get(digest, 100).await.expect("get"), Some(content.clone()));
    assert!(matches!(store.get(digest, 1).await, Err(ArtifactError::TooLarge { .. })));
    // As whoever comes after a death finds it.
    let found = store.asides().await.expect("asides");
    assert!(
        matches!(&found[..], [one] if one.name == aside.name && one.stored.digest == digest && one.stored.bytes == 10)
    );
    store.put_back(&found[0]).await.expect("put back");
    assert!(store.has(digest).await.expect("has") && store.asides().await.expect("asides").is_empty());
    let aside = store.set_aside(digest).await.expect("set aside").expect("it is there");
    store.drop_aside(&aside).await.expect("drop");
    assert_eq!(store.get(digest, 100).await.expect("get"), None);
}

async fn what_is_put_meanwhile_stays(store: &dyn Origin) {
    let content = Bytes::from_static(b"an archive");
    let digest = store.put(content.clone()).await.expect("put");
    let first = store.set_aside(digest).await.expect("set aside").expect("it is there");
    store.put(content.clone()).await.expect("put");
    let second = store.set_aside(digest).await.expect("set aside").expect("it is there");
    assert_ne!(first.name, second.name);
    store.put(content.clone()).await.expect("put");
    store.drop_aside(&first).await.expect("drop");
    assert!(store.has(digest).await.expect("has"), "only what was aside goes");
    store.put_back(&second).await.expect("put back");
    assert_eq!(store.get(digest, 100).await.expect("get"), Some(content));
    assert!(store.asides().await.expect("asides").is_empty());
}

async fn what_is_gone_already_is_left_so(store: &dyn Origin) {
    assert_eq!(store.set_aside(Digest::of(b"another")).await.expect("set aside"), None);
    let digest = store.put(Bytes::from_static(b"an archive")).await.expect("put");
    let aside = store.set_aside(digest).await.expect("set aside").expect("it is there");
    store.drop_aside(&aside).await.expect("drop");
    store.drop_aside(&aside).await.expect("dropping again");
    store.put_back(&aside).await.expect("somebody else dropped it");
    assert!(!store.has(digest).await.expect("has"));
}
