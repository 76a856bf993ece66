//! PostgreSQL: the conformance suite on a real server, and what is its own.

use flux_store::SharedStore;
use flux_testkit::PostgresServer;

mod faults;

/// The URL of an empty store in a schema of its own.
fn url(server: &PostgresServer, schema: &str) -> String {
    let schema: String = schema.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    format!("{}?schema=t_{schema}", server.url())
}

async fn open(server: &PostgresServer, schema: &str) -> SharedStore {
    crate::open(&url(server, schema)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance() {
    let server = PostgresServer::start().await;
    flux_store::conformance_in_one!(async |clause: &str| open(&server, clause).await);
}
