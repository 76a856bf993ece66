//! Archives that no version names any more: removed when somebody asks, and once a day by the gateway that reconciles.
//! Why that is safe beside deployments is in [`flux_artifacts::collect`].

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use flux_artifacts::{
    ArtifactError,
    collect::{Collected, Names, Rule, collect},
};
use flux_protocol::{Digest, ErrorCode, limits, time::now};
use flux_store::{COPYING_LEASE, StoreError};

use super::{Gateway, Inner, functions::artifact_refusal};
use crate::refusal::Refusal;

/// Whoever takes this lease collects; nobody gives it back while the day lasts.
const DAY: &str = "archives-collected";
/// The token of a lease that nobody had before.
const FIRST: u64 = 1;

/// Either store is in the way.
pub(super) enum Failed {
    Archives(ArtifactError),
    Names(StoreError),
    /// Somebody copies archives away, and may need what nobody names any more.
    Copied,
}

impl From<ArtifactError> for Failed {
    fn from(error: ArtifactError) -> Self {
        Self::Archives(error)
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Archives(error) => artifact_refusal(error),
            Failed::Names(error) => error.into(),
            Failed::Copied => Self::new(
                ErrorCode::BackupRunning,
                "a backup is being made, and no code archive is removed meanwhile; try again when it has ended",
            ),
        }
    }
}

#[async_trait]
impl Names for Inner {
    type Error = Failed;

    /// Asked last of all before anything is dropped. A backup that takes its lease later than that finds in its store what was
    /// named then, and nothing that was dropped.
    async fn named(&self) -> Result<HashSet<Digest>, Failed> {
        let asking = format!("{}-{:016x}", self.id, rand::random::<u64>());
        // For no time at all: it only tells whether somebody has it.
        let free = self.store.lease(COPYING_LEASE, &asking, now(), Duration::ZERO).await.map_err(Failed::Names)?;
        if free.is_none() {
            return Err(Failed::Copied);
        }
        Ok(self.store.digests().await.map_err(Failed::Names)?.into_iter().collect())
    }
}

impl Gateway {
    /// Removes archives that no version names and that were not put within [`limits::ARCHIVE_GRACE`], in every place; with
    /// `dry_run` says which.
    ///
    /// # Errors
    /// The store or a place of archives is out of reach; or most archives would go, or none is named, and it is not forced.
    pub async fn collect_archives(&self, dry_run: bool, force: bool) -> Result<Collected, Refusal> {
        self.inner.require_open()?;
        self.inner.collect_archives(dry_run, force).await
    }
}

impl Inner {
    async fn collect_archives(&self, dry_run: bool, force: bool) -> Result<Collected, Refusal> {
        let rule = Rule { now: now(), grace: limits::ARCHIVE_GRACE, dry_run, force };
        let collected = Box::pin(collect(&self.artifacts, self, rule)).await?;
        for digest in &collected.lost {
            tracing::error!(%digest, "a code archive is in no place any more; deploy the function again");
        }
        if !dry_run {
            let bytes: u64 = collected.removed.iter().map(|stored| stored.bytes).sum();
            metrics::counter!("flux_archives_removed_total").increment(collected.removed.len() as u64);
            tracing::info!(
                removed = collected.removed.len(),
                bytes,
                kept = collected.kept,
                mended = collected.mended,
                "code archives were collected"
            );
        }
        Ok(collected)
    }

    /// Collects if nobody did for a day. In a store where nobody ever did, a day later: it may be one that was meant to be another.
    pub(super) async fn collect_daily(&self) {
        // Each try is a holder of its own: a lease that is held is not renewed but refused.
        let holder = format!("{}-{:016x}", self.id, rand::random::<u64>());
        match self.store.lease(DAY, &holder, now(), limits::ARCHIVES_COLLECTED_EVERY).await {
            Ok(Some(lease)) if lease.token == FIRST => {
                tracing::info!("code archives that no version of this store names are collected from tomorrow on");
                return;
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot ask whether archives were collected");
                return;
            }
        }
        if let Err(refusal) = self.collect_archives(false, false).await {
            if refusal.code == ErrorCode::NeedsForce {
                // Tomorrow again.
                tracing::error!(
                    error = &refusal as &dyn std::error::Error,
                    "code archives were not collected; `flux gc --dry-run` says what would go"
                );
                return;
            }
            tracing::warn!(
                error = &refusal as &dyn std::error::Error,
                "code archives cannot be collected now; trying again"
            );
            if let Err(error) = self.store.release_lease(DAY, &holder).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "archives are collected tomorrow");
            }
        }
    }
}
