//! Last values by key, watched.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flux_protocol::{Timestamp, limits};
use futures::stream::BoxStream;

use crate::BrokerError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Key: function. Value: its current `FunctionVersion`. Keeps history.
    Functions,
    /// Key: `<function>.<version>`. Value: that `FunctionVersion`.
    Versions,
    /// Key: agent. Value: its last `Heartbeat`; kept in memory for [`limits::AGENT_FORGOTTEN_AFTER`].
    Agents,
    /// Key: [`QueueName::key`](flux_protocol::subject::QueueName::key). Value: empty. What agents pull on.
    Hot,
    /// Key: execution. Value: why it was cancelled. What was cancelled while nobody could say where its message was;
    /// kept for [`limits::EVENT_AGE`], after which no message is started any more.
    Cancelled,
    /// Key: agent. Value: its `Registered`: machines that somebody registered, which no autoscaler touches.
    Registered,
    /// What the autoscaler has bought and means to do, who of several acts, and what was decided last.
    Autoscaler,
}

impl Table {
    /// How long a value lives in the table, if not for ever.
    pub const fn ttl(self) -> Option<Duration> {
        match self {
            Self::Agents => Some(limits::AGENT_FORGOTTEN_AFTER),
            Self::Cancelled => Some(limits::EVENT_AGE),
            Self::Functions | Self::Versions | Self::Hot | Self::Registered | Self::Autoscaler => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// Grows with each change of the table.
    pub revision: u64,
    pub at: Timestamp,
}

#[derive(Debug, Clone)]
pub enum Change {
    Put(Entry),
    Deleted {
        key: String,
        revision: u64,
        at: Timestamp,
    },
    /// All that was there at the start has been told.
    Synced,
}

pub type Watch = BoxStream<'static, Result<Change, BrokerError>>;

#[async_trait]
pub trait Tables {
    async fn put(&self, table: Table, key: &str, value: Bytes) -> Result<u64, BrokerError>;

    /// Puts unless the key's revision is another than `revision` (0: it must not exist): `Conflict` then.
    async fn update(&self, table: Table, key: &str, value: Bytes, revision: u64) -> Result<u64, BrokerError>;

    async fn get(&self, table: Table, key: &str) -> Result<Option<Entry>, BrokerError>;

    async fn delete(&self, table: Table, key: &str) -> Result<(), BrokerError>;

    /// All keys. For reconciliation, not for the path of an invocation.
    async fn keys(&self, table: Table) -> Result<Vec<String>, BrokerError>;

    /// When its storage was made: lately, where it was lost. What is missing in it then may still be put back.
    async fn made_at(&self, table: Table) -> Result<Timestamp, BrokerError>;

    /// Every entry (with its history, oldest first, where the table keeps one), then [`Change::Synced`], then
    /// each change. Goes on over reconnections. When the broker's storage was lost and made anew it says
    /// everything again from `Synced`'s start; a watcher must take a `Put` that it knows already. Keys that are not in
    /// it any more are told as deleted just before `Synced` (revision 0), except in a table whose values age. Tables
    /// that come and go (hot queues, agents) are told anew after each reconnection.
    async fn watch(&self, table: Table, history: bool) -> Result<Watch, BrokerError>;
}
