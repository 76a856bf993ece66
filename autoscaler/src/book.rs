//! Where the fleet is written: by one at a time.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_broker::{Broker, BrokerError, Table};
use flux_protocol::{
    Timestamp,
    autoscaler::{AutoscalerStatus, FLEET_KEY, LEASE_KEY, STATUS_KEY},
    limits,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::fleet::Fleet;

#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error("somebody else has written meanwhile: another autoscaler acts")]
    Overtaken,
    #[error("the fleet in the queue's table cannot be read: {why}")]
    Damaged { why: String },
    #[error("the queue cannot be asked about the fleet")]
    Queue(#[source] BrokerError),
}

/// The fleet's place, with the lease on acting.
#[async_trait]
pub trait Book: Send + Sync {
    /// Takes or renews the lease; false: another has it.
    async fn lease(&self, holder: &str, at: Timestamp) -> Result<bool, BookError>;

    /// The fleet and its revision; 0: there is none yet.
    async fn read(&self) -> Result<(Fleet, u64), BookError>;

    /// Writes it over exactly that revision; the new one.
    async fn write(&self, fleet: &Fleet, revision: u64) -> Result<u64, BookError>;

    /// What is shown. Not fenced: who has lost the lease is corrected by who has it.
    async fn show(&self, status: &AutoscalerStatus) -> Result<(), BookError>;

    async fn shown(&self) -> Result<Option<AutoscalerStatus>, BookError>;
}

/// One that is late, or leads to nothing, loses no lease.
const LOOKS_OF_A_LEASE: u32 = 3;

#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    holder: String,
    until: Timestamp,
}

/// In the queue's table.
pub struct QueueBook {
    broker: Arc<dyn Broker>,
    lease: Duration,
}

impl QueueBook {
    /// `poll` is the time between looks: a lease outlasts several of them.
    pub fn new(broker: Arc<dyn Broker>, poll: Duration) -> Self {
        Self { broker, lease: limits::AUTOSCALER_LEASE.max(poll * LOOKS_OF_A_LEASE) }
    }

    async fn value<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, BookError> {
        let Some(entry) = self.broker.get(Table::Autoscaler, key).await.map_err(BookError::Queue)? else {
            return Ok(None);
        };
        let value =
            serde_json::from_slice(&entry.value).map_err(|error| BookError::Damaged { why: error.to_string() })?;
        Ok(Some((value, entry.revision)))
    }

    async fn update(&self, key: &str, value: &impl Serialize, revision: u64) -> Result<u64, BookError> {
        let body = serde_json::to_vec(value).map_err(|error| BookError::Damaged { why: error.to_string() })?;
        match self.broker.update(Table::Autoscaler, key, body.into(), revision).await {
            Err(BrokerError::Conflict { .. }) => Err(BookError::Overtaken),
            other => other.map_err(BookError::Queue),
        }
    }
}

#[async_trait]
impl Book for QueueBook {
    async fn lease(&self, holder: &str, at: Timestamp) -> Result<bool, BookError> {
        let (lease, revision) = match self.value::<Lease>(LEASE_KEY).await? {
            Some((lease, revision)) => (Some(lease), revision),
            None => (None, 0),
        };
        if lease.is_some_and(|lease| lease.holder != holder && lease.until > at) {
            return Ok(false);
        }
        let lease = Lease { holder: holder.to_owned(), until: at.plus(self.lease) };
        match self.update(LEASE_KEY, &lease, revision).await {
            Ok(_) => Ok(true),
            Err(BookError::Overtaken) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn read(&self) -> Result<(Fleet, u64), BookError> {
        Ok(self.value(FLEET_KEY).await?.unwrap_or_default())
    }

    async fn write(&self, fleet: &Fleet, revision: u64) -> Result<u64, BookError> {
        self.update(FLEET_KEY, fleet, revision).await
    }

    async fn show(&self, status: &AutoscalerStatus) -> Result<(), BookError> {
        let body = serde_json::to_vec(status).map_err(|error| BookError::Damaged { why: error.to_string() })?;
        self.broker.put(Table::Autoscaler, STATUS_KEY, body.into()).await.map(|_| ()).map_err(BookError::Queue)
    }

    async fn shown(&self) -> Result<Option<AutoscalerStatus>, BookError> {
        Ok(self.value(STATUS_KEY).await?.map(|(status, _)| status))
    }
}

/// Gives the lease back, so that another need not wait for its end.
pub async fn release(broker: &dyn Broker, holder: &str) {
    let mine = broker.get(Table::Autoscaler, LEASE_KEY).await.ok().flatten();
    let mine =
        mine.filter(|entry| serde_json::from_slice::<Lease>(&entry.value).is_ok_and(|lease| lease.holder == holder));
    if let Some(entry) = mine {
        let over = Lease { holder: holder.to_owned(), until: Timestamp::default() };
        if let Ok(body) = serde_json::to_vec(&over) {
            let update = broker.update(Table::Autoscaler, LEASE_KEY, body.into(), entry.revision);
            let _ = tokio::time::timeout(Duration::from_secs(2), update).await;
        }
    }
}
