//! The state seam: functions and versions, executions, idempotency keys, leases; API keys, secrets, the audit log.
//!
//! Only gateways (and the autoscaler) open a store. Engines are chosen by URL ([`open`]) and each passes
//! [`conformance`].
//!
//! Updates of executions are commutative: keyed by (execution, attempt), ranked queued < running < ended.
//! Statuses may come twice, late or out of order, from several gateways at once; the record converges to
//! the same value. The first terminal outcome in the status log's order wins.
//!
//! **Architecture Invariant:** nothing here knows a broker or HTTP, and no engine's type is in a public signature.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_protocol::{
    AgentId, Digest, ExecutionId, ExecutionRecord, FunctionName, FunctionSpec, FunctionVersion, KeyId, OutcomeStatus,
    SecretName, StatusMessage, Timestamp,
};
use tokio::sync::mpsc;

mod access;
mod batch;
pub mod conformance;
mod copying;
mod error;
mod merge;
mod open;
mod patience;
mod postgres;
mod redis;
mod row;
mod sqlite;
mod tls;
mod url;
mod versions;

pub use access::{ApiKeyRecord, AuditEntry, PreviousKey, SealedSecret};
pub use copying::{Census, Entry, FunctionHead, HeldKey, NumberedEntry, Part, SharedKey, UsedKey};
pub use error::StoreError;
pub use merge::{Merged, merge_queued, merge_requeued, merge_status};
pub use open::{Durability, Tuning, open};

/// A function with all its versions' numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub current: FunctionVersion,
    /// Oldest first; at most [`limits::VERSION_HISTORY`](flux_protocol::limits::VERSION_HISTORY).
    pub versions: Vec<VersionSummary>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionSummary {
    pub version: u32,
    pub digest: Option<Digest>,
    pub created_at: Timestamp,
}

/// What [`Store::register`] and [`Store::deploy`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    pub version: FunctionVersion,
    /// False when the same code and configuration were current already: nothing changed.
    pub changed: bool,
}

/// One status to record.
#[derive(Debug, Clone)]
pub struct StatusUpdate {
    pub status: StatusMessage,
    /// Its place in the order of the status log: of two outcomes that have one the smaller leads, whenever it comes. `None`: its log
    /// has no order that all gateways agree on, and the outcome that is recorded first stays.
    pub sequence: Option<u64>,
}

/// What recording a status did, in the order of the updates given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub execution_id: ExecutionId,
    /// This update made the execution terminal: exactly one update per execution gets it, unless the
    /// transaction is repeated after a crash.
    pub became_terminal: bool,
    /// The record as it is now accepts this attempt's `will_retry`: the next attempt is to be published.
    /// Repeated when the same update comes again before that attempt was seen ([`Store::requeued`], or a status of it).
    pub retry_wanted: bool,
    /// The execution is another function's, or of another pool or lane, than the status says: nothing was recorded.
    pub contradicted: bool,
}

#[derive(Debug, Clone, Default)]
pub struct ExecutionFilter {
    pub function: Option<FunctionName>,
    pub status: Option<StatusFilter>,
    /// Queued at or after. Bounded through the ids' own time: an execution whose id says that it is more than
    /// ten minutes older than this may be left out.
    pub since: Option<Timestamp>,
    /// Only executions older than this one (newest come first).
    pub cursor: Option<ExecutionId>,
    pub limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFilter {
    /// Not terminal.
    Running,
    Ended(OutcomeStatus),
}

/// What an idempotency key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The key is new, and now stands for the given execution.
    Claimed,
    /// It stands for this execution since `at`; `body` is the digest of the request that claimed it.
    Held { execution_id: ExecutionId, body: Digest, at: Timestamp },
}

/// A lease with its fencing token, which grows each time the lease changes hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub holder: String,
    pub token: u64,
    pub until: Timestamp,
}

