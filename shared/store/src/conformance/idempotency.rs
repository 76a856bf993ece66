//! Idempotency keys.

use std::time::Duration;

use super::{at, at_once, digest, id, name};
use crate::{Claim, Store};

const WINDOW: Duration = Duration::from_secs(100);

pub async fn the_first_claim_holds_the_key(store: &dyn Store) {
    let claim = async |function: &str, key: &str, n: u64, second: i64| {
        let body = digest(&n.to_string());
        store.claim_idempotency(&name(function), key, body, id(1, n), at(second), WINDOW).await.expect("claim")
    };
    let held = Claim::Held { execution_id: id(1, 1), body: digest("1"), at: at(10) };
    assert_eq!(claim("f", "k", 1, 10).await, Claim::Claimed);
    assert_eq!(claim("f", "k", 2, 11).await, held);
    assert_eq!(claim("f", "k", 1, 12).await, held, "by itself");
    assert_eq!(claim("g", "k", 3, 13).await, Claim::Claimed, "another function's key is another key");
    assert_eq!(claim("f", "K", 4, 14).await, Claim::Claimed);
    assert_eq!(claim("f", "k", 5, 15).await, held, "asking does not prolong or change it");
}

pub async fn of_sixteen_at_once_one_claims(store: &dyn Store) {
    for round in 0..20 {
        let key = format!("key {round}");
        let function = name("f");
        let claims =
            at_once((0..16).map(|n| store.claim_idempotency(&function, &key, digest("body"), id(1, n), at(1), WINDOW)))
                .await;
        let claims: Vec<Claim> = claims.into_iter().map(|claim| claim.expect("claim")).collect();
        let winners: Vec<usize> = (0..16).filter(|n| claims[*n] == Claim::Claimed).collect();
        let [winner] = winners[..] else { panic!("{} claimed it", winners.len()) };
        for (n, claim) in claims.iter().enumerate().filter(|(n, _)| *n != winner) {
            let held = Claim::Held { execution_id: id(1, winner as u64), body: digest("body"), at: at(1) };
            assert_eq!(*claim, held, "claimer {n}");
        }
    }
}

pub async fn a_key_runs_out(store: &dyn Store) {
    let claim = async |n: u64, second: i64| {
        store.claim_idempotency(&name("f"), "k", digest("b"), id(1, n), at(second), WINDOW).await.expect("claim")
    };
    assert_eq!(claim(1, 0).await, Claim::Claimed);
    assert!(matches!(claim(2, 99).await, Claim::Held { .. }));
    assert_eq!(claim(3, 100).await, Claim::Claimed);
    let Claim::Held { execution_id, at: since, .. } = claim(4, 150).await else { panic!("it is held") };
    assert_eq!((execution_id, since), (id(1, 3), at(100)));
}

pub async fn only_its_execution_releases_a_key(store: &dyn Store) {
    let claim = async |n: u64| {
        store.claim_idempotency(&name("f"), "k", digest("b"), id(1, n), at(1), WINDOW).await.expect("claim")
    };
    assert_eq!(claim(1).await, Claim::Claimed);
    store.release_idempotency(&name("f"), "k", id(1, 2)).await.expect("release");
    store.release_idempotency(&name("f"), "other", id(1, 1)).await.expect("release");
    assert!(matches!(claim(3).await, Claim::Held { .. }));
    store.release_idempotency(&name("f"), "k", id(1, 1)).await.expect("release");
    assert_eq!(claim(4).await, Claim::Claimed);
}
