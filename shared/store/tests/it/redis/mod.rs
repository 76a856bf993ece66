//! Redis: the conformance suite on one server and on a cluster, and what is its own.

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
