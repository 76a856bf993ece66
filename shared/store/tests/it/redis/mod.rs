//! Redis: the conformance suite on one server and on a cluster, and what is its own.

use flux_protocol::{AgentId, ExecutionId, Timestamp};
use flux_store::SharedStore;
use flux_testkit::RedisServer;

mod faults;

/// What the names of a clause's keys begin with.
fn prefix(clause: &str) -> String {
    let name: String = clause.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    format!("t_{name}")
}

async fn open(url: &str, clause: &str) -> SharedStore {
    crate::open(&format!("{url}?prefix={}", prefix(clause))).await
}

/// The cluster's URL.
fn cluster_url(servers: &[RedisServer]) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    format!("redis+cluster://{}", hosts.join(","))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance() {
    let server = RedisServer::start().await;
    let url = server.url();
    flux_store::conformance_in_one!(async |clause: &str| open(&url, clause).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_of_a_cluster() {
    let servers = RedisServer::start_cluster(3).await;
    let url = cluster_url(&servers);
    flux_store::conformance_in_one!(async |clause: &str| open(&url, clause).await);
}

/// However many there are: what is left each time would pile up for ever.
#[tokio::test]
async fn every_old_claim_of_secrets_is_forgotten() {
    let server = RedisServer::start().await;
    let store = open(&server.url(), "claims").await;
    let (execution, agent) = (ExecutionId::new(), AgentId::parse("a").expect("a name"));
    let at = Timestamp::from_micros;
    let claim = async |attempt: u32, when: i64| {
        store.claim_secrets(execution, attempt, &agent, [u8::try_from(when).expect("small"); 16], at(when)).await
    };
    for attempt in 1..=1000 {
        assert!(claim(attempt, 1).await.expect("claim"));
    }
    assert!(claim(1001, 9).await.expect("claim"));
    assert!(store.expire(at(5), 100).await.expect("expire").is_empty());
    let left = server.cli(&["--scan", "--pattern", "*:c:*"]);
    assert_eq!(left.lines().count(), 1, "the one that is not old: {left}");
    assert!(!claim(1001, 5).await.expect("claim"), "it is another's");
    assert!(claim(1, 5).await.expect("claim"));
}
