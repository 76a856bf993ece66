//! The agents' code cache.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_artifacts::{ArtifactError, ArtifactStore, CacheError, CodeCache, Filesystem, Stored};
use flux_protocol::Digest;
use tokio::sync::Semaphore;

use crate::zips::{PROGRAM, entry, zip};

/// An origin that counts, and lets each fetch wait for a permit.
struct Origin {
    files: Filesystem,
    fetches: AtomicUsize,
    permits: Semaphore,
}

#[async_trait]
impl ArtifactStore for Origin {
    async fn put(&self, content: Bytes) -> Result<Digest, ArtifactError> {
        self.files.put(content).await
    }
    async fn get(&self, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let _permit = self.permits.acquire().await.expect("it is never closed");
        self.files.get(digest, most).await
    }
    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        self.files.has(digest).await
    }
    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        self.files.delete(digest).await
    }
    async fn list(&self) -> Result<Option<Vec<Stored>>, ArtifactError> {
        self.files.list().await
    }
}

struct Setup {
    place: tempfile::TempDir,
    origin: Arc<Origin>,
}

impl Setup {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let files = Filesystem::open(place.path().join("origin")).expect("open");
        let origin = Origin { files, fetches: AtomicUsize::new(0), permits: Semaphore::new(1000) };
        Self { place, origin: Arc::new(origin) }
    }

    fn directory(&self) -> std::path::PathBuf {
        self.place.path().join("cache")
    }

    fn cache(&self, capacity_bytes: u64) -> CodeCache {
        let origin: Arc<dyn ArtifactStore> = Arc::clone(&self.origin) as _;
        CodeCache::new(self.directory(), capacity_bytes, origin).expect("open")
    }

    /// An archive with one program of 1000 bytes.
    async fn archive(&self, name: &str) -> Digest {
        let content = format!("{name:<1000}");
        self.origin.put(zip(&[entry("run", PROGRAM, content)]).into()).await.expect("put")
    }

    fn fetches(&self) -> usize {
        self.origin.fetches.load(Ordering::SeqCst)
    }
}

fn whole(directory: &Path) -> usize {
    let names = fs::read_dir(directory).expect("list").map(|entry| entry.expect("an entry").file_name());
    names.filter(|name| name.len() == 64).count()
}

/// Deleting goes on in the background; there is nothing to wait on but the disk itself.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_fetch_once() {
    let setup = Setup::new();
    let cache = setup.cache(1 << 20);
    let digest = setup.archive("a").await;
    let held = setup.origin.permits.acquire_many(1000).await.expect("all permits");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let cache = cache.clone();
        waiting.spawn(async move { cache.ensure(digest).await.expect("ensure") });
    }
    until("somebody fetches", || setup.fetches() == 1).await;
    drop(held);
    let all = waiting.join_all().await;
    assert!(all.iter().all(|code| Arc::ptr_eq(code, &all[0])));
    assert_eq!(setup.fetches(), 1);
    let code = &all[0];
    assert_eq!((code.digest(), code.bytes(), cache.len(), cache.bytes()), (digest, 1000, 1, 1000));
    assert!(fs::read_to_string(code.path().join("run")).expect("read").starts_with('a'));
    assert!(Arc::ptr_eq(&cache.ensure(digest).await.expect("ensure"), code));
    assert!(cache.get(digest).is_some() && cache.get(Digest::of(b"x")).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_fetches_may_be_dropped() {
    let setup = Setup::new();
    let cache = setup.cache(1 << 20);
    let digest = setup.archive("a").await;
    let held = setup.origin.permits.acquire_many(1000).await.expect("all permits");
    let leader = {
        let cache = cache.clone();
        let mut leader = tokio::task::JoinSet::new();
        leader.spawn(async move { drop(cache.ensure(digest).await) });
        leader
    };
    until("the first fetches", || setup.fetches() == 1).await;
    let mut follower = tokio::task::JoinSet::new();
    follower.spawn({
        let cache = cache.clone();
        async move { cache.ensure(digest).await.map(|code| code.digest()) }
    });
    drop(leader);
    until("the second takes over", || setup.fetches() == 2).await;
    drop(held);
    assert_eq!(follower.join_next().await.expect("it ends").expect("no panic").expect("ensure"), digest);
}

#[tokio::test]
async fn a_failure_is_told_to_all_and_tried_again() {
    let setup = Setup::new();
    let cache = setup.cache(1 << 20);
    let missing = Digest::of(b"missing");
    let error = cache.ensure(missing).await.expect_err("it is nowhere");
    assert!(matches!(error, CacheError::Missing { .. }) && !error.is_retryable(), "{error:?}");
    let hostile = setup.origin.put(zip(&[entry("../x", PROGRAM, "x")]).into()).await.expect("put");
    let error = cache.ensure(hostile).await.expect_err("it is not taken");
    assert!(matches!(error, CacheError::Unpack { .. }) && !error.is_retryable(), "{error:?}");
    assert_eq!((cache.len(), whole(&setup.directory())), (0, 0));
    let names: Vec<_> =
        fs::read_dir(setup.directory()).expect("list").map(|e| e.expect("an entry").file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".unpack")), "{names:?}");

    let digest = setup.archive("a").await;
    setup.origin.delete(digest).await.expect("delete");
    cache.ensure(digest).await.expect_err("not yet");
    setup.archive("a").await;
    cache.ensure(digest).await.expect("now it is there");
}

