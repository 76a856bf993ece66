//! What SQLite is asked to open and must not, and what a full disk does.

use std::{fs, os::unix::fs::PermissionsExt as _};

use flux_store::{StatusUpdate, StoreError, Tuning};

use crate::{
    Scratch,
    durability::{accepted, ended},
};

async fn refusal(url: &str) -> StoreError {
    match flux_store::open(url, &Tuning::default()).await {
        Ok(_) => panic!("{url} was opened"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn urls() {
    for (url, said) in [
        ("flux.db", "starts with a scheme"),
        ("mysql://host/db", "`mysql` is not a kind of store; known: sqlite, postgres, redis"),
        ("sqlite:", "sqlite:///absolute/path"),
        ("sqlite://", "sqlite:///absolute/path"),
        ("sqlite:///tmp/", "sqlite:///absolute/path"),
        ("sqlite:///tmp/x?mode=ro", "without parameters"),
        ("sqlite:///no/such/directory/flux.db", "/no/such/directory does not exist"),
    ] {
        let error = refusal(url).await;
        assert!(matches!(error, StoreError::Url { .. }), "{url}: {error:?}");
        assert!(error.to_string().contains(said), "{url}: {error}");
        assert!(!error.is_retryable());
    }
    let error = refusal("mysql://flux:hunter2@host/db").await.to_string();
    assert!(error.contains("host/db") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_as_it_is() {
    for (content, said) in [
        (&b""[..], "is empty"),
        (&b"this is no database, but it is long enough to look at: ................................................."[..], "damaged"),
        (&b"SQLite format 3\0"[..], "damaged"),
    ] {
        let scratch = Scratch::new();
        fs::write(&scratch.path, content).expect("write");
        let error = refusal(&scratch.url).await;
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(said) && text.contains(&*scratch.path.to_string_lossy()), "{text}");
        assert_eq!(fs::read(&scratch.path).expect("read"), content, "it was not touched");
    }
}

#[tokio::test]
async fn damage_within_is_told_with_path_and_remedy() {
    let scratch = Scratch::new();
    let store = crate::open(&scratch.url).await;
    let records: Vec<_> = (0..500).map(|_| accepted()).collect();
    for record in &records {
        store.insert_queued(record.clone()).await.expect("insert");
    }
    store.close().await;
    drop(store);
    let mut content = fs::read(&scratch.path).expect("read");
    let from = content.len() / 4;
    let to = content.len() * 3 / 4;
    content[from..to].fill(0xa5);
    fs::write(&scratch.path, content).expect("write");
    let store = match flux_store::open(&scratch.url, &Tuning::default()).await {
        Ok(store) => store,
        Err(error) => return assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}"),
    };
    let mut said = None;
    for record in &records {
        if let Err(error) = store.execution(record.execution_id).await {
            said = Some(error);
        }
    }
    let error = said.expect("half of the file is gone");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&*scratch.path.to_string_lossy()) && text.contains("backup"), "{text}");
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    let scratch = Scratch::new();
    let other = rusqlite::Connection::open(&scratch.path).expect("open");
    other.execute_batch("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1)").expect("write");
    drop(other);
    let error = refusal(&scratch.url).await;
    assert!(error.to_string().contains("not one of Flux's"), "{error}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let scratch = Scratch::new();
    crate::open(&scratch.url).await.close().await;
    let file = rusqlite::Connection::open(&scratch.path).expect("open");
    file.pragma_update(None, "user_version", 99).expect("write");
    drop(file);
    let error = refusal(&scratch.url).await;
    assert!(matches!(error, StoreError::Corrupt { .. }));
    assert!(error.to_string().contains("schema 99") && error.to_string().contains("newer release"), "{error}");
}

#[tokio::test]
async fn a_log_without_its_database_is_refused() {
    let scratch = Scratch::new();
    let wal = scratch.directory.path().join("flux.db-wal");
    fs::write(&wal, b"what is left of a database that somebody removed").expect("write");
    let error = refusal(&scratch.url).await;
    assert!(error.to_string().contains("flux.db-wal"), "{error}");
    assert!(!scratch.path.exists());
}

#[tokio::test]
async fn the_file_is_the_owners_alone_and_nothing_else_is_left() {
    let scratch = Scratch::new();
    let store = crate::open(&scratch.url).await;
    store.insert_queued(accepted()).await.expect("insert");
    for entry in fs::read_dir(scratch.directory.path()).expect("list") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
    }
    store.close().await;
    drop(store);
    let names: Vec<_> =
        fs::read_dir(scratch.directory.path()).expect("list").map(|e| e.expect("an entry").file_name()).collect();
    assert!(
        names.contains(&"flux.db".into()) && names.iter().all(|name| name.to_string_lossy().starts_with("flux.db")),
        "{names:?}"
    );
}

#[tokio::test]
async fn a_full_disk_refuses_one_write_and_loses_none() {
    let scratch = Scratch::new();
    let tuning = Tuning { max_bytes: Some(600 * 1024), ..Tuning::default() };
    let store = flux_store::open(&scratch.url, &tuning).await.expect("open");
    let mut kept = Vec::new();
    let error = loop {
        let record = accepted();
        match store.insert_queued(record.clone()).await {
            Ok(()) => kept.push(record),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.is_retryable());
    assert!(kept.len() > 100);
    for record in &kept {
        assert_eq!(store.execution(record.execution_id).await.expect("read").as_ref(), Some(record));
    }
    // Large writes fail, small ones beside them in the same group do not: what expired made room for a few.
    let ends: Vec<_> = kept
        .iter()
        .take(50)
        .map(|record| StatusUpdate { status: ended(record.execution_id), sequence: Some(1) })
        .collect();
    let _ = store.record(ends).await;
    let removed = store.expire(flux_protocol::time::now(), 50).await.expect("removing needs no room");
    if !removed.is_empty() {
        store.insert_queued(accepted()).await.expect("there is room again");
    }
    store.ping().await.expect("it still answers");
}
