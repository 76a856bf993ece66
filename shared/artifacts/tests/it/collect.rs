//! Archives that nobody names go, and no others, whoever deploys, collects and dies meanwhile.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_artifacts::{
    ArtifactError, ArtifactStore, BlobArtifacts, Filesystem, Tiered,
    collect::{Collected, Names, Rule, collect},
};
use flux_broker::Blobs;
use flux_protocol::{Digest, Timestamp, limits, time::now};
use flux_testkit::Seed;

use crate::stores::Memory;

struct World {
    _place: tempfile::TempDir,
    memory: Arc<Memory>,
    archives: Tiered,
    /// Function -> what its version names.
    names: Mutex<HashMap<usize, Digest>>,
}

impl World {
    fn new() -> Arc<Self> {
        let place = tempfile::tempdir().expect("a directory");
        let memory = Arc::new(Memory::default());
        let origin = Arc::new(Filesystem::open(place.path()).expect("open"));
        let archives = Tiered::new(origin, Arc::new(BlobArtifacts::new(Arc::clone(&memory))));
        Arc::new(Self { _place: place, memory, archives, names: Mutex::default() })
    }

    fn named(&self) -> HashSet<Digest> {
        self.names.lock().expect("no panic").values().copied().collect()
    }

    /// As a gateway does it.
    async fn deploy(&self, function: usize, content: Bytes, dawdles: u64) {
        let digest = self.archives.put(content.clone()).await.expect("put");
        dawdle(dawdles).await;
        self.names.lock().expect("no panic").insert(function, digest);
        tokio::task::yield_now().await;
        if !self.archives.has(digest).await.expect("has") {
            self.archives.put(content).await.expect("put");
        }
    }

    async fn collect(&self, now: Timestamp, grace: Duration, dry_run: bool) -> Collected {
        collect(&self.archives, self, Rule { now, grace, dry_run, force: true }).await.expect("collect")
    }

    async fn is_whole(&self, digest: Digest) -> bool {
        self.archives.origin.has(digest).await.expect("has")
            && self.archives.distribution.has(digest).await.expect("has")
    }
}

#[async_trait]
impl Names for World {
    type Error = ArtifactError;

    async fn named(&self) -> Result<HashSet<Digest>, ArtifactError> {
        let named = World::named(self);
        // The answer is of the moment that it was asked for, and takes a while.
        dawdle(4).await;
        Ok(named)
    }
}

/// For as long as so many small things take.
async fn dawdle(steps: u64) {
    for _ in 0..steps {
        tokio::task::spawn_blocking(|| ()).await.expect("it runs");
    }
}

fn content(number: usize) -> Bytes {
    format!("archive {number}").into()
}

#[tokio::test]
async fn what_nobody_names_goes_once_its_grace_is_over() {
    let world = World::new();
    world.deploy(1, content(1), 0).await;
    let (named, orphan) = (Digest::of(&content(1)), Digest::of(&content(2)));
    world.archives.put(content(2)).await.expect("put");
    let (soon, late) = (now(), now().plus(limits::ARCHIVE_GRACE * 2));

    let collected = world.collect(soon, limits::ARCHIVE_GRACE, false).await;
    assert_eq!((collected.removed.len(), collected.kept), (0, 2), "somebody may be about to name it");
    let would = world.collect(late, limits::ARCHIVE_GRACE, true).await;
    assert!(would.removed.iter().map(|stored| stored.digest).eq([orphan]), "{would:?}");
    assert!(world.is_whole(orphan).await, "a dry run touches nothing");

    let collected = world.collect(late, limits::ARCHIVE_GRACE, false).await;
    assert_eq!(collected.removed, would.removed);
    assert!(!world.archives.origin.has(orphan).await.expect("has"));
    assert!(!world.archives.distribution.has(orphan).await.expect("has"));
    assert_eq!(world.archives.get(orphan, 100).await.expect("get"), None);
    assert!(world.is_whole(named).await);
    assert_eq!(world.collect(late, limits::ARCHIVE_GRACE, false).await.removed, []);
}

#[tokio::test]
async fn the_names_of_another_store_take_nothing_unless_forced() {
    let world = World::new();
    for number in 0..40 {
        world.deploy(number, content(number), 0).await;
    }
    let late = now().plus(limits::ARCHIVE_GRACE * 2);
    let unforced = async || {
        let rule = Rule { now: late, grace: limits::ARCHIVE_GRACE, dry_run: false, force: false };
        collect(&world.archives, &*world, rule).await
    };
    let listed = async || world.archives.origin.list().await.expect("list").expect("it lists").len();
    // One that a collector that died left aside is not dropped either.
    world.archives.origin.set_aside(Digest::of(&content(39))).await.expect("set aside");
    let names = std::mem::take(&mut *world.names.lock().expect("no panic"));
    let refused = unforced().await.expect_err("a new store names nothing");
    assert!(matches!(refused, ArtifactError::NeedsForce { going: 40, of: 40, named: 0 }), "{refused:?}");
    assert_eq!((listed().await, world.archives.origin.asides().await.expect("asides").len()), (39, 1));
    assert_eq!(
        world.collect(late, limits::ARCHIVE_GRACE, true).await.removed.len(),
        40,
        "a dry run says what would go"
    );

    let only = |count| names.clone().into_iter().filter(move |(number, _)| *number < count);
    *world.names.lock().expect("no panic") = only(19).collect();
    let refused = unforced().await.expect_err("most would go");
    assert!(matches!(refused, ArtifactError::NeedsForce { going: 21, of: 40, named: 19 }), "{refused:?}");
    assert_eq!((listed().await, world.archives.origin.asides().await.expect("asides").len()), (39, 1));
    *world.names.lock().expect("no panic") = only(20).collect();
    assert_eq!(unforced().await.expect("half may go").removed.len(), 20);
    *world.names.lock().expect("no panic") = only(10).collect();
    assert_eq!(unforced().await.expect("half may go").removed.len(), 10);
    *world.names.lock().expect("no panic") = only(1).collect();
    assert_eq!(unforced().await.expect("so few may go even where they are most").removed.len(), 9);
    world.names.lock().expect("no panic").clear();
    unforced().await.expect_err("nothing is named");
    assert_eq!(world.collect(late, limits::ARCHIVE_GRACE, false).await.removed.len(), 1, "forced");
}

