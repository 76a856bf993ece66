//! What is done each time the connection to the queue is made: find or make what it needs, and put back what its storage
//! lost. The store has all of it; the queue's tables and blobs are copies that agents can reach.
//!
//! Everything here is idempotent and every gateway does it; a copy that is there is left alone.

use std::{collections::HashSet, sync::Arc, time::Duration};

use flux_broker::Table;
use flux_protocol::{FunctionName, limits, time::now};

use super::Inner;
use crate::refusal::Refusal;

const TRY_AGAIN: Duration = Duration::from_millis(250);
/// In tables that are younger a function may be there, since it was deployed or rolled back meanwhile, without its other versions.
const TABLES_ARE_NEW_FOR: Duration = Duration::from_secs(300);

/// Runs for as long as the gateway does.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut connection = inner.broker.connection();
    let mut seen = *connection.borrow_and_update();
    // What was lost while no gateway was there.
    restore(&inner).await;
    loop {
        if connection.changed().await.is_err() {
            // The broker's handle is gone, and with it the process's work.
            std::future::pending::<()>().await;
        }
        let now = *connection.borrow_and_update();
        if now == 0 {
            tracing::warn!("the connection to the queue is down");
            metrics::gauge!("flux_queue_connected").set(0.0);
            continue;
        }
        if now == seen {
            continue;
        }
        seen = now;
        metrics::gauge!("flux_queue_connected").set(1.0);
        tracing::info!(connection = now, "the connection to the queue is back");
        inner.functions.forget_all();
        inner.hot.forget();
        let same = {
            let connection = connection.clone();
            move || *connection.borrow() == now
        };
        while let Err(error) = inner.broker.provision(&inner.pools).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot make what the queue needs; trying again");
            tokio::time::sleep(TRY_AGAIN).await;
            if !same() {
                break;
            }
        }
        if !same() {
            continue;
        }
        let searching = Arc::clone(&inner);
        inner.tasks.spawn("lost-calls", async move {
            let killed = searching.tasks.shutdown().kill_token();
            tokio::select! {
                () = searching.search_lost_calls() => {}
                () = killed.cancelled() => {}
            }
        });
        inner.reconcile_now.notify_one();
        restore(&inner).await;
    }
}

async fn restore(inner: &Arc<Inner>) {
    // Failing is either the queue going away again, which comes back here, or the store, which is asked again soon.
    for _ in 0..20 {
        match restore_all(inner).await {
            Ok(restored) => {
                if restored > 0 {
                    tracing::info!(restored, "functions that the queue had lost were put back");
                }
                return;
            }
            Err(refusal) => {
                tracing::warn!(
                    error = &refusal as &dyn std::error::Error,
                    "cannot put functions back into the queue; trying again"
                );
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

async fn restore_all(inner: &Arc<Inner>) -> Result<usize, Refusal> {
    let functions: HashSet<String> = inner.broker.keys(Table::Functions).await?.into_iter().collect();
    let versions: HashSet<String> = inner.broker.keys(Table::Versions).await?.into_iter().collect();
    let new = now().since(inner.broker.made_at(Table::Functions).await?) < TABLES_ARE_NEW_FOR;
    let mut digests = HashSet::new();
    let mut restored = 0;
    let mut cursor: Option<FunctionName> = None;
    loop {
        let page = inner.store.functions("", cursor.as_ref(), limits::PAGE).await?;
        let Some(last) = page.last() else { break };
        cursor = Some(last.name().clone());
        for current in &page {
            let there = functions.contains(current.name().as_str())
                && versions.contains(&super::functions::version_key(current.name(), current.version));
            let published = there && inner.is_published(current, &mut digests).await?;
            if published && !new {
                continue;
            }
            inner.restore_function(current, &versions, &mut digests).await?;
            restored += usize::from(!published);
        }
    }
    // Deleted in the store by a gateway that died before it said so.
    for key in functions {
        let Ok(name) = FunctionName::parse(&key) else { continue };
        if inner.store.function(&name).await?.is_none() {
            inner.publish_function(&name).await?;
        }
    }
    Ok(restored)
}
