//! Tables and blobs.

use bytes::Bytes;
use flux_protocol::{
    limits,
    subject::{BLOB_BUCKET, CODE_BUCKET},
};
use futures::StreamExt as _;

use super::{Subject, function, within};
use crate::{BrokerError, Change, Entry, Table, Watch};

async fn next(watch: &mut Watch) -> Change {
    within("a change", watch.next()).await.expect("it goes on").expect("a change")
}

async fn put(watch: &mut Watch) -> Entry {
    match next(watch).await {
        Change::Put(entry) => entry,
        other => panic!("{other:?} instead of a put"),
    }
}

async fn synced(watch: &mut Watch) {
    match next(watch).await {
        Change::Synced => {}
        other => panic!("{other:?} instead of Synced"),
    }
}

pub async fn a_watch_tells_what_is_there_then_what_changes(on: &Subject) {
    for table in [Table::Versions, Table::Hot, Table::Agents, Table::Cancelled] {
        let mut empty = on.other.watch(table, false).await.expect("watch");
        synced(&mut empty).await;
        let first = on.broker.put(table, "a", "1".into()).await.expect("put");
        on.broker.put(table, "b.2", "2".into()).await.expect("put");
        let third = on.broker.put(table, "a", "3".into()).await.expect("put");
        assert!(third > first);

        // Of each key the last; the order among them is the table's.
        let mut watch = on.other.watch(table, false).await.expect("watch");
        let (one, two) = (put(&mut watch).await, put(&mut watch).await);
        assert_eq!((one.key.as_str(), &*one.value), ("b.2", b"2".as_slice()));
        assert_eq!((two.key.as_str(), &*two.value, two.revision), ("a", b"3".as_slice(), third));
        synced(&mut watch).await;
        on.broker.delete(table, "a").await.expect("delete");
        on.broker.put(table, "c", Bytes::new()).await.expect("put");
        for watch in [&mut watch, &mut empty] {
            // The one that was there from the start hears of all three before.
            let mut change = next(watch).await;
            while let Change::Put(entry) = &change
                && entry.key != "c"
            {
                change = next(watch).await;
            }
            let Change::Deleted { key, revision, .. } = change else { panic!("{change:?}") };
            assert!(key == "a" && revision > third);
            let last = put(watch).await;
            assert_eq!((last.key.as_str(), last.value.len()), ("c", 0));
        }
    }
}

pub async fn a_watch_with_history_tells_it_in_order(on: &Subject) {
    let mut expected = Vec::new();
    for n in 0..20_u32 {
        let key = if n % 2 == 0 { "even" } else { "odd" };
        let revision = on.broker.put(Table::Functions, key, n.to_string().into()).await.expect("put");
        expected.push((key.to_owned(), n.to_string(), revision));
    }
    let mut watch = on.other.watch(Table::Functions, true).await.expect("watch");
    let mut got = Vec::new();
    let mut at = None;
    for _ in 0..expected.len() {
        let entry = put(&mut watch).await;
        assert!(at <= Some(entry.at), "times go forward");
        at = Some(entry.at);
        got.push((entry.key, String::from_utf8_lossy(&entry.value).into_owned(), entry.revision));
    }
    assert_eq!(got, expected);
    synced(&mut watch).await;
}

pub async fn an_update_needs_the_last_revision(on: &Subject) {
    let (table, key) = (Table::Functions, "f");
    let conflict = |result: Result<u64, BrokerError>| match result {
        Err(BrokerError::Conflict { key }) => assert_eq!(key, "f"),
        other => panic!("{other:?} instead of a conflict"),
    };
    conflict(on.broker.update(table, key, "x".into(), 7).await);
    let first = on.broker.update(table, key, "1".into(), 0).await.expect("it did not exist");
    conflict(on.other.update(table, key, "x".into(), 0).await);
    let second = on.other.update(table, key, "2".into(), first).await.expect("the last revision");
    conflict(on.broker.update(table, key, "x".into(), first).await);
    let entry = on.broker.get(table, key).await.expect("get").expect("it is there");
    assert_eq!((&*entry.value, entry.revision), (b"2".as_slice(), second));
    on.broker.delete(table, key).await.expect("delete");
    on.other.update(table, key, "3".into(), 0).await.expect("it does not exist any more");
}