#[tokio::test]
async fn a_collection_puts_back_what_its_dead_predecessor_set_aside_and_what_a_place_lost() {
    let world = World::new();
    for number in 1..=3 {
        world.deploy(number, content(number), 0).await;
    }
    let [aside, lost_by_queue, lost_by_origin] = [1, 2, 3].map(|number| Digest::of(&content(number)));
    world.archives.put(content(4)).await.expect("put");
    for digest in [aside, Digest::of(&content(4))] {
        world.archives.origin.set_aside(digest).await.expect("set aside").expect("it is there");
        world.archives.distribution.delete(digest).await.expect("delete");
    }
    // Meanwhile it is found where it is.
    assert_eq!(world.archives.get(aside, 100).await.expect("get"), Some(content(1)));
    world.memory.delete_blob(flux_protocol::subject::CODE_BUCKET, &lost_by_queue.hex()).await.expect("delete");
    world.archives.origin.delete(lost_by_origin).await.expect("delete");
    let collected = world.collect(now(), limits::ARCHIVE_GRACE, false).await;
    assert!(collected.removed.iter().map(|stored| stored.digest).eq([Digest::of(&content(4))]), "{collected:?}");
    assert_eq!((collected.mended, &collected.lost[..]), (2, &[][..]));
    for digest in [aside, lost_by_queue, lost_by_origin] {
        assert!(world.is_whole(digest).await, "{digest}");
    }
    // What is nowhere is said.
    world.archives.delete(aside).await.expect("delete");
    assert_eq!(world.collect(now(), limits::ARCHIVE_GRACE, false).await.lost, [aside]);
}

/// Deployments, deletions and two collections with no grace at all, in every order that two threads find.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_named_is_lost_beside_collections_that_never_end() {
    const FUNCTIONS: usize = 4;
    let mut seed = Seed::of_this_run();
    let world = World::new();
    let ended = Arc::new(AtomicBool::new(false));
    let mut collectors = tokio::task::JoinSet::new();
    for number in 0..2 {
        let (world, ended) = (Arc::clone(&world), Arc::clone(&ended));
        collectors.spawn(async move {
            let mut removed = 0;
            while !ended.load(Ordering::SeqCst) {
                // One of them dies each time between setting aside and looking again.
                if number == 1 {
                    let named = World::named(&world);
                    for stored in world.archives.origin.list().await.expect("list").expect("it lists") {
                        if !named.contains(&stored.digest) {
                            drop(world.archives.origin.set_aside(stored.digest).await.expect("set aside"));
                            world.archives.distribution.delete(stored.digest).await.expect("delete");
                        }
                    }
                }
                let later = now().plus(Duration::from_secs(5));
                removed += world.collect(later, Duration::ZERO, false).await.removed.len();
            }
            removed
        });
    }
    let mut deployers = tokio::task::JoinSet::new();
    for function in 0..FUNCTIONS {
        let world = Arc::clone(&world);
        let choices: Vec<usize> = (0..150).map(|_| usize::try_from(seed.below(8)).expect("small")).collect();
        let mut seed = seed.fork();
        deployers.spawn(async move {
            for choice in choices {
                if choice == 0 {
                    world.names.lock().expect("no panic").remove(&function);
                    tokio::task::yield_now().await;
                    continue;
                }
                // Few archives for many deployments: the same ones come and go.
                let which = function * 10 + choice % 3;
                world.deploy(function, content(which), seed.below(12)).await;
                let digest = Digest::of(&content(which));
                dawdle(seed.below(12)).await;
                // It may be on its way aside or back; it stays so for no longer than a collection.
                let deadline = std::time::Instant::now() + Duration::from_secs(30);
                while world.archives.get(digest, 100).await.expect("get") != Some(content(which)) {
                    assert!(std::time::Instant::now() < deadline, "{digest} was deployed and is gone");
                }
            }
        });
    }
    deployers.join_all().await;
    ended.store(true, Ordering::SeqCst);
    let removed: usize = collectors.join_all().await.into_iter().sum();
    world.collect(now().plus(Duration::from_secs(5)), Duration::ZERO, false).await;
    let named = World::named(&world);
    for digest in &named {
        assert!(world.is_whole(*digest).await, "{digest} is named and gone");
    }
    let there = world.archives.origin.list().await.expect("list").expect("it lists");
    assert_eq!(there.iter().map(|stored| stored.digest).collect::<HashSet<_>>(), named, "nothing else is left");
    assert!(removed > 0, "no collection removed anything: nothing was tried");
}
