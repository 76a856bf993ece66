//! PostgreSQL: history for as long as it is wanted, and several gateways on one store.
//!
//! Statements are prepared once a connection. What is merged is read with its row locked, merged by
//! [`merge`](crate::merge), and written with the commit behind it in the same packet. What a commit survives is the
//! server's affair; a gateway only sees to it that a commit waits for the server's disk.

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

use self::{accept::Acceptor, claims::Wanted, connect::Server, fault::Fault};
use crate::{
    ApiKeyRecord, AuditEntry, Census, Claim, Deployed, Entry, ExecutionFilter, Function, Lease, Part, Recorded,
    SealedSecret, SharedStore, StatusUpdate, Store, StoreError, Tuning, patience::Patience,
};

mod accept;
mod access;
mod claims;
mod connect;
mod copying;
mod executions;
mod fault;
mod functions;
mod migrate;
mod secrets;
mod transaction;

/// Rows that one step of [`Store::expire`] removes.
const EXPIRE_STEP: usize = 500;

type Held = Arc<deadpool::managed::Object<connect::Connector>>;

struct Postgres {
    link: Arc<Link>,
    acceptor: Acceptor,
}

/// The server, and how it is called.
struct Link {
    server: Server,
    patience: Patience,
    closed: AtomicBool,
}

pub(crate) async fn open(url: &str, tuning: &Tuning) -> Result<SharedStore, StoreError> {
    let link = Arc::new(Link {
        server: connect::server(url, tuning)?,
        patience: Patience::default(),
        closed: AtomicBool::new(false),
    });
    let opening = "open the store";
    // Apart from other calls: bringing a schema up to date takes as long as it takes.
    let session = link.call(opening, |session| async move { Ok(session) }).await?;
    let schema = &link.server.pool.manager().schema;
    let migrated = migrate::migrate(&session, schema, tuning.migrate).await;
    migrated.map_err(|fault| fault.to_error(opening, &link.server.place))?;
    drop(session);
    let writer = Arc::clone(&link);
    let acceptor = Acceptor::start(tuning.queue, move |batch| {
        let link = Arc::clone(&writer);
        async move {
            link.attempt(|session| {
                let batch = Arc::clone(&batch);
                async move { executions::insert_queued(&session, &batch).await }
            })
            .await
        }
    });
    Ok(Arc::new(Postgres { link, acceptor }))
}

impl Link {
    async fn call<T, Fut>(
        &self,
        attempted: &'static str,
        work: impl Fn(Held) -> Fut + Send + Sync,
    ) -> Result<T, StoreError>
    where
        T: Send,
        Fut: Future<Output = Result<T, Fault>> + Send,
    {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        self.attempt(work).await.map_err(|fault| fault.to_error(attempted, &self.server.place))
    }

    async fn attempt<T, Fut>(&self, work: impl Fn(Held) -> Fut + Send + Sync) -> Result<T, Fault>
    where
        T: Send,
        Fut: Future<Output = Result<T, Fault>> + Send,
    {
        let once = || async {
            let session = self.server.pool.get().await.map_err(|error| match error {
                deadpool::managed::PoolError::Backend(fault) => fault,
                other => Fault::Away(other.to_string()),
            })?;
            let session: Held = Arc::new(session);
            let done = work(Arc::clone(&session)).await;
            // Where this is not reached, because the call's time was over, the connection is thrown away.
            if done.as_ref().err().is_none_or(Fault::leaves_connection) {
                session.settle();
            }
            done
        };
        self.patience.call(&self.server.place, once).await
    }
}

impl Postgres {
    /// A connection for what takes longer than a call, and that no call gets afterwards.
    async fn session_apart(&self, attempted: &'static str) -> Result<Held, StoreError> {
        let session = self.call(attempted, |session| async move { Ok(session) }).await?;
        session.unsettle();
        Ok(session)
    }

    async fn call<T, Fut>(
        &self,
        attempted: &'static str,
        work: impl Fn(Held) -> Fut + Send + Sync,
    ) -> Result<T, StoreError>
    where
        T: Send,
        Fut: Future<Output = Result<T, Fault>> + Send,
    {
        self.link.call(attempted, work).await
    }
}

#[async_trait]
impl Store for Postgres {
    async fn ping(&self) -> Result<(), StoreError> {
        self.call("ping it", |db| async move { Ok(db.client.batch_execute("SELECT 1").await?) }).await
    }