/// The lease of the gateway that looks after what was lost: while somebody has it, gateways are alive.
pub const RECONCILER_LEASE: &str = "reconciler";
/// The lease of who copies code archives away: while somebody has it, none is removed.
pub const COPYING_LEASE: &str = "archives-copied";

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// A round trip to the engine.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Registers a configuration. A new function has version 1 without code; another configuration of a known
    /// one is a new version with the current code; the same configuration changes nothing.
    async fn register(&self, spec: &FunctionSpec, now: Timestamp) -> Result<Deployed, StoreError>;

    /// Sets a function's code: a new version with the current configuration, or with `spec` if given, which
    /// also makes the function where there is none. The current version's archive and configuration again is
    /// the same version. A current version without code, which cannot have run, gets the code without a new number.
    ///
    /// # Errors
    /// `NotFound`: there is no such function, and no `spec`.
    async fn deploy(
        &self,
        name: &FunctionName,
        digest: Digest,
        spec: Option<&FunctionSpec>,
        now: Timestamp,
    ) -> Result<Deployed, StoreError>;

    /// Makes an old version current again, at once. `None`: no such function or version. Versions beyond the
    /// [`limits::VERSION_HISTORY`](flux_protocol::limits::VERSION_HISTORY) newest are gone, the current one never.
    async fn rollback(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError>;

    async fn function(&self, name: &FunctionName) -> Result<Option<Function>, StoreError>;

    async fn function_version(&self, name: &FunctionName, version: u32) -> Result<Option<FunctionVersion>, StoreError>;

    /// Current versions in the order of their names, after `cursor`; from 1 to
    /// [`limits::PAGE`](flux_protocol::limits::PAGE) of them, as all lists here.
    async fn functions(
        &self,
        prefix: &str,
        cursor: Option<&FunctionName>,
        limit: usize,
    ) -> Result<Vec<FunctionVersion>, StoreError>;

    /// Removes a function and its versions; its executions stay. Whether it was there. A function registered
    /// anew under the name goes on counting versions where the old one ended.
    async fn delete_function(&self, name: &FunctionName) -> Result<bool, StoreError>;

    /// Digests that any kept version names.
    async fn digests(&self) -> Result<Vec<Digest>, StoreError>;

    /// Inserts a queued record, or merges it with what statuses have already told. Durable when it returns.
    async fn insert_queued(&self, record: ExecutionRecord) -> Result<(), StoreError>;

    /// Records transitions in one transaction. Durable when it returns.
    async fn record(&self, updates: Vec<StatusUpdate>) -> Result<Vec<Recorded>, StoreError>;

    /// The whole record, output included.
    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError>;

    /// Newest first, by their ids. Without output: the outcomes' chunks are left out, and so is the invocation.
    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError>;

    /// Executions that are not terminal and whose status did not change since `before`, oldest first by their
    /// ids, after `after`. Whole records, invocation included.
    async fn open_executions(
        &self,
        before: Timestamp,
        after: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<ExecutionRecord>, StoreError>;

    /// Says where the message of an attempt that was published again lies now, and since when it waits. An
    /// attempt that has gone further meanwhile only learns the position; an unknown execution stays unknown.
    async fn requeued(
        &self,
        id: ExecutionId,
        attempt: u32,
        position: flux_protocol::execution::QueuePosition,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Claims an idempotency key in a function for `window`. Atomic: of two at once one is `Claimed`. The same
    /// execution claiming again is `Held` by itself.
    async fn claim_idempotency(
        &self,
        function: &FunctionName,
        key: &str,
        body: Digest,
        id: ExecutionId,
        now: Timestamp,
        window: Duration,
    ) -> Result<Claim, StoreError>;

    /// Frees a key whose execution was refused before it was accepted. One that another execution holds stays.
    async fn release_idempotency(&self, function: &FunctionName, key: &str, id: ExecutionId) -> Result<(), StoreError>;

    /// Takes or renews a lease. `None`: another holds it. Renewed in time it keeps its token; taken anew, also by
    /// the same holder after it ran out or was released, it has a greater one than ever before; the first is 1.
    async fn lease(&self, name: &str, holder: &str, now: Timestamp, ttl: Duration)
    -> Result<Option<Lease>, StoreError>;

    /// Gives a lease back. One that another holds stays.
    async fn release_lease(&self, name: &str, holder: &str) -> Result<(), StoreError>;

    /// Adds an API key. False: there are [`limits::KEYS`](flux_protocol::limits::KEYS) already, or its id is taken.
    async fn insert_key(&self, key: &ApiKeyRecord) -> Result<bool, StoreError>;

    /// Every API key, oldest first.
    async fn api_keys(&self) -> Result<Vec<ApiKeyRecord>, StoreError>;

    /// Gives a key another digest; the one that it had works until `until`, and one before that no more. `None`: no such
    /// key. Of two at once the later one's digest stays, and the other's is the previous.
    async fn rotate_key(
        &self,
        id: &KeyId,
        digest: Digest,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<ApiKeyRecord>, StoreError>;

    /// Whether it was there.
    async fn delete_key(&self, id: &KeyId) -> Result<bool, StoreError>;

    /// Says when keys were used. The latest that anyone says stays; keys that are gone stay gone.
    async fn keys_used(&self, uses: Vec<(KeyId, Timestamp)>) -> Result<(), StoreError>;

    /// A random key that all who use this store share: the first that is proposed stays.
    async fn shared_key(&self, name: &str, proposed: [u8; 32]) -> Result<[u8; 32], StoreError>;

    /// Adds to the audit log. Durable when it returns.
    async fn audit(&self, entry: AuditEntry) -> Result<(), StoreError>;

    /// Entries with their numbers, newest first, from before the number `before`. Kept for
    /// [`limits::AUDIT_KEPT`](flux_protocol::limits::AUDIT_KEPT), as `expire` finds them.
    async fn audit_log(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, AuditEntry)>, StoreError>;

    /// Sets a secret, whose version is one more than it was (a new one's is 1), and says which. `None`: there are
    /// [`limits::SECRETS`](flux_protocol::limits::SECRETS) already.
    async fn put_secret(&self, secret: &SealedSecret) -> Result<Option<u32>, StoreError>;

    async fn secret(&self, name: &SecretName) -> Result<Option<SealedSecret>, StoreError>;

    /// In the order of their names.
    async fn secrets(&self) -> Result<Vec<SealedSecret>, StoreError>;

    /// Replaces how a value is encrypted, if its version is still this one. Whether it was.
    async fn reseal_secret(&self, secret: &SealedSecret) -> Result<bool, StoreError>;

    /// Whether it was there.
    async fn delete_secret(&self, name: &SecretName) -> Result<bool, StoreError>;

    /// Claims the secrets of an attempt for an agent. True for the first, and for the same agent with the same nonce
    /// again: it repeats what was lost on its way. Of two at once one gets it.
    async fn claim_secrets(
        &self,
        execution: ExecutionId,
        attempt: u32,
        agent: &AgentId,
        nonce: [u8; 16],
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Removes terminal executions whose status is older than `before`, at most `limit`, and expired idempotency
    /// keys, claims of secrets, and audit entries. Returns the executions removed (as [`Store::executions`] does), so that their blobs can go too.
    /// Other writes go on between its steps.
    async fn expire(&self, before: Timestamp, limit: usize) -> Result<Vec<ExecutionRecord>, StoreError>;

    /// How much it holds.
    async fn census(&self) -> Result<Census, StoreError>;

    /// Sends everything that is kept, but leases and claims of secrets, while gateways go on. As of one moment on SQLite and
    /// PostgreSQL. On Redis record by record: what began before the call is in it, what begins meanwhile may be; the version
    /// of every execution that is in it is in it too, as far as it is kept. Ends early, and well, where nobody takes any more.
    async fn export(&self, into: mpsc::Sender<Entry>) -> Result<(), StoreError>;

    /// Puts what comes in the place of everything that is kept, but leases: all of it when [`Part::End`] comes, and else
    /// nothing. On Redis a store that was left half filled is refused by [`open`] until it was filled again.
    /// Nobody else may use the store meanwhile.
    ///
    /// # Errors
    /// `BrokenOff`: the parts ended without their end.
    async fn import(&self, parts: mpsc::Receiver<Part>) -> Result<(), StoreError>;

    /// Writes what was handed over and closes. Calls that come later get [`StoreError::Closed`]. A store that
    /// is dropped, or whose process dies, loses nothing that a call has returned for; closing only tidies up.
    async fn close(&self);
}

pub type SharedStore = Arc<dyn Store>;