pub async fn what_is_deleted_is_gone(on: &Subject) {
    for table in [Table::Functions, Table::Hot] {
        assert!(on.broker.get(table, "a").await.expect("get").is_none());
        on.broker.put(table, "a", "1".into()).await.expect("put");
        on.broker.put(table, "b", "2".into()).await.expect("put");
        on.other.delete(table, "a").await.expect("delete");
        on.other.delete(table, "never").await.expect("deleting what is not there");
        assert!(on.broker.get(table, "a").await.expect("get").is_none());
        assert_eq!(on.broker.keys(table).await.expect("keys"), ["b"]);
    }
}

/// Not all the same byte, so that parts in another order are told.
fn content(size: usize) -> Bytes {
    (0..size).map(|n| ((n / 1024 + n) % 251).to_le_bytes()[0]).collect::<Vec<u8>>().into()
}

pub async fn blobs_come_back_as_they_were(on: &Subject) {
    for size in [0, 1, limits::INLINE_PAYLOAD, limits::INLINE_PAYLOAD + 1, 5 * limits::MIB, limits::PAYLOAD] {
        let key = format!("payload-{}", function());
        let sent = content(size);
        on.broker.put_blob(BLOB_BUCKET, &key, sent.clone()).await.expect("put");
        let got = within("the blob", on.other.get_blob(BLOB_BUCKET, &key, limits::PAYLOAD)).await.expect("get");
        assert!(got.as_ref() == Some(&sent), "{size} bytes came back as {:?}", got.map(|got| got.len()));
        if size > 0 {
            let error = on.other.get_blob(BLOB_BUCKET, &key, size - 1).await.expect_err("too large");
            assert!(matches!(error, BrokerError::TooLarge { size: is, limit } if is == size && limit == size - 1));
        }
        on.broker.delete_blob(BLOB_BUCKET, &key).await.expect("delete");
    }
}

pub async fn a_blob_is_replaced_and_deleted(on: &Subject) {
    let key = function().to_string();
    assert!(!on.broker.has_blob(CODE_BUCKET, &key).await.expect("has"));
    assert!(on.broker.get_blob(CODE_BUCKET, &key, limits::MIB).await.expect("get").is_none());
    let (old, new) = (content(3 * limits::MIB), content(2 * limits::MIB + 5));
    on.broker.put_blob(CODE_BUCKET, &key, old.clone()).await.expect("put");
    // Who reads while it is replaced gets the one or the other.
    let reading = async {
        for _ in 0..10 {
            let got = on.other.get_blob(CODE_BUCKET, &key, limits::PAYLOAD).await.expect("get");
            assert!(got.as_ref().is_some_and(|got| *got == old || *got == new), "a part of a blob");
        }
    };
    let (put, ()) = tokio::join!(on.broker.put_blob(CODE_BUCKET, &key, new.clone()), reading);
    put.expect("put");
    assert!(on.other.get_blob(CODE_BUCKET, &key, limits::PAYLOAD).await.expect("get").as_ref() == Some(&new));
    assert!(on.other.has_blob(CODE_BUCKET, &key).await.expect("has"));
    assert!(!on.other.has_blob(BLOB_BUCKET, &key).await.expect("has"), "buckets are apart");
    let listed = async || {
        let all = on.other.list_blobs(CODE_BUCKET).await.expect("list");
        all.map(|all| all.into_iter().filter(|blob| blob.key == key).map(|blob| blob.bytes).collect::<Vec<_>>())
    };
    // Once, however often it was put; an engine may say that it cannot list.
    assert!(listed().await.is_none_or(|sizes| sizes == [new.len() as u64]));
    on.other.delete_blob(CODE_BUCKET, &key).await.expect("delete");
    on.other.delete_blob(CODE_BUCKET, &key).await.expect("deleting what is not there");
    assert!(listed().await.is_none_or(|sizes| sizes.is_empty()));
    assert!(!on.broker.has_blob(CODE_BUCKET, &key).await.expect("has"));
    assert!(on.broker.get_blob(CODE_BUCKET, &key, limits::PAYLOAD).await.expect("get").is_none());
}
