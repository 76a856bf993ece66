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

/// Does it, and gives the lease back.
pub(crate) async fn keeping<T>(store: &dyn Store, name: &str, holder: &str, work: impl Future<Output = T>) -> T {
    let renew = async {
        loop {
            tokio::time::sleep(limits::BACKUP_ALIVE / 4).await;
            // A store that is being written as a whole does not take it, and nobody else can take it there either.
            if let Err(error) = store.lease(name, holder, now(), limits::BACKUP_ALIVE).await {
                tracing::debug!(error = &error as &dyn std::error::Error, name, "the lease was not renewed");
            }
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = renew => unreachable!("it goes on for ever"),
    };
    if let Err(error) = store.release_lease(name, holder).await {
        tracing::debug!(error = &error as &dyn std::error::Error, name, "the lease ends by itself");
    }
    done
}
