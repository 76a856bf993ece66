//! Redis: quick, in memory, for as much history as that holds.
//!
//! Whatever is decided is decided here, by [`merge`](crate::merge) among others: a script only compares what was read with
//! what is there, and writes all of it or nothing. Lists are sorted sets beside the records, which the same script keeps.
//! What a write survives is the server's affair (`appendonly`, `appendfsync`), and is looked at when a store is opened.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use flux_protocol::{
    AgentId, Digest, ExecutionId, ExecutionRecord, FunctionName, FunctionSpec, FunctionVersion, KeyId, SecretName,
    Timestamp, execution::QueuePosition, limits,
};
use tokio::sync::mpsc;

use self::{
    claims::Wanted,
    fault::Fault,
    keys::Keys,
    link::{Link, Wire},
};
use crate::{
    ApiKeyRecord, AuditEntry, Census, Claim, Deployed, Entry, ExecutionFilter, Function, Lease, Part, Recorded,
    SealedSecret, SharedStore, StatusUpdate, Store, StoreError, Tuning,
    patience::{Again, Failure as _, Patience},
    row::Row,
};

mod access;
mod claims;
mod copying;
mod executions;
mod fault;
mod functions;
mod keys;
mod link;
mod server;
mod transaction;

/// Executions that one step of [`Store::expire`] removes.
const EXPIRE_STEP: usize = 200;

struct Redis {
    link: Caller,
    keys: Keys,
}

/// The server, and how it is called.
struct Caller {
    link: Link,
    patience: Patience,
    closed: AtomicBool,
}

pub(crate) async fn open(url: &str, tuning: &Tuning) -> Result<SharedStore, StoreError> {
    let link = Caller { link: Link::new(url)?, patience: Patience::default(), closed: AtomicBool::new(false) };
    let (prefix, place, cluster) = (link.link.prefix.clone(), link.link.place.clone(), link.link.is_cluster());
    let (names, place, durability, filling) = (&prefix, &place, tuning.durability, tuning.filling);
    let opening = |mut wire: Wire| async move {
        server::examine(&mut wire, place, durability).await?;
        server::shards(&mut wire, names, cluster, filling).await
    };
    let shards = link.call("open the store", opening).await?;
    Ok(Arc::new(Redis { keys: Keys::new(&prefix, shards), link }))
}

impl Caller {
    async fn call<T, Fut>(
        &self,
        attempted: &'static str,
        work: impl Fn(Wire) -> Fut + Send + Sync,
    ) -> Result<T, StoreError>
    where
        T: Send,
        Fut: Future<Output = Result<T, Fault>> + Send,
    {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        let once = || async {
            let (number, wire) = self.link.wire().await?;
            let done = work(wire).await;
            if done.as_ref().err().is_some_and(|fault| fault.again() == Again::Away) {
                self.link.lost(number).await;
            }
            done
        };
        let done = self.patience.call(&self.link.place, once).await;
        done.map_err(|fault: Fault| fault.to_error(attempted, &self.link.place))
    }
}

#[async_trait]
impl Store for Redis {
    async fn ping(&self) -> Result<(), StoreError> {
        self.link.call("ping it", |mut wire| async move { Ok(redis::cmd("PING").query_async(&mut wire).await?) }).await
    }

    async fn register(&self, spec: &FunctionSpec, now: Timestamp) -> Result<Deployed, StoreError> {
        let keys = &self.keys;
        self.link.call("register a function", |wire| functions::register(wire, keys, spec, now)).await
    }

    async fn deploy(
        &self,
        name: &FunctionName,
        digest: Digest,
        spec: Option<&FunctionSpec>,
        now: Timestamp,
    ) -> Result<Deployed, StoreError> {
        let keys = &self.keys;
        self.link.call("deploy a function", |wire| functions::deploy(wire, keys, name, digest, spec, now)).await
    }

