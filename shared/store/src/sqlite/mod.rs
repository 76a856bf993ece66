//! The embedded engine: one file, one writer that commits in groups, a few readers.
//!
//! `rusqlite` on threads of our own, because a statement here costs microseconds and an async layer around
//! each would cost as much again. What a commit survives: see [`Durability`](crate::Durability).

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_protocol::{
    AgentId, Digest, ExecutionId, ExecutionRecord, FunctionName, FunctionSpec, FunctionVersion, KeyId, SecretName,
    Timestamp, execution::QueuePosition, limits,
};
use rusqlite::Connection;
use tokio::sync::mpsc;

use self::{database::Database, fault::Fault, reader::Readers, writer::Writer};
use crate::{
    ApiKeyRecord, AuditEntry, Census, Claim, Deployed, Entry, ExecutionFilter, Function, Lease, Part, Recorded,
    SealedSecret, SharedStore, StatusUpdate, Store, StoreError, Tuning,
};

mod access;
mod copying;
mod database;
mod executions;
mod fault;
mod functions;
mod idempotency;
mod leases;
mod reader;
mod rows;
mod secrets;
mod writer;

/// Rows that one step of [`Store::expire`] removes.
const EXPIRE_STEP: usize = 500;

struct Sqlite {
    database: Database,
    place: Arc<str>,
    writer: Writer,
    readers: Readers,
}

pub(crate) async fn open(path: Option<PathBuf>, tuning: &Tuning) -> Result<SharedStore, StoreError> {
    let database = Database::new(path, tuning.clone());
    let place: Arc<str> = database.place().into();
    let (connecting, connected) = tokio::sync::oneshot::channel();
    let opener = database.clone();
    let readers = if database.is_file() { tuning.readers.max(1) } else { 0 };
    let (writer, opening) = Writer::start(Arc::clone(&place), tuning.queue, move || {
        let writing = opener.connect_writer()?;
        let reading = (0..readers).map(|_| opener.connect_reader()).collect::<Result<Vec<_>, _>>()?;
        // The receiver is dropped only together with this store.
        let _ = connecting.send(reading);
        Ok(writing)
    })?;
    opening.await.map_err(|_| StoreError::Closed)??;
    let connections = connected.await.map_err(|_| StoreError::Closed)?;
    let readers = if database.is_file() {
        Readers::start(Arc::clone(&place), tuning.queue, connections)?
    } else {
        Readers::Writer
    };
    Ok(Arc::new(Sqlite { database, place, writer, readers }))
}

/// For work that is not over in a moment.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)?
}

impl Sqlite {
    async fn read<T: Send + 'static>(
        &self,
        attempted: &'static str,
        work: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.readers.read(&self.writer, attempted, work).await
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn ping(&self) -> Result<(), StoreError> {
        self.read("ping it", |db| Ok(db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?)).await
    }

    async fn register(&self, spec: &FunctionSpec, now: Timestamp) -> Result<Deployed, StoreError> {
        let spec = spec.clone();
        self.writer.write("register a function", 1, move |db| functions::register(db, &spec, now)).await
    }

    async fn deploy(
        &self,
        name: &FunctionName,
        digest: Digest,
        spec: Option<&FunctionSpec>,
        now: Timestamp,
    ) -> Result<Deployed, StoreError> {
        let (name, spec) = (name.clone(), spec.cloned());
        self.writer
            .write("deploy a function", 1, move |db| functions::deploy(db, &name, digest, spec.as_ref(), now))
            .await
    }

