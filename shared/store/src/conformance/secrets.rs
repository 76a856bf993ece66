//! Secrets and their claims.

use flux_protocol::{AgentId, SecretName};

use super::{at, at_once, id};
use crate::{SealedSecret, Store};

fn secret(name: &str, sealed: &str, second: i64) -> SealedSecret {
    SealedSecret {
        name: SecretName::parse(name).expect("a name"),
        key: "k1".to_owned(),
        sealed: sealed.as_bytes().to_vec(),
        version: 0,
        created_at: at(second),
        updated_at: at(second),
    }
}

fn agent(name: &str) -> AgentId {
    AgentId::parse(name).expect("an id")
}

pub async fn a_secret_counts_its_versions(store: &dyn Store) {
    let put = async |name: &str, sealed: &str, second: i64| {
        store.put_secret(&secret(name, sealed, second)).await.expect("put").expect("room")
    };
    assert_eq!((put("B", "one", 1).await, put("A", "x", 2).await, put("B", "two", 3).await), (1, 1, 2));
    let kept = store.secret(&secret("B", "", 0).name).await.expect("read").expect("there");
    assert_eq!(kept, SealedSecret { version: 2, created_at: at(1), ..secret("B", "two", 3) });
    let names: Vec<String> =
        store.secrets().await.expect("list").iter().map(|secret| secret.name.to_string()).collect();
    assert_eq!(names, ["A", "B"]);
    assert!(store.delete_secret(&kept.name).await.expect("delete"));
    assert!(!store.delete_secret(&kept.name).await.expect("asked"));
    assert_eq!(store.secret(&kept.name).await.expect("read"), None);
}

pub async fn a_value_that_changed_is_not_resealed(store: &dyn Store) {
    store.put_secret(&secret("A", "one", 1)).await.expect("put");
    let other = |version| SealedSecret { version, key: "k2".to_owned(), ..secret("A", "one anew", 9) };
    assert!(store.reseal_secret(&other(1)).await.expect("asked"));
    store.put_secret(&secret("A", "two", 2)).await.expect("put");
    assert!(!store.reseal_secret(&other(1)).await.expect("asked"));
    let kept = store.secret(&other(1).name).await.expect("read").expect("there");
    assert_eq!(kept, SealedSecret { version: 2, created_at: at(1), ..secret("A", "two", 2) });
}

pub async fn of_sixteen_agents_one_is_given_an_attempts_secrets(store: &dyn Store) {
    let agents: Vec<AgentId> = (0..16).map(|n| agent(&format!("agent-{n}"))).collect();
    for attempt in 1..=10 {
        let claims =
            at_once(agents.iter().map(|agent| store.claim_secrets(id(1, 1), attempt, agent, [1; 16], at(1)))).await;
        assert_eq!(claims.into_iter().filter(|claim| *claim.as_ref().expect("claim")).count(), 1, "attempt {attempt}");
    }
}

pub async fn a_claim_is_repeated_by_its_agent_alone(store: &dyn Store) {
    let claim = async |who: &str, attempt: u32, nonce: u8| {
        store.claim_secrets(id(1, 1), attempt, &agent(who), [nonce; 16], at(5)).await.expect("claim")
    };
    assert!(claim("a", 1, 7).await);
    assert!(claim("a", 1, 7).await, "the answer was lost");
    assert!(!claim("a", 1, 8).await, "asked twice");
    assert!(!claim("b", 1, 7).await);
    assert!(claim("b", 2, 7).await, "another attempt");
    store.expire(at(6), 10).await.expect("expire");
    assert!(claim("b", 1, 9).await, "long over");
}
