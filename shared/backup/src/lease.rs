//! A lease that is kept while something is done.

use std::time::Duration;

use flux_protocol::{limits, time::now};
use flux_store::Store;

use crate::BackupError;

const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Takes a lease, waiting for so long for one that may be a dead one's. False: somebody has it.
pub(crate) async fn take(store: &dyn Store, name: &str, holder: &str, patience: Duration) -> Result<bool, BackupError> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if store.lease(name, holder, now(), limits::BACKUP_ALIVE).await?.is_some() {
            return Ok(true);
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Does it, and gives the lease back. Ends it where somebody else has the lease.
pub(crate) async fn keeping<T>(
    store: &dyn Store,
    name: &str,
    holder: &str,
    work: impl Future<Output = Result<T, BackupError>>,
) -> Result<T, BackupError> {
    renewing(store, (name, holder), limits::BACKUP_ALIVE / 4, work).await
}

async fn renewing<T>(
    store: &dyn Store,
    (name, holder): (&str, &str),
    every: Duration,
    work: impl Future<Output = Result<T, BackupError>>,
) -> Result<T, BackupError> {
    let lost = async {
        loop {
            tokio::time::sleep(every).await;
            match store.lease(name, holder, now(), limits::BACKUP_ALIVE).await {
                Ok(Some(_)) => {}
                Ok(None) => return,
                // A store that is being written as a whole does not take it, and nobody else can take it there either.
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, name, "the lease was not renewed");
                }
            }
        }
    };
    let done = tokio::select! {
        biased;
        done = work => done,
        () = lost => Err(BackupError::Overtaken),
    };
    if let Err(error) = store.release_lease(name, holder).await {
        tracing::debug!(error = &error as &dyn std::error::Error, name, "the lease ends by itself");
    }
    done
}

#[cfg(test)]
mod tests {
    use flux_store::{RECONCILER_LEASE, Tuning};

    use super::*;

    /// A restore that stood still for so long that a gateway took over.
    #[tokio::test]
    async fn work_ends_where_somebody_else_has_the_lease() {
        let store = flux_store::open("sqlite::memory:", &Tuning::default()).await.expect("a store");
        let (hour, kept) = (Duration::from_secs(3600), (RECONCILER_LEASE, "restore"));
        assert!(take(&*store, RECONCILER_LEASE, "restore", Duration::ZERO).await.expect("asked"));
        let work = async {
            store.lease(RECONCILER_LEASE, "gw-1", now().plus(hour), hour).await.expect("asked").expect("taken over");
            std::future::pending::<Result<(), BackupError>>().await
        };
        let ended = renewing(&*store, kept, Duration::from_millis(1), work).await;
        assert!(matches!(ended, Err(BackupError::Overtaken)), "{ended:?}");
        assert!(!take(&*store, RECONCILER_LEASE, "restore", Duration::ZERO).await.expect("asked"), "it has it still");
    }
}
