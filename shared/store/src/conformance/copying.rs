//! Everything, read at once and put back.

use std::time::Duration;

use flux_protocol::{AgentId, Digest, ExecutionId, KeyId, OutcomeStatus, Scopes, SecretName};
use tokio::sync::mpsc;

use super::{at, digest, ended, failed_for_now, id, load, name, queued, spec, update};
use crate::{ApiKeyRecord, AuditEntry, Census, Claim, Entry, Part, SealedSecret, Store, StoreError};

/// Small, so that whoever sends waits.
const QUEUE: usize = 2;

async fn exported(store: &dyn Store) -> Vec<Entry> {
    let (into, mut entries) = mpsc::channel(QUEUE);
    let take = async {
        let mut all = Vec::new();
        while let Some(entry) = entries.recv().await {
            all.push(entry);
        }
        all
    };
    let (done, mut all) = tokio::join!(store.export(into), take);
    done.expect("export");
    all.sort_by_key(|entry| serde_json::to_string(entry).expect("an entry is JSON"));
    all
}

async fn import(store: &dyn Store, parts: impl IntoIterator<Item = Part>) -> Result<(), StoreError> {
    let (into, from) = mpsc::channel(QUEUE);
    let send = async {
        for part in parts {
            if into.send(part).await.is_err() {
                break;
            }
        }
        drop(into);
    };
    tokio::join!(store.import(from), send).0
}

fn key(number: u8) -> ApiKeyRecord {
    ApiKeyRecord {
        id: KeyId::parse(&format!("{number:06x}")).expect("an id"),
        name: "ci".to_owned(),
        scopes: Scopes::admin(),
        digest: digest("key"),
        previous: None,
        created_at: at(1),
        created_by: "root".to_owned(),
        rotated_at: None,
        expires_at: None,
        requests_per_second: Some(7),
        last_used_at: None,
    }
}

fn change(path: &str) -> AuditEntry {
    AuditEntry {
        at: at(5),
        who: "key".to_owned(),
        from: "127.0.0.1".to_owned(),
        method: "PUT".to_owned(),
        path: path.to_owned(),
        status: 200,
        request_id: "req".to_owned(),
        what: None,
    }
}

fn secret(sealed: &[u8]) -> SealedSecret {
    SealedSecret {
        name: SecretName::parse("TOKEN").expect("a name"),
        key: "k1".to_owned(),
        sealed: sealed.to_vec(),
        version: 0,
        created_at: at(3),
        updated_at: at(3),
    }
}

async fn claim(store: &dyn Store, execution: ExecutionId, second: i64) -> Claim {
    let (function, window) = (name("f"), Duration::from_secs(60));
    store.claim_idempotency(&function, "a:b c", digest("body"), execution, at(second), window).await.expect("claim")
}

/// Something of everything.
async fn fill(store: &dyn Store) {
    for n in 0..3 {
        store.deploy(&name("f"), digest(&n.to_string()), Some(&spec("f", 64 + n)), at(0)).await.expect("deploy");
    }
    store.rollback(&name("f"), 2).await.expect("rollback").expect("it is there");
    store.register(&spec("bare", 64), at(1)).await.expect("register");
    store.register(&spec("gone", 64), at(1)).await.expect("register");
    store.register(&spec("gone", 65), at(1)).await.expect("register");
    assert!(store.delete_function(&name("gone")).await.expect("delete"));
    // More than one step of any engine.
    for n in 0..250 {
        store.insert_queued(queued(id(10, n), "f", 10)).await.expect("accept");
    }
    let statuses = [
        update(ended(id(10, 1), "f", 1, OutcomeStatus::Success, 20), 1),
        update(ended(id(10, 2), "f", 1, OutcomeStatus::Failed, 20), 2),
        update(failed_for_now(id(10, 3), "f", 1, 20), 3),
    ];
    store.record(statuses.into()).await.expect("record");
    assert_eq!(claim(store, id(10, 1), 2).await, Claim::Claimed);
    assert!(store.insert_key(&key(1)).await.expect("a key") && store.insert_key(&key(2)).await.expect("a key"));
    store.keys_used(vec![(key(1).id, at(9))]).await.expect("used");
    store.put_secret(&secret(&[0, 255, 10, 0])).await.expect("a secret").expect("room");
    store.put_secret(&secret(b"two")).await.expect("a secret").expect("room");
    store.shared_key("tickets", [7; 32]).await.expect("a key");
    for n in 0..3 {
        store.audit(change(&format!("/{n}"))).await.expect("audit");
    }
}

