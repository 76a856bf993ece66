//! Which queues are hot: what there is to pull on. A queue that is put again although it is hot is a ring: somebody
//! knows that work waits there.

use flux_broker::{Broker, Change, Table};
use flux_protocol::{PoolName, subject::QueueName};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::{puller::Event, retry};

/// Follows the table for one pool, until the connection is closed for good.
pub(crate) async fn follow(broker: &dyn Broker, pool: &PoolName, events: mpsc::Sender<Event>) {
    let mut watch = retry::until_ok("watch the hot queues", || broker.watch(Table::Hot, false)).await;
    while let Some(change) = watch.next().await {
        let event = match change {
            Ok(Change::Put(entry)) => queue(&entry.key, pool).map(Event::Hot),
            Ok(Change::Deleted { key, .. }) => queue(&key, pool).map(Event::Cold),
            Ok(Change::Synced) => None,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the watch of hot queues stumbled");
                None
            }
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

fn queue(key: &str, pool: &PoolName) -> Option<QueueName> {
    QueueName::from_key(key).filter(|queue| queue.pool == *pool)
}
