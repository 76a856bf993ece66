//! Which queues are hot: what there is to pull on. A queue that is put again although it is hot is a ring for every agent:
//! somebody knows that work waits there. Of a queue that gets hot a gateway tells one agent by name.

use std::collections::HashSet;

use flux_broker::{Broker, Change, Table};
use flux_protocol::{PoolName, subject::QueueName};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::{puller::Event, retry};

/// Follows the table for one pool, until the connection is closed for good.
pub(crate) async fn follow(broker: &dyn Broker, pool: &PoolName, events: mpsc::Sender<Event>) {
    let mut watch = retry::until_ok("watch the hot queues", || broker.watch(Table::Hot, false)).await;
    let mut seen = Seen::default();
    while let Some(change) = watch.next().await {
        let told = match change {
            Ok(Change::Put(entry)) => seen.put(queue(&entry.key, pool)),
            Ok(Change::Deleted { key, .. }) => seen.deleted(queue(&key, pool)),
            Ok(Change::Synced) => seen.synced(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the watch of hot queues stumbled");
                Vec::new()
            }
        };
        for event in told {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// What was told. The table is in memory: a broker that restarted says everything anew, and what it does not say
/// again is hot no more.
#[derive(Debug, Default)]
struct Seen {
    hot: HashSet<QueueName>,
    since_synced: HashSet<QueueName>,
}

impl Seen {
    fn put(&mut self, queue: Option<QueueName>) -> Vec<Event> {
        let Some(queue) = queue else { return Vec::new() };
        let is_new = self.hot.insert(queue.clone());
        self.since_synced.insert(queue.clone());
        vec![Event::Hot { queue, waits: !is_new }]
    }

    fn deleted(&mut self, queue: Option<QueueName>) -> Vec<Event> {
        let Some(queue) = queue else { return Vec::new() };
        self.hot.remove(&queue);
        self.since_synced.remove(&queue);
        vec![Event::Cold(queue)]
    }

    fn synced(&mut self) -> Vec<Event> {
        let said = std::mem::take(&mut self.since_synced);
        let gone: Vec<QueueName> = self.hot.difference(&said).cloned().collect();
        self.hot = said;
        gone.into_iter().map(Event::Cold).collect()
    }
}

fn queue(key: &str, pool: &PoolName) -> Option<QueueName> {
    QueueName::from_key(key).filter(|queue| queue.pool == *pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(key: &str) -> Option<QueueName> {
        queue(key, &PoolName::default())
    }

    #[test]
    fn what_a_new_table_does_not_say_again_is_cold() {
        let mut seen = Seen::default();
        assert!(named("call.other.f").is_none(), "another pool's");
        for key in ["call.default.f", "invoke.default.f", "invoke.default.g"] {
            assert!(matches!(seen.put(named(key))[..], [Event::Hot { waits: false, .. }]));
        }
        assert!(seen.synced().is_empty());
        seen.deleted(named("invoke.default.g"));
        // The table was made anew.
        seen.put(named("invoke.default.f"));
        let gone = seen.synced();
        assert!(matches!(&gone[..], [Event::Cold(queue)] if queue.key() == "call.default.f"), "{gone:?}");
    }
    #[test]
    fn work_is_known_to_wait_where_it_is_said_again() {
        let mut seen = Seen::default();
        assert!(matches!(seen.put(named("invoke.default.g"))[..], [Event::Hot { waits: false, .. }]));
        assert!(matches!(seen.put(named("invoke.default.g"))[..], [Event::Hot { waits: true, .. }]));
    }
}