pub async fn everything_comes_back_as_it_was(store: &dyn Store) {
    assert!(store.census().await.expect("census").is_empty());
    fill(store).await;
    assert_eq!(store.census().await.expect("census"), Census { functions: 2, executions: 250, keys: 2, secrets: 1 });
    let before = exported(store).await;
    let record = load(store, id(10, 1)).await;
    let function = store.function(&name("f")).await.expect("read");
    let lease = store.lease("reconciler", "a", at(0), Duration::from_secs(1)).await.expect("lease").expect("free");

    // Something else comes and goes.
    store.register(&spec("other", 64), at(30)).await.expect("register");
    store.delete_function(&name("f")).await.expect("delete");
    store
        .put_secret(&SealedSecret { name: SecretName::parse("X").expect("a name"), ..secret(b"x") })
        .await
        .expect("put");
    store.delete_key(&key(1).id).await.expect("delete");
    store.insert_queued(queued(id(40, 1), "other", 40)).await.expect("accept");
    store.record(vec![update(ended(id(10, 5), "f", 1, OutcomeStatus::Success, 41), 9)]).await.expect("record");
    let agent = AgentId::parse("a").expect("an id");
    assert!(store.claim_secrets(id(10, 5), 1, &agent, [1; 16], at(41)).await.expect("claim"));
    assert_ne!(exported(store).await, before);

    // A cluster of Redis cannot be emptied from here, and says so before it touches anything.
    // What Redis holds idempotency keys by may be read twice.
    let twice = before.iter().filter(|entry| matches!(entry, Entry::Idempotency(_)));
    let parts = || before.iter().chain(twice.clone()).cloned().map(Part::Entry).chain([Part::End]);
    match import(store, parts()).await {
        Ok(()) => {}
        Err(StoreError::Corrupt { problem }) if problem.contains("is a cluster and not empty") => return,
        Err(error) => panic!("{error:?}"),
    }
    assert_eq!(exported(store).await, before);
    assert_eq!(load(store, id(10, 1)).await, record);
    assert_eq!(store.function(&name("f")).await.expect("read"), function);
    assert_eq!(store.execution(id(40, 1)).await.expect("read"), None);
    let open = store.open_executions(at(1000), None, 1000).await.expect("list").len();
    assert_eq!(open, 248, "those without an outcome are looked after");
    assert_eq!(store.digests().await.expect("list").len(), 3);

    // And all goes on from there.
    let later = store.lease("reconciler", "b", at(60), Duration::from_secs(1)).await.expect("lease").expect("free");
    assert!(later.token > lease.token);
    assert_eq!(store.register(&spec("gone", 66), at(50)).await.expect("register").version.version, 3);
    let next = store.deploy(&name("f"), digest("next"), None, at(50)).await.expect("deploy");
    assert_eq!(next.version.version, 4, "counted from the last, not from the current one");
    assert_eq!(store.put_secret(&secret(b"three")).await.expect("put"), Some(3));
    store.audit(change("/later")).await.expect("audit");
    let log = store.audit_log(None, 10).await.expect("read");
    assert_eq!(log.iter().map(|(_, entry)| entry.path.as_str()).collect::<Vec<_>>(), ["/later", "/2", "/1", "/0"]);
    let again = claim(store, id(60, 1), 3).await;
    assert!(matches!(again, Claim::Held { execution_id, .. } if execution_id == id(10, 1)), "{again:?}");
    assert_eq!(store.shared_key("tickets", [8; 32]).await.expect("a key"), [7; 32]);
    assert!(store.claim_secrets(id(10, 5), 1, &agent, [2; 16], at(61)).await.expect("claim"), "forgotten");
    assert!(store.digests().await.expect("list").contains(&Digest::of(b"next")));
}

pub async fn what_breaks_off_is_said_and_can_be_done_again(store: &dyn Store) {
    fill(store).await;
    let before = exported(store).await;
    if import(store, before.iter().cloned().map(Part::Entry).chain([Part::End])).await.is_err() {
        return; // a cluster, as above
    }
    let broken = import(store, before.iter().take(40).cloned().map(Part::Entry)).await;
    assert!(matches!(broken, Err(StoreError::BrokenOff)), "{broken:?}");
    import(store, before.iter().cloned().map(Part::Entry).chain([Part::End])).await.expect("import");
    assert_eq!(exported(store).await, before);
}

/// Whoever reads may stop.
pub async fn nobody_waits_for_a_reader_that_went(store: &dyn Store) {
    fill(store).await;
    let (into, mut entries) = mpsc::channel(QUEUE);
    let take = async {
        let first = entries.recv().await;
        drop(entries);
        first
    };
    let (done, first) = tokio::join!(store.export(into), take);
    done.expect("it ends well");
    assert!(first.is_some());
    store.ping().await.expect("ping");
    store.register(&spec("after", 64), at(70)).await.expect("register");
}
