//! A store that can be away, and says so as an engine does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use flux_protocol::{
    AgentId, Digest, ExecutionId, ExecutionRecord, FunctionName, FunctionSpec, FunctionVersion, KeyId, SecretName,
    Timestamp, execution::QueuePosition,
};
use flux_store::{
    ApiKeyRecord, AuditEntry, Census, Claim, Deployed, Entry, ExecutionFilter, Function, Lease, Part, Recorded,
    SealedSecret, SharedStore, StatusUpdate, Store, StoreError,
};
use tokio::sync::{Notify, mpsc};

pub(crate) struct FlakyStore {
    inner: SharedStore,
    away: AtomicBool,
    /// Nothing is recorded; everything else works.
    records_nothing: AtomicBool,
    /// No execution can be read; everything else works.
    reads_nothing: AtomicBool,
    /// What is accepted is refused, once this is notified.
    accepts_nothing: Mutex<Option<Arc<Notify>>>,
    refused: AtomicU32,
    unreadable: Mutex<Option<FunctionName>>,
    /// Who reads what is open is held: told when it is, and let go.
    stops: Mutex<Option<(Arc<Notify>, Arc<Notify>)>>,
    /// The same of who records what was accepted.
    stops_accepting: Mutex<Option<(Arc<Notify>, Arc<Notify>)>>,
    leases: AtomicU32,
}

impl FlakyStore {
    pub(crate) fn over(inner: &SharedStore) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            away: AtomicBool::new(false),
            records_nothing: AtomicBool::new(false),
            reads_nothing: AtomicBool::new(false),
            accepts_nothing: Mutex::default(),
            refused: AtomicU32::new(0),
            unreadable: Mutex::default(),
            stops: Mutex::default(),
            stops_accepting: Mutex::default(),
            leases: AtomicU32::new(0),
        })
    }

    /// Recording anything of this function's executions fails from now on, as with a row that is damaged.
    pub(crate) fn damage(&self, function: FunctionName) {
        *self.unreadable.lock().unwrap() = Some(function);
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    pub(crate) fn set_records_nothing(&self, nothing: bool) {
        self.records_nothing.store(nothing, Ordering::SeqCst);
    }

    #[allow(dead_code)] // of the core tests
    pub(crate) fn set_reads_nothing(&self, nothing: bool) {
        self.reads_nothing.store(nothing, Ordering::SeqCst);
    }

    /// Refuses each record of what is accepted: once the notification comes, so that what is published meanwhile can run.
    pub(crate) fn accept_nothing_after(&self, notified: Option<Arc<Notify>>) {
        *self.accepts_nothing.lock().unwrap() = notified;
    }

    /// The next that reads open executions gets them only once it is let go, as one that is stopped in the middle of its work.
    /// Returned: what tells that it is held, and what lets it go.
    pub(crate) fn stop_next(&self) -> (Arc<Notify>, Arc<Notify>) {
        let (held, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        *self.stops.lock().unwrap() = Some((Arc::clone(&held), Arc::clone(&go)));
        (held, go)
    }

    /// The same of the next that records what was accepted: it does so only then.
    #[allow(dead_code)] // of the core tests
    pub(crate) fn stop_next_accept(&self) -> (Arc<Notify>, Arc<Notify>) {
        let (held, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        *self.stops_accepting.lock().unwrap() = Some((Arc::clone(&held), Arc::clone(&go)));
        (held, go)
    }

    /// How often a lease was asked for.
    pub(crate) fn leases(&self) -> u32 {
        self.leases.load(Ordering::SeqCst)
    }

    /// Calls that found it away.
    pub(crate) fn refused(&self) -> u32 {
        self.refused.load(Ordering::SeqCst)
    }

    fn there(&self) -> Result<&SharedStore, StoreError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(self.refuse());
        }
        Ok(&self.inner)
    }

    fn refuse(&self) -> StoreError {
        self.refused.fetch_add(1, Ordering::SeqCst);
        StoreError::Unavailable { attempted: "do anything", source: "the test said so".into() }
    }
}

