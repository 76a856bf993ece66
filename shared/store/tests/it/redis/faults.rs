//! A Redis that goes away, hangs, fails over, or is not to be used as it is.

use flux_store::{StoreError, Tuning};
use flux_testkit::RedisServer;

use crate::server::{Writing, all_there, comes_back, is_unavailable};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_one_that_hangs() {
    // What `everysec` may lose in its last second is not what this is about.
    let mut server = RedisServer::start_with("appendfsync always").await;
    let store = crate::open(&server.url()).await;
    let mut writing = Writing::start(&store);
    writing.go_on(500).await;
    server.kill9();
    writing.until_refused().await;
    server.restart().await;
    writing.go_on(500).await;
    server.pause();
    is_unavailable(&store).await;
    server.resume();
    writing.go_on(500).await;
    let acknowledged = writing.end().await;
    all_there(&store, &acknowledged).await;
    comes_back(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_cluster_that_is_killed() {
    let mut servers = RedisServer::start_cluster(3).await;
    // With `everysec` a node that is killed while it syncs has lost what it acknowledged meanwhile: seen here.
    assert_eq!(servers[1].cli(&["CONFIG", "SET", "appendfsync", "always"]), "OK");
    let store = crate::open(&super::cluster_url(&servers)).await;
    let mut writing = Writing::start(&store);
    writing.go_on(300).await;
    servers[1].kill9();
    writing.until_refused().await;
    servers[1].restart().await;
    writing.go_on(300).await;
    let acknowledged = writing.end().await;
    all_there(&store, &acknowledged).await;
}

/// The primary dies and its replica takes its place. What the replica had not got yet is gone: Redis copies after it
/// acknowledges. So only what was acknowledged before the replica was in step is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_name_another_primary() {
    let mut primary = RedisServer::start().await;
    let replica = RedisServer::start_replica(&primary).await;
    let mut sentinels = Vec::new();
    for _ in 0..3 {
        sentinels.push(RedisServer::start_sentinel(&primary, 2).await);
    }
    for sentinel in &sentinels {
        flux_testkit::eventually(crate::server::GENEROUS, "sentinels to know each other and the replica", || {
            let master = sentinel.cli(&["SENTINEL", "MASTER", "flux"]);
            let lines: Vec<&str> = master.lines().collect();
            let of = |name: &str| lines.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
            std::future::ready(of("num-slaves") == Some("1") && of("num-other-sentinels") == Some("2"))
        })
        .await;
    }
    let hosts: Vec<String> = sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
    let store = crate::open(&format!("redis+sentinel://{}/flux", hosts.join(","))).await;
    let mut writing = Writing::start(&store);
    writing.go_on(300).await;
    let acknowledged = writing.end().await;
    // `WAIT` is about what its own connection wrote, which was nothing.
    let offset = |server: &RedisServer| {
        let info = server.cli(&["INFO", "replication"]);
        let line = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).map(str::trim);
        line.and_then(|offset| offset.parse::<u64>().ok()).expect("it says")
    };
    let written = offset(&primary);
    flux_testkit::eventually(crate::server::GENEROUS, "the replica to have it all", || {
        std::future::ready(offset(&replica) >= written)
    })
    .await;

    let mut writing = Writing::start(&store);
    writing.go_on(50).await;
    // Who calls waits until there is another, which takes less than a call may.
    primary.kill9();
    writing.go_on(300).await;
    drop(writing.end().await);
    all_there(&store, &acknowledged).await;
    assert!(replica.cli(&["INFO", "replication"]).contains("role:master"));
    comes_back(&store).await;
}

#[tokio::test]
async fn a_server_that_throws_away_is_refused() {
    let server = RedisServer::start_with("maxmemory 64mb\nmaxmemory-policy allkeys-lru").await;
    let refusal = async |url: &str, tuning: &Tuning| match flux_store::open(url, tuning).await {
        Ok(_) => panic!("{url} was opened"),
        Err(error) => error,
    };
    let error = refusal(&server.url(), &Tuning::default()).await;
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("noeviction"), "{error}");
    assert!(!error.is_retryable());

    let power = Tuning { durability: flux_store::Durability::Power, ..Tuning::default() };
    let server = RedisServer::start().await;
    let error = refusal(&server.url(), &power).await;
    assert!(error.to_string().contains("`appendfsync` is `everysec`"), "{error}");
    server.cli(&["CONFIG", "SET", "appendfsync", "always"]);
    flux_store::open(&server.url(), &power).await.expect("it syncs now");
    server.cli(&["CONFIG", "SET", "appendonly", "no"]);
    let error = refusal(&server.url(), &power).await;
    assert!(error.to_string().contains("append-only"), "{error}");

    server.cli(&["HSET", "flux:meta", "schema", "99"]);
    let error = refusal(&server.url(), &Tuning::default()).await;
    assert!(error.to_string().contains("schema 99") && error.to_string().contains("newer release"), "{error}");
}

#[tokio::test]
async fn a_full_server_refuses_one_write_and_loses_none() {
    let server = RedisServer::start().await;
    let store = crate::open(&server.url()).await;
    let used: u64 = {
        let info = server.cli(&["INFO", "memory"]);
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("it says");
        used.trim().parse().expect("a number")
    };
    server.cli(&["CONFIG", "SET", "maxmemory", &(used + 2 * 1024 * 1024).to_string()]);
    let mut kept = Vec::new();
    let error = loop {
        let record = crate::durability::accepted();
        match store.insert_queued(record.clone()).await {
            Ok(()) => kept.push(record),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    for record in &kept {
        assert_eq!(store.execution(record.execution_id).await.expect("read").as_ref(), Some(record));
    }
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    comes_back(&store).await;
}

#[tokio::test]
async fn what_cannot_be_opened_is_said_without_its_password() {
    let server = RedisServer::start_with("requirepass correct").await;
    let port = server.port();
    let mut refused = Vec::new();
    for (url, said) in [
        (format!("redis://:hunter2@127.0.0.1:{port}"), "out of reach"),
        ("redis://user:hunter2@127.0.0.1:1".to_owned(), "out of reach"),
        (format!("redis://:hunter2@127.0.0.1:{port}?prefix=A-b"), "`prefix`"),
        ("redis+sentinel://:hunter2@127.0.0.1:1".to_owned(), "the service's name is missing"),
        ("redis+sentinel://:hunter2@127.0.0.1:1/flux?sentinel_password=hunter2".to_owned(), "out of reach"),
        ("redis+cluster://:hunter2@127.0.0.1:1/3".to_owned(), "no numbered databases"),
        ("redis+cluster://:hunter2@127.0.0.1:1".to_owned(), "out of reach"),
        ("redis+ring://:hunter2@127.0.0.1:1".to_owned(), "not a kind of store"),
    ] {
        refused.push((url, said));
    }
    crate::server::are_refused(refused, "hunter2").await;
    flux_store::open(&format!("redis://:correct@127.0.0.1:{port}"), &Tuning::default()).await.expect("open");
}
