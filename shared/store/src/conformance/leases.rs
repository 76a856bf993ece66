//! Leases.

use std::time::Duration;

use super::{at, at_once};
use crate::{Lease, Store};

async fn take(store: &dyn Store, holder: &str, second: i64) -> Option<Lease> {
    store.lease("reconciler", holder, at(second), Duration::from_secs(10)).await.expect("lease")
}

async fn token(store: &dyn Store, holder: &str, second: i64) -> u64 {
    take(store, holder, second).await.expect("it is free").token
}

pub async fn one_holder_at_a_time(store: &dyn Store) {
    let holders: Vec<String> = (0..16).map(|n| format!("gw-{n}")).collect();
    let taken = at_once(holders.iter().map(|holder| take(store, holder, 0))).await;
    let taken: Vec<Lease> = taken.into_iter().flatten().collect();
    let [lease] = &taken[..] else { panic!("{} have it", taken.len()) };
    assert_eq!((lease.token, lease.until), (1, at(10)), "nobody had it before");
    for holder in holders.iter().filter(|holder| **holder != lease.holder) {
        assert_eq!(take(store, holder, 9).await, None);
    }
    let other = store.lease("other", "gw-x", at(0), Duration::from_secs(10)).await.expect("lease");
    assert!(other.is_some(), "another name is another lease");
}

pub async fn renewing_keeps_the_token_and_nothing_else_does(store: &dyn Store) {
    let first = token(store, "a", 0).await;
    let renewed = take(store, "a", 9).await.expect("it is its own");
    assert_eq!((renewed.token, renewed.until, renewed.holder.as_str()), (first, at(19), "a"));
    assert_eq!(take(store, "b", 18).await, None);
    let second = token(store, "b", 19).await;
    assert!(second > first, "it changed hands");
    assert_eq!(take(store, "a", 20).await, None);
    let late = token(store, "b", 29).await;
    assert!(late > second, "it ran out, so another could have had it");
    store.release_lease("reconciler", "b").await.expect("release");
    let released = token(store, "b", 30).await;
    assert!(released > late, "the count outlives the lease");
}

pub async fn only_the_holder_releases(store: &dyn Store) {
    let first = token(store, "a", 0).await;
    store.release_lease("reconciler", "b").await.expect("release");
    store.release_lease("unknown", "a").await.expect("release");
    assert_eq!(take(store, "b", 1).await, None);
    store.release_lease("reconciler", "a").await.expect("release");
    assert!(token(store, "b", 1).await > first);
}