    async fn rollback(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError> {
        let name = name.clone();
        self.writer.write("roll a function back", 1, move |db| functions::rollback(db, &name, version)).await
    }

    async fn function(&self, name: &FunctionName) -> Result<Option<Function>, StoreError> {
        let name = name.clone();
        self.read("read a function", move |db| functions::function(db, &name)).await
    }

    async fn function_version(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError> {
        let name = name.clone();
        self.read("read a version", move |db| functions::live_version(db, &name, version)).await
    }

    async fn functions(
        &self,
        prefix: &str,
        cursor: Option<&FunctionName>,
        limit: usize,
    ) -> Result<Vec<FunctionVersion>, StoreError> {
        let (prefix, cursor) = (prefix.to_owned(), cursor.cloned());
        self.read("list functions", move |db| functions::list(db, &prefix, cursor.as_ref(), limit)).await
    }

    async fn delete_function(&self, name: &FunctionName) -> Result<bool, StoreError> {
        let name = name.clone();
        self.writer.write("delete a function", 1, move |db| functions::delete(db, &name)).await
    }

    async fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        self.read("list digests", functions::digests).await
    }

    async fn insert_queued(&self, record: ExecutionRecord) -> Result<(), StoreError> {
        let record = crate::merge_queued(None, record);
        let row = crate::row::Row::of(record.clone());
        self.writer
            .write("record an accepted execution", 1, move |db| executions::insert_queued(db, &record, &row))
            .await
    }

    async fn record(&self, updates: Vec<StatusUpdate>) -> Result<Vec<Recorded>, StoreError> {
        if updates.is_empty() {
            return Ok(Vec::new());
        }
        self.writer.write("record statuses", updates.len(), move |db| executions::record(db, &updates)).await
    }

    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
        self.read("read an execution", move |db| executions::load(db, id)).await
    }

    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError> {
        let filter = filter.clone();
        self.read("list executions", move |db| executions::list(db, &filter)).await
    }

