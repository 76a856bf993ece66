//! The names of keys. In a cluster a script's keys must lie together, which what stands between `{` and `}` decides: so
//! executions are in shards, each with lists of its own, and a script works on one shard.

use flux_protocol::{ExecutionId, FunctionName, KeyId, SecretName};

use crate::row::OPEN;

pub(super) struct Keys {
    prefix: String,
    shards: usize,
}

impl Keys {
    pub(super) fn new(prefix: &str, shards: usize) -> Self {
        Self { prefix: prefix.to_owned(), shards: shards.max(1) }
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.shards
    }

    /// By the last of an id's random bits.
    pub(super) fn shard_of(&self, id: &[u8; 16]) -> usize {
        usize::from(id[15]) % self.shards
    }

    fn in_shard(&self, shard: usize, name: &str) -> String {
        format!("{{{}:{shard}}}:{name}", self.prefix)
    }

    /// An execution: record, output, invocation, which of its versions this is, and what it is listed by.
    pub(super) fn execution(&self, id: &[u8; 16]) -> String {
        self.in_shard(self.shard_of(id), &format!("x:{}", hex(id)))
    }

    /// The ids of a shard, for each function and status if they are given.
    pub(super) fn list(&self, shard: usize, function: Option<&str>, status: Option<i16>) -> String {
        match (function, status) {
            (None, None) => self.in_shard(shard, "all"),
            (Some(function), None) => self.in_shard(shard, &format!("f:{function}")),
            (None, Some(status)) => self.in_shard(shard, &format!("s:{status}")),
            (Some(function), Some(status)) => self.in_shard(shard, &format!("fs:{status}:{function}")),
        }
    }

    /// Ids by when their status changed: of those that are open, or of those that ended.
    pub(super) fn by_time(&self, shard: usize, status: i16) -> String {
        self.in_shard(shard, if status == OPEN { "open_at" } else { "ended_at" })
    }

    pub(super) fn secret_claim(&self, id: ExecutionId, attempt: u32) -> String {
        self.in_shard(self.shard_of(id.as_bytes()), &format!("c:{}:{attempt}", hex(id.as_bytes())))
    }

    /// The claims of a shard by their time; each is the name of its key.
    pub(super) fn secret_claims(&self, shard: usize) -> String {
        self.in_shard(shard, "claims_at")
    }

    pub(super) fn meta(&self) -> String {
        format!("{}:meta", self.prefix)
    }

    pub(super) fn function(&self, name: &FunctionName) -> String {
        format!("{{{}:functions}}:{name}", self.prefix)
    }

    /// The names of functions that are there. No function's name has a `#`.
    pub(super) fn functions(&self) -> String {
        format!("{{{}:functions}}:#names", self.prefix)
    }

    /// What the keys of functions begin with.
    pub(super) fn functions_prefix(&self) -> String {
        format!("{{{}:functions}}:", self.prefix)
    }

    /// What idempotency keys begin with: then come function and key.
    pub(super) fn idempotency_prefix(&self) -> String {
        format!("{}:idempotency:", self.prefix)
    }

    /// What every key of this store is like.
    pub(super) fn patterns(&self) -> [String; 2] {
        [format!("{}:*", self.prefix), format!("{{{}:*", self.prefix)]
    }

    /// Whether a key stays when the store is filled anew.
    pub(super) fn outlives(&self, key: &str) -> bool {
        key == self.meta() || key.starts_with(&self.lease(""))
    }

    /// The keys that are always the same ones.
    pub(super) fn of_access(&self) -> Vec<String> {
        let [count, log, by_time] = self.audit();
        vec![self.api_keys(), self.keys_used(), self.shared(), self.secrets(), count, log, by_time]
    }

    pub(super) fn idempotency(&self, function: &FunctionName, key: &str) -> String {
        format!("{}:idempotency:{function}:{key}", self.prefix)
    }

    pub(super) fn lease(&self, name: &str) -> String {
        format!("{}:lease:{name}", self.prefix)
    }

    fn access(&self, name: &str) -> String {
        format!("{{{}:access}}:{name}", self.prefix)
    }

    pub(super) fn api_keys(&self) -> String {
        self.access("keys")
    }

    pub(super) fn keys_used(&self) -> String {
        self.access("used")
    }

    pub(super) fn shared(&self) -> String {
        self.access("shared")
    }

    pub(super) fn audit(&self) -> [String; 3] {
        [self.access("audit_count"), self.access("audit"), self.access("audit_at")]
    }

    /// The names of secrets, and which version of all this is.
    pub(super) fn secrets(&self) -> String {
        self.access("secrets")
    }

    pub(super) fn secret(&self, name: &SecretName) -> String {
        self.access(&format!("secret:{name}"))
    }

    /// In a hash of records by id, where the hash's own version is. No key's id begins so.
    pub(super) const VERSION: &str = "#version";

    pub(super) fn is_key_id(field: &str) -> bool {
        KeyId::parse(field).is_ok()
    }
}

fn hex(id: &[u8; 16]) -> String {
    use std::fmt::Write as _;
    id.iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
