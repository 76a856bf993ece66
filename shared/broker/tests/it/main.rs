//! All engines against the same clauses, then what only a real server can do to one.

mod autoscaler;
mod engines;
mod nats;
mod rabbit;
mod secure;
mod stolen;

/// One module for each engine, one test in it for each clause.
macro_rules! on_every_engine {
    ($($file:ident: $clause:ident,)*) => {
        mod on_memory {
            $(#[tokio::test]
            async fn $clause() {
                flux_broker::conformance::$file::$clause(&crate::engines::memory()).await;
            })*
        }
        mod on_nats {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let engine = crate::engines::Nats::start().await;
                flux_broker::conformance::$file::$clause(&engine.subject().await).await;
            })*
        }
    };
}

flux_broker::for_each_clause!(on_every_engine);