macro_rules! delegate {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)*) -> $result:ty;)*) => {
        #[async_trait]
        impl Store for FlakyStore {
            $(async fn $name(&self $(, $arg: $type)*) -> Result<$result, StoreError> {
                self.there()?.$name($($arg),*).await
            })*

            async fn record(&self, updates: Vec<StatusUpdate>) -> Result<Vec<Recorded>, StoreError> {
                let store = self.there()?;
                if self.records_nothing.load(Ordering::SeqCst) {
                    return Err(self.refuse());
                }
                let damaged = self.unreadable.lock().unwrap().clone();
                if updates.iter().any(|update| Some(&update.status.function) == damaged.as_ref()) {
                    return Err(StoreError::Corrupt { problem: "the test said so".to_owned() });
                }
                store.record(updates).await
            }

            async fn insert_queued(&self, record: ExecutionRecord) -> Result<(), StoreError> {
                let stop = self.stops_accepting.lock().unwrap().take();
                if let Some((held, go)) = stop {
                    held.notify_one();
                    go.notified().await;
                }
                let store = self.there()?;
                let nothing = self.accepts_nothing.lock().unwrap().clone();
                if let Some(notified) = nothing {
                    notified.notified().await;
                    return Err(self.refuse());
                }
                store.insert_queued(record).await
            }

            async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
                let store = self.there()?;
                if self.reads_nothing.load(Ordering::SeqCst) {
                    return Err(self.refuse());
                }
                store.execution(id).await
            }

            async fn open_executions(
                &self,
                before: Timestamp,
                after: Option<ExecutionId>,
                limit: usize,
            ) -> Result<Vec<ExecutionRecord>, StoreError> {
                let page = self.there()?.open_executions(before, after, limit).await?;
                let stop = self.stops.lock().unwrap().take_if(|_| !page.is_empty());
                if let Some((held, go)) = stop {
                    held.notify_one();
                    go.notified().await;
                }
                Ok(page)
            }

            async fn lease(
                &self,
                name: &str,
                holder: &str,
                now: Timestamp,
                ttl: Duration,
            ) -> Result<Option<Lease>, StoreError> {
                self.leases.fetch_add(1, Ordering::SeqCst);
                self.there()?.lease(name, holder, now, ttl).await
            }

            async fn close(&self) {
                self.inner.close().await;
            }
        }
    };
}

delegate! {
    fn ping(&self) -> ();
    fn register(&self, spec: &FunctionSpec, now: Timestamp) -> Deployed;
    fn deploy(&self, name: &FunctionName, digest: Digest, spec: Option<&FunctionSpec>, now: Timestamp) -> Deployed;
    fn rollback(&self, name: &FunctionName, version: u32) -> Option<FunctionVersion>;
    fn function(&self, name: &FunctionName) -> Option<Function>;
    fn function_version(&self, name: &FunctionName, version: u32) -> Option<FunctionVersion>;
    fn functions(&self, prefix: &str, cursor: Option<&FunctionName>, limit: usize) -> Vec<FunctionVersion>;
    fn delete_function(&self, name: &FunctionName) -> bool;
    fn digests(&self) -> Vec<Digest>;
    fn executions(&self, filter: &ExecutionFilter) -> Vec<ExecutionRecord>;
    fn requeued(&self, id: ExecutionId, attempt: u32, position: QueuePosition, now: Timestamp) -> ();
    fn claim_idempotency(
        &self,
        function: &FunctionName,
        key: &str,
        body: Digest,
        id: ExecutionId,
        now: Timestamp,
        window: Duration
    ) -> Claim;
    fn release_idempotency(&self, function: &FunctionName, key: &str, id: ExecutionId) -> ();
    fn release_lease(&self, name: &str, holder: &str) -> ();
    fn insert_key(&self, key: &ApiKeyRecord) -> bool;
    fn api_keys(&self) -> Vec<ApiKeyRecord>;
    fn rotate_key(&self, id: &KeyId, digest: Digest, now: Timestamp, until: Timestamp) -> Option<ApiKeyRecord>;
    fn delete_key(&self, id: &KeyId) -> bool;
    fn keys_used(&self, uses: Vec<(KeyId, Timestamp)>) -> ();
    fn shared_key(&self, name: &str, proposed: [u8; 32]) -> [u8; 32];
    fn audit(&self, entry: AuditEntry) -> ();
    fn audit_log(&self, before: Option<u64>, limit: usize) -> Vec<(u64, AuditEntry)>;
    fn put_secret(&self, secret: &SealedSecret) -> Option<u32>;
    fn secret(&self, name: &SecretName) -> Option<SealedSecret>;
    fn secrets(&self) -> Vec<SealedSecret>;
    fn reseal_secret(&self, secret: &SealedSecret) -> bool;
    fn delete_secret(&self, name: &SecretName) -> bool;
    fn claim_secrets(
        &self,
        execution: ExecutionId,
        attempt: u32,
        agent: &AgentId,
        nonce: [u8; 16],
        now: Timestamp
    ) -> bool;
    fn census(&self) -> Census;
    fn export(&self, into: mpsc::Sender<Entry>) -> ();
    fn import(&self, parts: mpsc::Receiver<Part>) -> ();
    fn expire(&self, before: Timestamp, limit: usize) -> Vec<ExecutionRecord>;
}
