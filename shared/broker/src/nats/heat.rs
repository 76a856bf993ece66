//! Hot and cold queues (DESIGN §4). A hot queue has a consumer and a key in the hot table.
//!
//! Which queues are hot is known here by following that table, so that the path of an invocation asks a map and
//! not the server, and learns when another gateway cooled one. Two gateways may heat and cool the same queue at
//! the same time; the steps of each are ordered so that whoever comes last finds what the other did:
//!
//! ```text
//! heat: consumer made, key put, consumer made again (it exists, unless it was cooled in between)
//! cool: consumer paused, nothing pending, key deleted, consumer deleted, then: messages or key there? heat
//! ```

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::HeaderName;
use bytes::Bytes;
use flux_protocol::{invocation::Lane, limits, subject, subject::QueueName, time::now};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::time::Instant;

use super::{
    core::{ApiFailure, Core},
    reader::{Follow, Followed},
    tables::{bucket, delete_key, get_key, put_key},
};
use crate::{BrokerError, Table};

/// On a ring: an agent pulled a hot queue that has no consumer.
pub(super) const MISSING: &str = "Flux-Missing";
/// That is said at most this often for one queue.
const SAY_MISSING_EVERY: Duration = Duration::from_secs(1);
const MISSING_REMEMBERED: usize = 4096;
/// A consumer is looked for again after this long: the server reaps those that nobody pulls for
/// [`limits::CONSUMER_INACTIVE`].
const VERIFY_EVERY: Duration = Duration::from_secs(600);
/// A consumer that is being cooled delivers nothing for this long, or until it is gone.
const PAUSED_FOR: Duration = Duration::from_secs(5);

type Heating = Shared<BoxFuture<'static, Result<(), Arc<BrokerError>>>>;

pub(super) struct Hot {
    core: Arc<Core>,
    view: Arc<View>,
    /// A queue that is being made hot, so that a burst on a cold one makes it once.
    heating: Mutex<HashMap<QueueName, Heating>>,
}

/// The hot table as far as it is known here.
#[derive(Default)]
pub(super) struct View {
    known: RwLock<Known>,
    following: std::sync::atomic::AtomicBool,
}

#[derive(Default)]
struct Known {
    hot: HashMap<QueueName, HotEntry>,
    /// The table's last revision that was heard of.
    revision: u64,
    /// The connection over which that is known.
    connects: u64,
}

struct HotEntry {
    revision: u64,
    /// When its consumer was last made or found from here. `None`: another gateway made it hot.
    verified: Option<Instant>,
}

impl View {
    fn is_hot(&self, queue: &QueueName, connects: u64) -> bool {
        let known = self.known.read();
        let verified = known.hot.get(queue).and_then(|entry| entry.verified);
        known.connects == connects && verified.is_some_and(|at| at.elapsed() < VERIFY_EVERY)
    }

    /// The table says so, whoever made it hot.
    fn is_in_table(&self, queue: &QueueName, connects: u64) -> bool {
        let known = self.known.read();
        known.connects == connects && known.hot.contains_key(queue)
    }

    /// Its consumer was found.
    fn found(&self, queue: &QueueName, connects: u64) -> bool {
        let mut known = self.known.write();
        let entry = if known.connects == connects { known.hot.get_mut(queue) } else { None };
        entry.map(|entry| entry.verified = Some(Instant::now())).is_some()
    }

    /// This process made it hot with `revision`.
    fn heated(&self, queue: QueueName, revision: u64, connects: u64) {
        let mut known = self.known.write();
        if known.connects != connects {
            *known = Known { connects, ..Known::default() };
        }
        let heard = known.revision >= revision;
        match known.hot.get_mut(&queue) {
            Some(entry) => entry.verified = Some(Instant::now()),
            // The table said so already, and that it was made cold since.
            None if heard => {}
            None => {
                known.hot.insert(queue, HotEntry { revision, verified: Some(Instant::now()) });
            }
        }
    }

    /// Whether it was taken for hot.
    pub(super) fn forget(&self, queue: &QueueName) -> bool {
        self.known.write().hot.remove(queue).is_some()
    }