#[tokio::test]
async fn the_least_used_goes_and_never_one_in_use() {
    let setup = Setup::new();
    let cache = setup.cache(2500);
    let (a, b, c) = (setup.archive("a").await, setup.archive("b").await, setup.archive("c").await);
    let held = cache.ensure(a).await.expect("ensure");
    drop(cache.ensure(b).await.expect("ensure"));
    drop(cache.ensure(c).await.expect("ensure"));
    assert_eq!((cache.len(), cache.bytes()), (2, 2000));
    assert!(cache.get(b).is_none(), "a is older, but in use");
    let directory = setup.directory();
    until("b is deleted", || !directory.join(b.hex()).exists()).await;
    assert!(held.path().join("run").exists());
    // Now a is the least used that nobody holds.
    drop(held);
    drop(cache.ensure(c).await.expect("ensure"));
    drop(cache.ensure(b).await.expect("ensure"));
    assert!(cache.get(a).is_none() && cache.get(c).is_some());
    until("a is deleted", || !directory.join(a.hex()).exists()).await;
    assert_eq!(setup.fetches(), 4);
    // One that is larger than everything else together still runs.
    let big = setup.origin.put(zip(&[entry("run", PROGRAM, "x".repeat(9000))]).into()).await.expect("put");
    let code = cache.ensure(big).await.expect("ensure");
    assert!(code.path().join("run").exists());
    assert_eq!(cache.len(), 1);
}

#[tokio::test]
async fn a_start_takes_over_what_is_whole_and_removes_the_rest() {
    let setup = Setup::new();
    let digest = setup.archive("a").await;
    drop(setup.cache(1 << 20).ensure(digest).await.expect("ensure"));
    let directory = setup.directory();
    fs::create_dir_all(directory.join(".unpack-dead/code")).expect("make");
    fs::create_dir_all(directory.join(".gone-dead/code")).expect("make");
    let half = Digest::of(b"half");
    fs::create_dir_all(directory.join(half.hex()).join("code")).expect("make");
    fs::write(directory.join("README"), "somebody's").expect("write");
    let cache = setup.cache(1 << 20);
    assert_eq!((cache.len(), cache.bytes()), (1, 1000));
    assert_eq!(cache.ensure(digest).await.expect("ensure").bytes(), 1000);
    assert_eq!(setup.fetches(), 1, "it was there");
    let mut names: Vec<String> = fs::read_dir(&directory)
        .expect("list")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let mut wanted = [".boot".to_owned(), ".lock".to_owned(), "README".to_owned(), digest.hex()];
    wanted.sort_unstable();
    assert_eq!(names, wanted);
}

#[tokio::test]
async fn what_was_written_before_the_machines_start_is_not_believed() {
    let setup = Setup::new();
    let digest = setup.archive("a").await;
    drop(setup.cache(1 << 20).ensure(digest).await.expect("ensure"));
    fs::write(setup.directory().join(".boot"), "another boot").expect("write");
    let cache = setup.cache(1 << 20);
    assert_eq!((cache.len(), whole(&setup.directory())), (0, 0));
    cache.ensure(digest).await.expect("ensure");
    assert_eq!(setup.fetches(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_share_a_directory() {
    let setup = Setup::new();
    let (a, b) = (setup.archive("a").await, setup.archive("b").await);
    let (one, two) = (setup.cache(1500), setup.cache(1500));
    let (held, _) = tokio::join!(one.ensure(a), two.ensure(a));
    let held = held.expect("ensure");
    // The second agent needs room, and has forgotten its own use of `a`; the first still runs it.
    drop(two.ensure(b).await.expect("ensure"));
    assert!(two.get(a).is_none());
    // A third comes up meanwhile.
    let three = setup.cache(1500);
    assert!(!three.is_empty());
    assert!(fs::read_to_string(held.path().join("run")).expect("read").starts_with('a'), "it is still there");
    drop(two.ensure(a).await.expect("ensure"));

    // All together, with room for one of four.
    let digests = [a, b, setup.archive("c").await, setup.archive("d").await];
    let mut agents = tokio::task::JoinSet::new();
    for agent in 0..4_usize {
        let cache = setup.cache(1500);
        agents.spawn(async move {
            for round in 0..40 {
                let which = (agent * 7 + round * 3) % 4;
                let code = cache.ensure(digests[which]).await.expect("ensure");
                let run = fs::read_to_string(code.path().join("run")).expect("it is whole while it is held");
                assert!(run.starts_with(["a", "b", "c", "d"][which]) && run.len() == 1000);
            }
        });
    }
    while let Some(agent) = agents.join_next().await {
        agent.expect("an agent");
    }
}