    async fn rollback(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError> {
        let keys = &self.keys;
        self.link.call("roll a function back", |wire| functions::rollback(wire, keys, name, version)).await
    }

    async fn function(&self, name: &FunctionName) -> Result<Option<Function>, StoreError> {
        let keys = &self.keys;
        self.link.call("read a function", |wire| functions::function(wire, keys, name)).await
    }

    async fn function_version(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError> {
        let keys = &self.keys;
        self.link.call("read a version", |wire| functions::version(wire, keys, name, version)).await
    }

    async fn functions(
        &self,
        prefix: &str,
        cursor: Option<&FunctionName>,
        limit: usize,
    ) -> Result<Vec<FunctionVersion>, StoreError> {
        let keys = &self.keys;
        self.link.call("list functions", |wire| functions::list(wire, keys, prefix, cursor, limit)).await
    }

    async fn delete_function(&self, name: &FunctionName) -> Result<bool, StoreError> {
        let keys = &self.keys;
        self.link.call("delete a function", |wire| functions::delete(wire, keys, name)).await
    }

    async fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        let keys = &self.keys;
        self.link.call("list digests", |wire| functions::digests(wire, keys)).await
    }

    async fn insert_queued(&self, record: ExecutionRecord) -> Result<(), StoreError> {
        let keys = &self.keys;
        let record = crate::merge_queued(None, record);
        let row = Row::of(record.clone());
        let tried = AtomicBool::new(false);
        let (record, row, tried) = (&record, &row, &tried);
        self.link
            .call("record an accepted execution", |wire| {
                let first = !tried.swap(true, Ordering::Relaxed);
                executions::insert_queued(wire, keys, record, row, first)
            })
            .await
    }

    async fn record(&self, updates: Vec<StatusUpdate>) -> Result<Vec<Recorded>, StoreError> {
        let keys = &self.keys;
        if updates.is_empty() {
            return Ok(Vec::new());
        }
        let parts = executions::Parts::default();
        let (updates, parts) = (&updates, &parts);
        self.link.call("record statuses", |wire| executions::record(wire, keys, updates, parts)).await
    }

    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
        let keys = &self.keys;
        self.link.call("read an execution", |wire| executions::load(wire, keys, id)).await
    }

    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError> {
        let keys = &self.keys;
        self.link.call("list executions", |wire| executions::list(wire, keys, filter)).await
    }

