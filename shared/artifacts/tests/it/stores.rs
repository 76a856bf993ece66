//! Every place for archives keeps the seam's promises.

use std::{
    collections::HashMap,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use flux_artifacts::{
    ArtifactError, ArtifactStore, BlobArtifacts, Filesystem, Origin, Tiered,
    conformance::{Engine, every_clause, every_clause_of_an_origin},
};
use flux_broker::{Blobs, BrokerError};
use flux_protocol::{Digest, subject::CODE_BUCKET};

/// The blob seam in memory.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) blobs: Mutex<HashMap<String, Bytes>>,
}

#[async_trait]
impl Blobs for Memory {
    async fn put_blob(&self, bucket: &str, key: &str, content: Bytes) -> Result<(), BrokerError> {
        assert_eq!(bucket, CODE_BUCKET);
        assert!(key.len() == 64, "{key}");
        self.blobs.lock().expect("no panic").insert(key.to_owned(), content);
        Ok(())
    }

    async fn get_blob(&self, _: &str, key: &str, most: usize) -> Result<Option<Bytes>, BrokerError> {
        let found = self.blobs.lock().expect("no panic").get(key).cloned();
        match found {
            Some(content) if content.len() > most => Err(BrokerError::TooLarge { size: content.len(), limit: most }),
            found => Ok(found),
        }
    }

    async fn has_blob(&self, _: &str, key: &str) -> Result<bool, BrokerError> {
        Ok(self.blobs.lock().expect("no panic").contains_key(key))
    }

    async fn delete_blob(&self, _: &str, key: &str) -> Result<(), BrokerError> {
        self.blobs.lock().expect("no panic").remove(key);
        Ok(())
    }
}

const LISTS: Engine = Engine { lists: true };

#[tokio::test]
async fn filesystem() {
    let place = tempfile::tempdir().expect("a directory");
    let folders = AtomicUsize::new(0);
    let open = async || {
        let folder = place.path().join(folders.fetch_add(1, Ordering::SeqCst).to_string());
        Filesystem::open(folder).expect("open")
    };
    every_clause(LISTS, open).await;
    every_clause_of_an_origin(open).await;
}

#[tokio::test]
async fn blobs() {
    every_clause(Engine { lists: false }, async || BlobArtifacts::new(Arc::new(Memory::default()))).await;
}

#[tokio::test]
async fn tiered() {
    let place = tempfile::tempdir().expect("a directory");
    let folders = AtomicUsize::new(0);
    every_clause(LISTS, async || {
        let folder = place.path().join(folders.fetch_add(1, Ordering::SeqCst).to_string());
        let origin = Arc::new(Filesystem::open(folder).expect("open"));
        let distribution = Arc::new(BlobArtifacts::new(Arc::new(Memory::default())));
        Tiered::new(origin, distribution)
    })
    .await;
}

#[tokio::test]
async fn a_damaged_file_is_told_and_mended_by_putting_it_again() {
    let place = tempfile::tempdir().expect("a directory");
    let store = Filesystem::open(place.path()).expect("open");
    let content = Bytes::from_static(b"an archive");
    let digest = store.put(content.clone()).await.expect("put");
    let path = place.path().join("sha256").join(digest.hex());
    assert_eq!(std::fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
    for damage in [&b"an archivE"[..], b"an", b""] {
        std::fs::write(&path, damage).expect("write");
        let error = store.get(digest, 100).await.expect_err("it is another");
        assert!(matches!(error, ArtifactError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
        store.put(content.clone()).await.expect("put");
        assert_eq!(store.get(digest, 100).await.expect("get"), Some(content.clone()));
    }
    let names = std::fs::read_dir(place.path().join("sha256")).expect("list").count();
    assert_eq!(names, 1, "nothing else is left");
}

#[tokio::test]
async fn a_damaged_blob_is_never_given_out() {
    let memory = Arc::new(Memory::default());
    let store = BlobArtifacts::new(Arc::clone(&memory));
    let digest = Digest::of(b"an archive");
    memory.put_blob(CODE_BUCKET, &digest.hex(), Bytes::from_static(b"something else")).await.expect("put");
    assert!(matches!(store.get(digest, 100).await, Err(ArtifactError::Damaged { .. })));
}

#[tokio::test]
async fn what_the_distribution_lost_is_put_back() {
    let place = tempfile::tempdir().expect("a directory");
    let memory = Arc::new(Memory::default());
    let origin: Arc<dyn Origin> = Arc::new(Filesystem::open(place.path()).expect("open"));
    let distribution: Arc<dyn ArtifactStore> = Arc::new(BlobArtifacts::new(Arc::clone(&memory)));
    let store = Tiered::new(Arc::clone(&origin), Arc::clone(&distribution));
    let kept = store.put(Bytes::from_static(b"kept")).await.expect("put");
    let gone = store.put(Bytes::from_static(b"gone")).await.expect("put");
    memory.blobs.lock().expect("no panic").clear();
    origin.delete(gone).await.expect("delete");
    assert!(!store.has(kept).await.expect("has"), "agents cannot reach it");
    assert_eq!(store.get(kept, 100).await.expect("get"), Some(Bytes::from_static(b"kept")));
    assert_eq!(store.redistribute(&[kept, gone]).await.expect("redistribute"), [gone], "to be deployed again");
    assert!(store.has(kept).await.expect("has"));
    assert_eq!(distribution.get(kept, 100).await.expect("get"), Some(Bytes::from_static(b"kept")));
    // The other way round: what only the distribution has is found there.
    origin.delete(kept).await.expect("delete");
    assert_eq!(store.get(kept, 100).await.expect("get"), Some(Bytes::from_static(b"kept")));
}
