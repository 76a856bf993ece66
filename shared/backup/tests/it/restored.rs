//! Between stores in memory: a refusal changes nothing.

use std::{io::Write as _, time::Duration};

use flux_artifacts::{ArtifactStore as _, Filesystem};
use flux_backup::{BackupError, Copied, check, copy, fill, require_empty};
use flux_protocol::{Digest, SecretName, time::now};
use flux_store::{COPYING_LEASE, RECONCILER_LEASE, SealedSecret, SharedStore, Tuning};

use crate::made::{Content, head, header, name, small, version, written};

async fn store() -> SharedStore {
    flux_store::open("sqlite::memory:", &Tuning::default()).await.expect("a store")
}

fn archives(dir: &tempfile::TempDir) -> Filesystem {
    Filesystem::open(dir.path()).expect("a folder")
}

async fn take(store: &SharedStore, archives: &Filesystem, incomplete: bool) -> Result<Copied<Vec<u8>>, BackupError> {
    copy(&**store, archives, (header(), incomplete, "backup"), Vec::new()).await
}

fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

#[tokio::test]
async fn a_backup_of_what_was_restored_has_the_same_rows() {
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let archives = archives(&dir);
    let bytes = written(&small());
    let file = file(&bytes);
    let checked = check(&file).expect("whole");
    assert_eq!(checked.keys, small().keys);
    fill(&file, &*store, &archives, "restore", async || require_empty(&*store).await).await.expect("restored");
    assert!(archives.has(Digest::of(b"code")).await.expect("asked"));
    assert_eq!(store.function(&name("f")).await.expect("read").expect("there").current.version, 2);

    let taken = take(&store, &archives, false).await.and_then(|copied| copied.end(&small().keys)).expect("taken");
    assert_eq!(taken.counts, checked.counts);
    assert_eq!(taken.out, bytes, "byte for byte");
    // Nothing keeps either of them from being done again.
    let refused = fill(&file, &*store, &archives, "restore", async || require_empty(&*store).await).await;
    assert!(matches!(refused, Err(BackupError::NotEmpty { functions: 1, .. })), "{refused:?}");
    fill(&file, &*store, &archives, "other", async || Ok(())).await.expect("forced");
}

#[tokio::test]
async fn an_archive_that_is_nowhere_is_no_backup_unless_that_is_meant() {
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let archives = archives(&dir);
    let file = file(&written(&small()));
    fill(&file, &*store, &archives, "restore", async || Ok(())).await.expect("restored");
    let lost = Digest::of(b"code");
    archives.delete(lost).await.expect("deleted");
    let refused = take(&store, &archives, false).await.map(|_| ());
    assert!(matches!(&refused, Err(BackupError::Missing(all)) if *all == [lost]), "{refused:?}");
    let taken = take(&store, &archives, true).await.and_then(|copied| copied.end(&[])).expect("taken");
    assert_eq!(taken.missing, [lost]);
}

#[tokio::test]
async fn one_that_lacks_what_it_names_is_refused() {
    let current = Content { rows: vec![head("f", Some(3)), version("f", 2, b"code")], ..small() };
    let refused = check(&file(&written(&current))).expect_err("it has no version 3");
    assert!(refused.to_string().contains("lacks version 3 of f"), "{refused}");
    let code = Content { archives: Vec::new(), ..small() };
    let refused = check(&file(&written(&code))).expect_err("it has no code");
    assert!(refused.to_string().contains("lacks the code archive sha256:"), "{refused}");
}

/// A file that is exchanged after it was checked: the store is as it was.
#[tokio::test]
async fn what_breaks_off_in_the_middle_changes_nothing() {
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let archives = archives(&dir);
    store.register(&spec("kept"), now()).await.expect("registered");
    let mut bytes = written(&small());
    let at = bytes.windows(5).rposition(|window| window == b"ustar").expect("the head of its end");
    bytes.truncate(at);
    let broken = fill(&file(&bytes), &*store, &archives, "restore", async || Ok(())).await;
    assert!(matches!(broken, Err(BackupError::CutOff)), "{broken:?}");
    assert!(store.function(&name("kept")).await.expect("read").is_some());
    assert!(store.function(&name("f")).await.expect("read").is_none());
}