    async fn open_executions(
        &self,
        before: Timestamp,
        after: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<ExecutionRecord>, StoreError> {
        let keys = &self.keys;
        self.link.call("list open executions", |wire| executions::list_open(wire, keys, before, after, limit)).await
    }

    async fn requeued(
        &self,
        id: ExecutionId,
        attempt: u32,
        position: QueuePosition,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let keys = &self.keys;
        let position = &position;
        self.link
            .call("record that an execution waits again", |wire| {
                executions::requeued(wire, keys, id, attempt, position, now)
            })
            .await
    }

    async fn claim_idempotency(
        &self,
        function: &FunctionName,
        key: &str,
        body: Digest,
        id: ExecutionId,
        now: Timestamp,
        window: Duration,
    ) -> Result<Claim, StoreError> {
        let keys = &self.keys;
        let asked = AtomicBool::new(false);
        let asked = &asked;
        self.link
            .call("claim an idempotency key", |wire| async move {
                let again = asked.swap(true, Ordering::Relaxed);
                claims::claim(wire, keys, &Wanted { function, key, body, id, now, window, again }).await
            })
            .await
    }

    async fn release_idempotency(&self, function: &FunctionName, key: &str, id: ExecutionId) -> Result<(), StoreError> {
        let keys = &self.keys;
        self.link.call("release an idempotency key", |wire| claims::release(wire, keys, function, key, id)).await
    }

    async fn lease(
        &self,
        name: &str,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let keys = &self.keys;
        self.link.call("take a lease", |wire| claims::take_lease(wire, keys, name, holder, now, ttl)).await
    }

    async fn release_lease(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        let keys = &self.keys;
        self.link.call("release a lease", |wire| claims::release_lease(wire, keys, name, holder)).await
    }

    async fn insert_key(&self, key: &ApiKeyRecord) -> Result<bool, StoreError> {
        let keys = &self.keys;
        self.link.call("add an API key", |wire| access::insert_key(wire, keys, key, limits::KEYS)).await
    }

    async fn api_keys(&self) -> Result<Vec<ApiKeyRecord>, StoreError> {
        let keys = &self.keys;
        self.link.call("read the API keys", |wire| access::api_keys(wire, keys)).await
    }

    async fn rotate_key(
        &self,
        id: &KeyId,
        digest: Digest,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<ApiKeyRecord>, StoreError> {
        let keys = &self.keys;
        self.link.call("rotate an API key", |wire| access::rotate_key(wire, keys, id, digest, now, until)).await
    }

    async fn delete_key(&self, id: &KeyId) -> Result<bool, StoreError> {
        let keys = &self.keys;
        self.link.call("remove an API key", |wire| access::delete_key(wire, keys, id)).await
    }

    async fn keys_used(&self, uses: Vec<(KeyId, Timestamp)>) -> Result<(), StoreError> {
        let keys = &self.keys;
        let uses = &uses[..];
        self.link.call("say when keys were used", |wire| access::keys_used(wire, keys, uses)).await
    }

    async fn shared_key(&self, name: &str, proposed: [u8; 32]) -> Result<[u8; 32], StoreError> {
        let keys = &self.keys;
        self.link.call("share a key", |wire| access::shared_key(wire, keys, name, &proposed)).await
    }

    async fn audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        let keys = &self.keys;
        let entry = &entry;
        self.link.call("write the audit log", |wire| access::audit(wire, keys, entry)).await
    }

    async fn audit_log(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, AuditEntry)>, StoreError> {
        let keys = &self.keys;
        self.link.call("read the audit log", |wire| access::audit_log(wire, keys, before, limit)).await
    }

    async fn put_secret(&self, secret: &SealedSecret) -> Result<Option<u32>, StoreError> {
        let keys = &self.keys;
        self.link.call("set a secret", |wire| access::put_secret(wire, keys, secret, limits::SECRETS)).await
    }

    async fn secret(&self, name: &SecretName) -> Result<Option<SealedSecret>, StoreError> {
        let keys = &self.keys;
        self.link.call("read a secret", |mut wire| async move { access::secret(&mut wire, keys, name).await }).await
    }

    async fn secrets(&self) -> Result<Vec<SealedSecret>, StoreError> {
        let keys = &self.keys;
        self.link.call("list secrets", |wire| access::secrets(wire, keys)).await
    }

    async fn reseal_secret(&self, secret: &SealedSecret) -> Result<bool, StoreError> {
        let keys = &self.keys;
        self.link.call("encrypt a secret anew", |wire| access::reseal_secret(wire, keys, secret)).await
    }

    async fn delete_secret(&self, name: &SecretName) -> Result<bool, StoreError> {
        let keys = &self.keys;
        self.link.call("remove a secret", |wire| access::delete_secret(wire, keys, name)).await
    }

    async fn claim_secrets(
        &self,
        execution: ExecutionId,
        attempt: u32,
        agent: &AgentId,
        nonce: [u8; 16],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let keys = &self.keys;
        self.link
            .call("claim an attempt's secrets", |wire| {
                claims::claim_secrets(wire, keys, (execution, attempt), agent, nonce, now)
            })
            .await
    }

    async fn expire(&self, before: Timestamp, limit: usize) -> Result<Vec<ExecutionRecord>, StoreError> {
        let keys = &self.keys;
        let audited = before.minus(limits::AUDIT_KEPT);
        // There is one for each attempt with secrets, and this is asked for once in a while: all of them, or they pile up.
        while self.link.call("expire claims of secrets", |wire| claims::expire(wire, keys, before, EXPIRE_STEP)).await?
        {
        }
        self.link.call("expire the audit log", |wire| access::expire_audit(wire, keys, audited, EXPIRE_STEP)).await?;
        let mut removed = Vec::new();
        loop {
            let step = EXPIRE_STEP.min(limit - removed.len());
            let more =
                self.link.call("expire old executions", |wire| executions::expire(wire, keys, before, step)).await?;
            let last = more.len() < step;
            removed.extend(more);
            if last || removed.len() >= limit {
                return Ok(removed);
            }
        }
    }

    async fn census(&self) -> Result<Census, StoreError> {
        let keys = &self.keys;
        self.link.call("count what it holds", |wire| copying::census(wire, keys)).await
    }

    async fn export(&self, into: mpsc::Sender<Entry>) -> Result<(), StoreError> {
        copying::export(&self.link, &self.keys, &into).await
    }

    async fn import(&self, mut parts: mpsc::Receiver<Part>) -> Result<(), StoreError> {
        if copying::import(&self.link, &self.keys, &mut parts).await? { Ok(()) } else { Err(StoreError::BrokenOff) }
    }

    async fn close(&self) {
        self.link.closed.store(true, Ordering::Release);
    }
}
