//! What every engine that is a server does when that goes away, or hangs: said within a limit, and nothing acknowledged lost.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use flux_protocol::ExecutionId;
use flux_store::{SharedStore, StatusUpdate, StoreError};
use flux_testkit::eventually;
use parking_lot::Mutex;

use crate::durability::{accepted, ended};

/// Far beyond what a call may take: it is not the limit that is tested with a clock, but that there is one.
pub(crate) const GENEROUS: Duration = Duration::from_secs(60);
const WRITERS: usize = 8;

/// Writers that go on whatever happens, and note what was acknowledged.
pub(crate) struct Writing {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<(bool, ExecutionId)>>>,
    refused: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
}

impl Writing {
    pub(crate) fn start(store: &SharedStore) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let refused = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (store, stop) = (Arc::clone(store), Arc::clone(&stop));
            let (acknowledged, refused) = (Arc::clone(&acknowledged), Arc::clone(&refused));
            tasks.spawn(async move {
                for sequence in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let record = accepted();
                    let id = record.execution_id;
                    let as_ended = writer % 2 == 1;
                    let written = if as_ended {
                        store.record(vec![StatusUpdate { status: ended(id), sequence: Some(sequence) }]).await.map(drop)
                    } else {
                        store.insert_queued(record).await
                    };
                    match written {
                        Ok(()) => drop(acknowledged.lock().insert((as_ended, id))),
                        Err(error) => {
                            assert!(error.is_retryable(), "{error:?}");
                            refused.fetch_add(1, Ordering::Relaxed);
                            // As whoever is refused does; and no busy loop.
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            });
        }
        Self { stop, acknowledged, refused, tasks }
    }

    /// Until so many more were acknowledged than are now.
    pub(crate) async fn go_on(&mut self, more: usize) {
        let wanted = self.acknowledged.lock().len() + more;
        eventually(GENEROUS, format!("{more} more to be acknowledged"), || {
            while let Some(ended) = self.tasks.try_join_next() {
                ended.expect("a writer");
            }
            std::future::ready(self.acknowledged.lock().len() >= wanted)
        })
        .await;
    }

    pub(crate) async fn until_refused(&self) {
        let before = self.refused.load(Ordering::Relaxed);
        eventually(GENEROUS, "a call to be refused", || {
            std::future::ready(self.refused.load(Ordering::Relaxed) > before)
        })
        .await;
    }

    /// Stops, and gives what was acknowledged.
    pub(crate) async fn end(mut self) -> BTreeSet<(bool, ExecutionId)> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer");
        }
        std::mem::take(&mut *self.acknowledged.lock())
    }
}

pub(crate) async fn all_there(store: &SharedStore, acknowledged: &BTreeSet<(bool, ExecutionId)>) {
    for (as_ended, id) in acknowledged {
        let record = store.execution(*id).await.expect("read").unwrap_or_else(|| panic!("{id} is lost"));
        assert_eq!(record.is_terminal(), *as_ended, "{id}");
    }
}

/// A call to a server that does not answer comes back, and says that it may be tried again.
pub(crate) async fn is_unavailable(store: &SharedStore) {
    let calls = async {
        let statuses = vec![StatusUpdate { status: ended(ExecutionId::new()), sequence: Some(1) }];
        let all = tokio::join!(
            async { store.insert_queued(accepted()).await },
            async { store.record(statuses).await.map(drop) },
            async { store.execution(ExecutionId::new()).await.map(drop) },
            async { store.ping().await },
        );
        for called in [all.0, all.1, all.2, all.3] {
            assert!(matches!(called, Err(StoreError::Unavailable { .. })), "{called:?}");
        }
    };
    tokio::time::timeout(GENEROUS, calls).await.expect("a call hangs while its server does");
}

/// Each of these cannot be opened, says why, and never the secret.
pub(crate) async fn are_refused(urls: Vec<(String, &str)>, secret: &str) {
    let tuning = flux_store::Tuning::default();
    let opened = urls.iter().map(async |(url, said)| (url, said, flux_store::open(url, &tuning).await.err()));
    for (url, said, error) in futures::future::join_all(opened).await {
        let error = error.unwrap_or_else(|| panic!("{url} was opened"));
        let mut text = error.to_string();
        let mut below: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(error) = below {
            text = format!("{text}: {error}");
            below = error.source();
        }
        assert!(!text.contains(secret), "{text}");
        assert!(text.contains(said), "{url}: {text}");
    }
}

/// It works again, after its server does.
pub(crate) async fn comes_back(store: &SharedStore) {
    eventually(GENEROUS, "the store to answer again", || async { store.ping().await.is_ok() }).await;
    let record = accepted();
    store.insert_queued(record.clone()).await.expect("insert");
    assert_eq!(store.execution(record.execution_id).await.expect("read"), Some(record));
}
