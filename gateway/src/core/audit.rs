//! The log of changes.

use flux_protocol::limits;
use flux_store::AuditEntry;

use super::Gateway;
use crate::refusal::Refusal;

impl Gateway {
    /// Writes an entry; where that fails, the log of the process has it. The change that it tells of is made already.
    pub async fn audit(&self, entry: AuditEntry) {
        tracing::info!(
            who = entry.who,
            from = entry.from,
            method = entry.method,
            path = entry.path,
            status = entry.status,
            what = entry.what,
            request_id = entry.request_id,
            "change"
        );
        if let Err(error) = self.inner.store.audit(entry).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the audit log lacks the change above");
        }
    }

    /// Entries with their numbers, newest first, from before the number `before`.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn audit_log(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, AuditEntry)>, Refusal> {
        Ok(self.inner.store.audit_log(before, limit.clamp(1, limits::PAGE)).await?)
    }
}