    fn start_over(&self, connects: u64) {
        let mut known = self.known.write();
        let own = if known.connects == connects { std::mem::take(&mut known.hot) } else { HashMap::new() };
        *known = Known { hot: own, revision: 0, connects };
    }

    fn said(&self, key: &str, revision: u64, is_put: bool) {
        let Some(queue) = QueueName::from_key(key) else { return };
        let mut known = self.known.write();
        known.revision = known.revision.max(revision);
        match known.hot.get_mut(&queue) {
            Some(entry) if revision < entry.revision => {}
            Some(entry) if is_put => entry.revision = revision,
            Some(_) => {
                known.hot.remove(&queue);
            }
            None if is_put => {
                known.hot.insert(queue, HotEntry { revision, verified: None });
            }
            None => {}
        }
    }
}

impl Hot {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, view: Arc::default(), heating: Mutex::default() }
    }

    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    pub(super) async fn heat(&self, queue: &QueueName) -> Result<(), BrokerError> {
        if self.view.is_hot(queue, self.core.link_now().connects) {
            return Ok(());
        }
        self.follow();
        let heating = {
            let mut all = self.heating.lock();
            all.entry(queue.clone())
                .or_insert_with(|| {
                    make_hot(Arc::clone(&self.core), Arc::clone(&self.view), queue.clone())
                        .map(|made| made.map_err(Arc::new))
                        .boxed()
                        .shared()
                })
                .clone()
        };
        let made = heating.clone().await;
        let mut all = self.heating.lock();
        if all.get(queue).is_some_and(|current| current.ptr_eq(&heating)) {
            all.remove(queue);
        }
        drop(all);
        made.map_err(|error| again(&error))
    }

    pub(super) async fn cool(&self, queue: &QueueName) -> Result<bool, BrokerError> {
        let core = &self.core;
        let attempted = "make a queue cold";
        let consumer = format!("{}.{}", queue.stream(), queue.consumer());
        if self.is_idle(queue, &consumer).await? {
            delete_key(core, Table::Hot, &queue.key()).await?;
            self.view.forget(queue);
            match core.api::<serde_json::Value>(attempted, &format!("CONSUMER.DELETE.{consumer}"), Bytes::new()).await {
                Ok(_) => {}
                Err(ApiFailure::Api(error)) if error.is_consumer_not_found() => {}
                Err(failure) => return Err(failure.into_broker(attempted, &consumer)),
            }
        } else {
            return Ok(false);
        }
        // Something may have come in, or another gateway may have made it hot, since it was looked at.
        if core.depth(queue).await? == 0 && get_key(core, Table::Hot, &queue.key()).await?.is_none() {
            return Ok(true);
        }
        make_hot(Arc::clone(core), Arc::clone(&self.view), queue.clone()).await?;
        Ok(false)
    }

    /// Whether nothing waits or is worked on. The consumer delivers nothing from now on if so.
    async fn is_idle(&self, queue: &QueueName, consumer: &str) -> Result<bool, BrokerError> {
        let core = &self.core;
        match core.consumer(queue).await? {
            // Cold already.
            None => return Ok(true),
            Some(info) if info.num_pending > 0 || info.num_ack_pending > 0 => return Ok(false),
            Some(_) => {}
        }
        let attempted = "make a queue cold";
        let pause = format!("CONSUMER.PAUSE.{consumer}");
        let until = json!({ "pause_until": now().plus(PAUSED_FOR) }).to_string();
        match core.api::<serde_json::Value>(attempted, &pause, until).await {
            Ok(_) => {}
            Err(ApiFailure::Api(error)) if error.is_consumer_not_found() => return Ok(true),
            Err(failure) => return Err(failure.into_broker(attempted, consumer)),
        }
        match core.consumer(queue).await? {
            Some(info) if info.num_pending > 0 || info.num_ack_pending > 0 => {
                let resumed = core.api::<serde_json::Value>(attempted, &pause, Bytes::new()).await;
                resumed.map_err(|failure| failure.into_broker(attempted, consumer))?;
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    /// Starts to follow the hot table, once.
    fn follow(&self) {
        use std::sync::atomic::Ordering;
        if self.view.following.swap(true, Ordering::Relaxed) {
            return;
        }
        let (core, view) = (Arc::clone(&self.core), Arc::clone(&self.view));
        self.core.tasks.spawn("nats hot queues", async move {
            let closed = core.closed.clone();
            // Anew with each connection: what is known is a shortcut and must be right.
            let mut follow = Follow::new(Arc::clone(&core), bucket(Table::Hot), false).anew_on_reconnect();
            while let Some(heard) = tokio::select! {
                heard = follow.next() => heard,
                () = closed.cancelled() => None,
            } {
                match heard {
                    Followed::Restarted => view.start_over(core.link_now().connects),
                    Followed::Entry(entry) => view.said(&entry.key, entry.revision, entry.value.is_some()),
                    Followed::Synced => {}
                }
            }
        });
    }
}

async fn make_hot(core: Arc<Core>, view: Arc<View>, queue: QueueName) -> Result<(), BrokerError> {
    let connects = core.link_now().connects;
    let said = view.is_in_table(&queue, connects);
    make_consumer(&core, &queue).await?;
    // Where the table says so already, saying it again would only wake every agent. Unless it was cooled meanwhile.
    if said && view.found(&queue, connects) {
        return Ok(());
    }
    let revision = put_key(&core, Table::Hot, &queue.key(), Bytes::new(), None).await?;
    make_consumer(&core, &queue).await?;
    view.heated(queue, revision, connects);
    Ok(())
}

/// Makes the consumer that all agents share, or finds it.
pub(super) async fn make_consumer(core: &Core, queue: &QueueName) -> Result<(), BrokerError> {
    let attempted = "make a queue hot";
    let (stream, name, filter) = (queue.stream(), queue.consumer(), queue.subject());
    let body = json!({
        "stream_name": stream,
        "config": {
            "name": name,
            "durable_name": name,
            "filter_subject": filter,
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_policy": "explicit",
            "ack_wait": nanos(limits::ACK_WAIT),
            "max_deliver": -1,
            "max_ack_pending": limits::ACK_PENDING,
            "max_waiting": limits::PULLS_WAITING,
            "inactive_threshold": nanos(limits::CONSUMER_INACTIVE),
            "mem_storage": queue.lane == Lane::Call,
            "num_replicas": 0,
        },
    });
    core.api::<serde_json::Value>(attempted, &format!("CONSUMER.CREATE.{stream}.{name}.{filter}"), body.to_string())
        .await
        .map(|_| ())
        .or_else(|failure| match failure {
            // Made by another release: it serves as it is, and goes when the queue is cooled.
            ApiFailure::Api(error) if error.is_consumer_made_otherwise() => Ok(()),
            failure => Err(failure.into_broker(attempted, &filter)),
        })
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Core {
    /// Tells a gateway that a queue which the hot table names has no consumer. A hint: it may be lost.
    pub(super) async fn say_missing(&self, queue: &QueueName) {
        {
            let mut said = self.said_missing.lock();
            if said.len() >= MISSING_REMEMBERED {
                said.retain(|_, at| at.elapsed() < SAY_MISSING_EVERY);
            }
            match said.get(queue) {
                Some(at) if at.elapsed() < SAY_MISSING_EVERY => return,
                _ => said.insert(queue.clone(), Instant::now()),
            };
        }
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(HeaderName::from_static(MISSING), "consumer");
        if let Err(error) = self.client.publish_with_headers(subject::ring(queue), headers, Bytes::new()).await {
            tracing::debug!(%error, queue = %queue.key(), "a missing consumer could not be told");
        }
    }
}

/// The same error for another of those who waited for it.
fn again(error: &Arc<BrokerError>) -> BrokerError {
    let attempted = "make a queue hot";
    match &**error {
        BrokerError::Full { what } => BrokerError::Full { what: what.clone() },
        BrokerError::NotFound { what } => BrokerError::NotFound { what: what.clone() },
        BrokerError::Denied { attempted } => BrokerError::Denied { attempted: attempted.clone() },
        BrokerError::Closed => BrokerError::Closed,
        BrokerError::Unavailable { .. } => BrokerError::unavailable(attempted, Arc::clone(error)),
        _ => BrokerError::refused(attempted, Arc::clone(error)),
    }
}
