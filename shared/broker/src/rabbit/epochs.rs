//! When a lane's storage was made. The invoke lane's is as old as its entry in the log, which is lost with the queues; the
//! call lane's lies in the server's memory, and so does a queue that nobody uses: who finds it missing says so in the log.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use flux_protocol::{PoolName, Timestamp, invocation::Lane, time::now};
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use parking_lot::Mutex;

use super::{
    Parts,
    link::Link,
    log::Log,
    session::Session,
    tables::{EPOCHS, get, update},
};
use crate::BrokerError;

type OfLanes = HashMap<(Lane, PoolName), Timestamp>;

#[derive(Default)]
pub(super) struct Epochs {
    /// Of the connection with that number.
    known: Mutex<(u64, OfLanes)>,
}

impl Epochs {
    /// The lane's epoch, which does not change while a connection lasts. Gateways alone tell that one is over.
    pub(super) async fn of(&self, parts: &Parts, lane: Lane, pool: &PoolName) -> Result<Timestamp, BrokerError> {
        let (link, kept) = (&parts.link, &parts.logs.kept);
        let session = link.session("read a lane's epoch").await?;
        let of = (lane, pool.clone());
        {
            let known = self.known.lock();
            if known.0 == session.number
                && let Some(epoch) = known.1.get(&of)
            {
                return Ok(*epoch);
            }
        }
        if !parts.tends.load(Ordering::Acquire) {
            // It may be told to be over at any moment.
            return written(kept, &key(lane, pool))
                .await?
                .map(|(_, epoch)| epoch)
                .ok_or_else(|| BrokerError::unavailable("read a lane's epoch", "no gateway has made the queues yet"));
        }
        let epoch = find(link, &session, kept, lane, pool).await?;
        let mut known = self.known.lock();
        if known.0 != session.number {
            *known = (session.number, HashMap::new());
        }
        known.1.insert(of, epoch);
        Ok(epoch)
    }
}

async fn find(
    link: &Arc<Link>,
    session: &Session,
    kept: &Arc<Log>,
    lane: Lane,
    pool: &PoolName,
) -> Result<Timestamp, BrokerError> {
    let attempted = "read a lane's epoch";
    let key = key(lane, pool);
    let alive = link.names.alive(pool);
    loop {
        // Looked at before the queue is: of two that find it missing one writes, and the other reads what that one wrote.
        let (revision, before) = written(kept, &key).await?.unwrap_or_default();
        let lost = lane == Lane::Call && link.within(attempted, session.waiting(&alive)).await?.is_none();
        if revision > 0 && !lost {
            return Ok(before);
        }
        // Later than the one before, whatever the clocks say.
        let epoch = now().max(before.plus(Duration::from_micros(1)));
        match update(kept, EPOCHS, &key, epoch.as_micros().to_string().into(), revision).await {
            Ok(_) | Err(BrokerError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        if lane == Lane::Call {
            let passing = QueueDeclareOptions::default();
            let declare = async {
                session.channel().await?.queue_declare(alive.as_str().into(), passing, FieldTable::default()).await
            };
            link.within(attempted, declare).await?;
        }
    }
}

fn key(lane: Lane, pool: &PoolName) -> String {
    format!("{}.{pool}", lane.as_str())
}

/// What the log says, and with which revision.
async fn written(kept: &Arc<Log>, key: &str) -> Result<Option<(u64, Timestamp)>, BrokerError> {
    let row = get(kept, EPOCHS, key).await?;
    Ok(row.and_then(|row| Some((row.revision, parse(row.value.as_deref())?))))
}

fn parse(value: Option<&[u8]>) -> Option<Timestamp> {
    std::str::from_utf8(value?).ok()?.parse().ok().map(Timestamp::from_micros)
}