#[tokio::test]
async fn nothing_is_restored_where_a_gateway_lives_nor_copied_twice_at_once() {
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let archives = archives(&dir);
    let hour = Duration::from_secs(3600);
    store.lease(RECONCILER_LEASE, "gw-1", now(), hour).await.expect("asked").expect("taken");
    store.lease(COPYING_LEASE, "backup-1", now(), hour).await.expect("asked").expect("taken");
    let file = file(&written(&small()));
    let refused = fill(&file, &*store, &archives, "restore", async || unreachable!("not asked")).await;
    assert!(matches!(refused, Err(BackupError::GatewayAlive)), "{refused:?}");
    assert!(store.census().await.expect("census").is_empty());
    let refused = take(&store, &archives, false).await.map(|_| ());
    assert!(matches!(refused, Err(BackupError::Busy)), "{refused:?}");
}

/// A gateway that took over from a restore while that put archives: what it has is not replaced.
#[tokio::test]
async fn who_has_lost_the_store_changes_nothing_more() {
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let archives = archives(&dir);
    store.register(&spec("kept"), now()).await.expect("registered");
    let hour = Duration::from_secs(3600);
    let taken_over = async || -> Result<(), BackupError> {
        let lease = store.lease(RECONCILER_LEASE, "gw-1", now().plus(hour), hour).await?;
        assert!(lease.is_some(), "asked once, and not after it was taken over");
        Ok(())
    };
    let lost = fill(&file(&written(&small())), &*store, &archives, "restore", taken_over).await;
    assert!(matches!(lost, Err(BackupError::Overtaken)), "{lost:?}");
    assert!(store.function(&name("kept")).await.expect("read").is_some());
    assert!(store.function(&name("f")).await.expect("read").is_none());
}

/// What came to be there while archives were put is not replaced either.
#[tokio::test]
async fn whether_it_is_empty_is_asked_again_before_rows_are_replaced() {
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let confirm = async || -> Result<(), BackupError> {
        require_empty(&*store).await?;
        store.register(&spec("kept"), now()).await?;
        Ok(())
    };
    let refused = fill(&file(&written(&small())), &*store, &archives(&dir), "restore", confirm).await;
    assert!(matches!(refused, Err(BackupError::NotEmpty { functions: 1, .. })), "{refused:?}");
    assert!(store.function(&name("kept")).await.expect("read").is_some());
}

/// Whoever adds keys afterwards learns which there have to be.
#[tokio::test]
async fn a_backup_says_what_its_secrets_are_encrypted_with() {
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let sealed = |name: &str, key: &str| SealedSecret {
        name: SecretName::parse(name).expect("a name"),
        key: key.to_owned(),
        sealed: vec![1],
        version: 0,
        created_at: now(),
        updated_at: now(),
    };
    for secret in [sealed("A", "old"), sealed("B", "new"), sealed("C", "new")] {
        store.put_secret(&secret).await.expect("put").expect("room");
    }
    let copied = take(&store, &archives(&dir), false).await.expect("copied");
    assert_eq!(copied.sealed_with().iter().collect::<Vec<_>>(), ["new", "old"]);
}

/// What cannot be written is said, and the store is not read to its end for it.
#[tokio::test]
async fn a_full_disk_is_said() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (store, dir) = (store().await, tempfile::tempdir().expect("a folder"));
    let archives = archives(&dir);
    store.register(&spec("f"), now()).await.expect("registered");
    for room in [0, 600, 1200, 2000] {
        let full = copy(&*store, &archives, (header(), false, "backup"), Full(room))
            .await
            .and_then(|copied| copied.end(&[]))
            .map(|_| ());
        let Err(BackupError::Write(error)) = full else { panic!("{room}: {full:?}") };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{room}");
    }
}

fn spec(function: &str) -> flux_protocol::FunctionSpec {
    flux_protocol::function::parse_yaml(&format!("name: {function}\nhandler: run\n")).expect("YAML")
}