    async fn register(&self, spec: &FunctionSpec, now: Timestamp) -> Result<Deployed, StoreError> {
        self.call("register a function", |db| async move { functions::register(&db, spec, now).await }).await
    }

    async fn deploy(
        &self,
        name: &FunctionName,
        digest: Digest,
        spec: Option<&FunctionSpec>,
        now: Timestamp,
    ) -> Result<Deployed, StoreError> {
        self.call("deploy a function", |db| async move { functions::deploy(&db, name, digest, spec, now).await }).await
    }

    async fn rollback(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError> {
        self.call("roll a function back", |db| async move { functions::rollback(&db, name, version).await }).await
    }

    async fn function(&self, name: &FunctionName) -> Result<Option<Function>, StoreError> {
        self.call("read a function", |db| async move { functions::function(&db, name).await }).await
    }

    async fn function_version(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError> {
        self.call("read a version", |db| async move { functions::live_version(&db, name, version).await }).await
    }

    async fn functions(
        &self,
        prefix: &str,
        cursor: Option<&FunctionName>,
        limit: usize,
    ) -> Result<Vec<FunctionVersion>, StoreError> {
        self.call("list functions", |db| async move { functions::list(&db, prefix, cursor, limit).await }).await
    }

    async fn delete_function(&self, name: &FunctionName) -> Result<bool, StoreError> {
        self.call("delete a function", |db| async move { functions::delete(&db, name).await }).await
    }

    async fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        self.call("list digests", |db| async move { functions::digests(&db).await }).await
    }

    async fn insert_queued(&self, record: ExecutionRecord) -> Result<(), StoreError> {
        if self.link.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        let accepted = self.acceptor.accept(crate::merge_queued(None, record)).await.ok_or(StoreError::Closed)?;
        accepted.map_err(|fault| fault.to_error("record an accepted execution", &self.link.server.place))
    }

    async fn record(&self, updates: Vec<StatusUpdate>) -> Result<Vec<Recorded>, StoreError> {
        if updates.is_empty() {
            return Ok(Vec::new());
        }
        let unheard = executions::Unheard::default();
        let (updates, unheard) = (&updates, &unheard);
        self.call("record statuses", |db| async move { executions::record(&db, updates, unheard).await }).await
    }

    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
        self.call("read an execution", |db| async move { executions::load(&db, id).await }).await
    }

    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError> {
        self.call("list executions", |db| async move { executions::list(&db, filter).await }).await
    }

