//! API keys, the audit log, what gateways share.

use flux_protocol::{KeyId, Scopes};

use super::{at, at_once, digest};
use crate::{ApiKeyRecord, AuditEntry, PreviousKey, Store};

fn key(id: &str, second: i64) -> ApiKeyRecord {
    ApiKeyRecord {
        id: KeyId::parse(id).expect("an id"),
        name: format!("key {id}"),
        scopes: Scopes::admin(),
        digest: digest(id),
        previous: None,
        created_at: at(second),
        created_by: "somebody".to_owned(),
        rotated_at: None,
        expires_at: Some(at(second + 10)),
        requests_per_second: Some(7),
        last_used_at: None,
    }
}

pub async fn a_key_is_kept_until_it_is_deleted(store: &dyn Store) {
    let (first, second) = (key("a", 2), key("b", 1));
    assert!(store.insert_key(&first).await.expect("insert"));
    assert!(store.insert_key(&second).await.expect("insert"));
    assert!(!store.insert_key(&key("a", 9)).await.expect("asked"), "its id is taken");
    assert_eq!(store.api_keys().await.expect("read"), [second.clone(), first.clone()], "oldest first");
    assert!(store.delete_key(&first.id).await.expect("delete"));
    assert!(!store.delete_key(&first.id).await.expect("asked"));
    assert_eq!(store.api_keys().await.expect("read"), [second]);
}

pub async fn a_rotation_keeps_the_key_before_and_none_older(store: &dyn Store) {
    let made = key("a", 0);
    store.insert_key(&made).await.expect("insert");
    let rotate = async |text: &str, second: i64| {
        store.rotate_key(&made.id, digest(text), at(second), at(second + 5)).await.expect("rotate").expect("there")
    };
    let once = rotate("one", 10).await;
    assert_eq!(once.previous, Some(PreviousKey { digest: digest("a"), until: at(15) }));
    let twice = rotate("two", 11).await;
    assert_eq!(twice.digest, digest("two"));
    assert_eq!(twice.previous, Some(PreviousKey { digest: digest("one"), until: at(16) }));
    assert_eq!((&twice.scopes, twice.created_at, twice.expires_at), (&made.scopes, made.created_at, made.expires_at));
    assert_eq!(store.api_keys().await.expect("read"), [twice]);
    let nobody = KeyId::parse("nobody").expect("an id");
    assert_eq!(store.rotate_key(&nobody, digest("x"), at(1), at(2)).await.expect("asked"), None);
}

pub async fn the_latest_use_of_a_key_stays(store: &dyn Store) {
    let made = key("a", 0);
    store.insert_key(&made).await.expect("insert");
    let gone = KeyId::parse("gone").expect("an id");
    at_once(
        [30, 50, 40].map(|second| store.keys_used(vec![(made.id.clone(), at(second)), (gone.clone(), at(second))])),
    )
    .await
    .into_iter()
    .for_each(|said| said.expect("said"));
    let rotated = store.rotate_key(&made.id, digest("b"), at(60), at(61)).await.expect("rotate").expect("there");
    let [kept] = &store.api_keys().await.expect("read")[..] else { panic!("one key") };
    assert_eq!(kept.last_used_at, Some(at(50)));
    assert_eq!(*kept, rotated);
}

pub async fn what_is_shared_is_proposed_once(store: &dyn Store) {
    let shared = at_once((0..16).map(|n| store.shared_key("tickets", [n; 32]))).await;
    let shared: Vec<[u8; 32]> = shared.into_iter().map(|key| key.expect("a key")).collect();
    assert!(shared.iter().all(|key| *key == shared[0]), "{shared:?}");
    assert_eq!(store.shared_key("other", [99; 32]).await.expect("a key"), [99; 32]);
}

pub async fn the_audit_log_is_read_backwards(store: &dyn Store) {
    let entry = |n: i64| AuditEntry {
        at: at(n),
        who: "key a".to_owned(),
        from: "127.0.0.1:5".to_owned(),
        method: "PUT".to_owned(),
        path: format!("/secrets/S{n}"),
        status: 200,
        request_id: format!("req-{n}"),
        what: (n == 2).then(|| "version 3".to_owned()),
    };
    for n in 0..5 {
        store.audit(entry(n)).await.expect("written");
    }
    let page = store.audit_log(None, 2).await.expect("read");
    assert_eq!(page.iter().map(|(_, entry)| entry.clone()).collect::<Vec<_>>(), [entry(4), entry(3)]);
    let next = store.audit_log(Some(page[1].0), 10).await.expect("read");
    assert_eq!(next.iter().map(|(_, entry)| entry.clone()).collect::<Vec<_>>(), [entry(2), entry(1), entry(0)]);
    let later = at(2).plus(flux_protocol::limits::AUDIT_KEPT);
    store.expire(later, 10).await.expect("expire");
    let kept = store.audit_log(None, 10).await.expect("read");
    assert_eq!(kept.iter().map(|(_, entry)| entry.at).collect::<Vec<_>>(), [at(4), at(3), at(2)]);
}