    async fn open_executions(
        &self,
        before: Timestamp,
        after: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<ExecutionRecord>, StoreError> {
        self.read("list open executions", move |db| executions::list_open(db, before, after, limit)).await
    }

    async fn requeued(
        &self,
        id: ExecutionId,
        attempt: u32,
        position: QueuePosition,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.writer
            .write("record that an execution waits again", 1, move |db| {
                executions::requeued(db, id, attempt, &position, now)
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
        let claim = idempotency::Wanted { function: function.clone(), key: key.to_owned(), body, id, now, window };
        self.writer.write("claim an idempotency key", 1, move |db| idempotency::claim(db, &claim)).await
    }

    async fn release_idempotency(&self, function: &FunctionName, key: &str, id: ExecutionId) -> Result<(), StoreError> {
        let (function, key) = (function.clone(), key.to_owned());
        self.writer
            .write("release an idempotency key", 1, move |db| idempotency::release(db, &function, &key, id))
            .await
    }

    async fn lease(
        &self,
        name: &str,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.writer.write("take a lease", 1, move |db| leases::take(db, &name, &holder, now, ttl)).await
    }

    async fn release_lease(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.writer.write("release a lease", 1, move |db| leases::release(db, &name, &holder)).await
    }

    async fn insert_key(&self, key: &ApiKeyRecord) -> Result<bool, StoreError> {
        let key = key.clone();
        self.writer.write("add an API key", 1, move |db| access::insert_key(db, &key, limits::KEYS)).await
    }

    async fn api_keys(&self) -> Result<Vec<ApiKeyRecord>, StoreError> {
        self.read("read the API keys", access::keys).await
    }

    async fn rotate_key(
        &self,
        id: &KeyId,
        digest: Digest,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<ApiKeyRecord>, StoreError> {
        let id = id.clone();
        self.writer.write("rotate an API key", 1, move |db| access::rotate_key(db, &id, digest, now, until)).await
    }

    async fn delete_key(&self, id: &KeyId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.writer.write("remove an API key", 1, move |db| access::delete_key(db, &id)).await
    }

    async fn keys_used(&self, uses: Vec<(KeyId, Timestamp)>) -> Result<(), StoreError> {
        self.writer.write("say when keys were used", uses.len(), move |db| access::keys_used(db, &uses)).await
    }

    async fn shared_key(&self, name: &str, proposed: [u8; 32]) -> Result<[u8; 32], StoreError> {
        let name = name.to_owned();
        self.writer.write("share a key", 1, move |db| access::shared_key(db, &name, &proposed)).await
    }

    async fn audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.writer.write("write the audit log", 1, move |db| access::audit(db, &entry)).await
    }

    async fn audit_log(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, AuditEntry)>, StoreError> {
        self.read("read the audit log", move |db| access::audit_log(db, before, limit)).await
    }

    async fn put_secret(&self, secret: &SealedSecret) -> Result<Option<u32>, StoreError> {
        let secret = secret.clone();
        self.writer.write("set a secret", 1, move |db| secrets::put(db, &secret, limits::SECRETS)).await
    }

    async fn secret(&self, name: &SecretName) -> Result<Option<SealedSecret>, StoreError> {
        let name = name.clone();
        self.read("read a secret", move |db| secrets::get(db, &name)).await
    }

    async fn secrets(&self) -> Result<Vec<SealedSecret>, StoreError> {
        self.read("list secrets", secrets::list).await
    }

    async fn reseal_secret(&self, secret: &SealedSecret) -> Result<bool, StoreError> {
        let secret = secret.clone();
        self.writer.write("encrypt a secret anew", 1, move |db| secrets::reseal(db, &secret)).await
    }

    async fn delete_secret(&self, name: &SecretName) -> Result<bool, StoreError> {
        let name = name.clone();
        self.writer.write("remove a secret", 1, move |db| secrets::delete(db, &name)).await
    }

    async fn claim_secrets(
        &self,
        execution: ExecutionId,
        attempt: u32,
        agent: &AgentId,
        nonce: [u8; 16],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let agent = agent.clone();
        self.writer
            .write("claim an attempt's secrets", 1, move |db| {
                secrets::claim(db, execution, attempt, &agent, nonce, now)
            })
            .await
    }

    async fn expire(&self, before: Timestamp, limit: usize) -> Result<Vec<ExecutionRecord>, StoreError> {
        let mut removed = Vec::new();
        loop {
            let step = EXPIRE_STEP.min(limit - removed.len());
            let more = self
                .writer
                .write("expire old executions", step, move |db| {
                    idempotency::expire(db, before, EXPIRE_STEP)?;
                    secrets::expire_claims(db, before, EXPIRE_STEP)?;
                    access::expire_audit(db, before.minus(limits::AUDIT_KEPT), EXPIRE_STEP)?;
                    executions::expire(db, before, step)
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
        self.read("count what it holds", copying::census).await
    }

    async fn export(&self, mut into: mpsc::Sender<Entry>) -> Result<(), StoreError> {
        const ATTEMPTED: &str = "read all of it";
        if !self.writer.is_running() {
            return Err(StoreError::Closed);
        }
        if !self.database.is_file() {
            // It belongs to the writer, which does not wait for whoever takes the entries.
            let all = move |db: &Connection| {
                let mut all = Vec::new();
                copying::export_all(db, &mut all).map(|()| all)
            };
            for entry in self.writer.write(ATTEMPTED, 0, all).await? {
                if into.send(entry).await.is_err() {
                    break;
                }
            }
            return Ok(());
        }
        let (database, place) = (self.database.clone(), Arc::clone(&self.place));
        off_thread(move || {
            let reader = database.connect_reader()?;
            copying::export(&reader, &mut into).map_err(|fault| fault.into_error(ATTEMPTED, &place))
        })
        .await
    }

    async fn import(&self, mut parts: mpsc::Receiver<Part>) -> Result<(), StoreError> {
        const ATTEMPTED: &str = "fill it";
        if !self.writer.is_running() {
            return Err(StoreError::Closed);
        }
        let filled = if self.database.is_file() {
            let (database, place) = (self.database.clone(), Arc::clone(&self.place));
            off_thread(move || {
                let writer = database.connect_writer()?;
                let imported = copying::import(&writer, || parts.blocking_recv());
                imported.map_err(|fault| fault.into_error(ATTEMPTED, &place))
            })
            .await?
        } else {
            let mut all = Vec::new();
            let mut ended = false;
            while let Some(part) = parts.recv().await {
                match part {
                    Part::Entry(entry) => all.push(entry),
                    Part::End => {
                        ended = true;
                        break;
                    }
                }
            }
            if ended {
                let fill = move |db: &Connection| {
                    let mut all = all.clone().into_iter().map(Part::Entry).chain([Part::End]);
                    copying::empty(db).and_then(|()| copying::fill(db, &mut || all.next()))
                };
                self.writer.write(ATTEMPTED, 1, fill).await?;
            }
            ended
        };
        if filled { Ok(()) } else { Err(StoreError::BrokenOff) }
    }

    async fn close(&self) {
        self.writer.close().await;
    }
}