    async fn open_executions(
        &self,
        before: Timestamp,
        after: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<ExecutionRecord>, StoreError> {
        self.call("list open executions", |db| async move { executions::list_open(&db, before, after, limit).await })
            .await
    }

    async fn requeued(
        &self,
        id: ExecutionId,
        attempt: u32,
        position: QueuePosition,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let position = &position;
        self.call("record that an execution waits again", |db| async move {
            executions::requeued(&db, id, attempt, position, now).await
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
        let asked = AtomicBool::new(false);
        let asked = &asked;
        self.call("claim an idempotency key", |db| async move {
            let again = asked.swap(true, Ordering::Relaxed);
            claims::claim(&db, &Wanted { function, key, body, id, now, window, again }).await
        })
        .await
    }

    async fn release_idempotency(&self, function: &FunctionName, key: &str, id: ExecutionId) -> Result<(), StoreError> {
        self.call("release an idempotency key", |db| async move { claims::release(&db, function, key, id).await }).await
    }

    async fn lease(
        &self,
        name: &str,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        self.call("take a lease", |db| async move { claims::take_lease(&db, name, holder, now, ttl).await }).await
    }

    async fn release_lease(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        self.call("release a lease", |db| async move { claims::release_lease(&db, name, holder).await }).await
    }

    async fn insert_key(&self, key: &ApiKeyRecord) -> Result<bool, StoreError> {
        self.call("add an API key", |db| async move { access::insert_key(&db, key, limits::KEYS).await }).await
    }

    async fn api_keys(&self) -> Result<Vec<ApiKeyRecord>, StoreError> {
        self.call("read the API keys", |db| async move { access::keys(&db).await }).await
    }

    async fn rotate_key(
        &self,
        id: &KeyId,
        digest: Digest,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<ApiKeyRecord>, StoreError> {
        self.call("rotate an API key", |db| async move { access::rotate_key(&db, id, digest, now, until).await }).await
    }

    async fn delete_key(&self, id: &KeyId) -> Result<bool, StoreError> {
        self.call("remove an API key", |db| async move { access::delete_key(&db, id).await }).await
    }

    async fn keys_used(&self, uses: Vec<(KeyId, Timestamp)>) -> Result<(), StoreError> {
        let uses = &uses[..];
        self.call("say when keys were used", |db| async move { access::keys_used(&db, uses).await }).await
    }

    async fn shared_key(&self, name: &str, proposed: [u8; 32]) -> Result<[u8; 32], StoreError> {
        self.call("share a key", |db| async move { access::shared_key(&db, name, &proposed).await }).await
    }

    async fn audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        let entry = &entry;
        self.call("write the audit log", |db| async move { access::audit(&db, entry).await }).await
    }

    async fn audit_log(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, AuditEntry)>, StoreError> {
        self.call("read the audit log", |db| async move { access::audit_log(&db, before, limit).await }).await
    }

    async fn put_secret(&self, secret: &SealedSecret) -> Result<Option<u32>, StoreError> {
        self.call("set a secret", |db| async move { secrets::put(&db, secret, limits::SECRETS).await }).await
    }

    async fn secret(&self, name: &SecretName) -> Result<Option<SealedSecret>, StoreError> {
        self.call("read a secret", |db| async move { secrets::get(&db, name).await }).await
    }

    async fn secrets(&self) -> Result<Vec<SealedSecret>, StoreError> {
        self.call("list secrets", |db| async move { secrets::list(&db).await }).await
    }

    async fn reseal_secret(&self, secret: &SealedSecret) -> Result<bool, StoreError> {
        self.call("encrypt a secret anew", |db| async move { secrets::reseal(&db, secret).await }).await
    }

    async fn delete_secret(&self, name: &SecretName) -> Result<bool, StoreError> {
        self.call("remove a secret", |db| async move { secrets::delete(&db, name).await }).await
    }

    async fn claim_secrets(
        &self,
        execution: ExecutionId,
        attempt: u32,
        agent: &AgentId,
        nonce: [u8; 16],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.call("claim an attempt's secrets", |db| async move {
            claims::claim_secrets(&db, execution, attempt, agent, nonce, now).await
        })
        .await
    }

    async fn expire(&self, before: Timestamp, limit: usize) -> Result<Vec<ExecutionRecord>, StoreError> {
        let mut removed = Vec::new();
        loop {
            let step = EXPIRE_STEP.min(limit - removed.len());
            let more = self
                .call("expire old executions", |db| async move {
                    claims::expire(&db, claims::EXPIRE_IDEMPOTENCY, before, EXPIRE_STEP).await?;
                    claims::expire(&db, claims::EXPIRE_CLAIMS, before, EXPIRE_STEP).await?;
                    claims::expire(&db, access::EXPIRE_AUDIT, before.minus(limits::AUDIT_KEPT), EXPIRE_STEP).await?;
                    executions::expire(&db, before, step).await
                })
                .await?;
            let last = more.len() < step;
            removed.extend(more);
            if last || removed.len() >= limit {
                return Ok(removed);
            }
        }
    }

    async fn census(&self) -> Result<Census, StoreError> {
        self.call("count what it holds", |db| async move { copying::census(&db).await }).await
    }

    async fn export(&self, into: mpsc::Sender<Entry>) -> Result<(), StoreError> {
        const ATTEMPTED: &str = "read all of it";
        let session = self.session_apart(ATTEMPTED).await?;
        let done = copying::export(&session, &into).await;
        done.map_err(|fault| fault.to_error(ATTEMPTED, &self.link.server.place))
    }

    async fn import(&self, mut parts: mpsc::Receiver<Part>) -> Result<(), StoreError> {
        const ATTEMPTED: &str = "fill it";
        let session = self.session_apart(ATTEMPTED).await?;
        match copying::import(&session, &mut parts).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::BrokenOff),
            Err(fault) => Err(fault.to_error(ATTEMPTED, &self.link.server.place)),
        }
    }

    async fn close(&self) {
        self.link.closed.store(true, Ordering::Release);
        self.link.server.pool.close();
    }
}
