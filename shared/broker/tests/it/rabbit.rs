//! RabbitMQ: every clause on one server, since one takes seconds to start; then what only a real server can do.

use std::{pin::Pin, sync::Arc};

use flux_broker::conformance::Subject;
use futures::{FutureExt as _, StreamExt as _};

use crate::engines::Rabbit;

type Clause = fn(Arc<Subject>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// The server is busy with several, and each has two connections.
const AT_ONCE: usize = 4;

macro_rules! clauses {
    ($($file:ident: $clause:ident,)*) => {
        [$((
            stringify!($clause),
            (|subject: Arc<Subject>| async move { flux_broker::conformance::$file::$clause(&subject).await }.boxed())
                as Clause,
        ),)*]
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_clause_holds() {
    let engine = Rabbit::start().await;
    let only = std::env::var("FLUX_CLAUSE").unwrap_or_default();
    let clauses = flux_broker::for_each_clause!(clauses);
    let failed: Vec<_> = futures::stream::iter(clauses.into_iter().filter(|(name, _)| name.contains(&only)))
        .map(|(name, clause)| {
            let engine = &engine;
            async move {
                let subject = Arc::new(engine.subject(name).await);
                let ran = tokio::spawn(clause(Arc::clone(&subject))).await;
                subject.broker.close().await;
                subject.other.close().await;
                ran.err().map(|panic| (name, panic.to_string()))
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(failed.is_empty(), "{failed:#?}");
}
