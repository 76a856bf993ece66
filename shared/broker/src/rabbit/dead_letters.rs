//! Dead letters: a log, of which every gateway keeps the index in memory and reads what is asked for where it lies. It is read
//! from its first use on. Above `limits::DLQ_STREAM_BYTES` the oldest letters go: a stream refuses nothing.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use flux_protocol::{FunctionName, Invocation, StatusMessage, Timestamp, limits};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::{
    RabbitBroker,
    error::into_broker,
    link::{Link, WITHIN},
    log::{Kind, Log, consume},
    record::{Change, Record},
    tables::delete,
    view::{Applied, Row, Rows},
};
use crate::{BrokerError, DeadLetter, DeadLetters};

const PURGED_AT_ONCE: usize = 64;

/// The value of a letter's row; its table is the function, its key the execution, its revision the sequence.
#[derive(Serialize, Deserialize)]
struct Letter {
    invocation: Invocation,
    status: StatusMessage,
}

pub(super) fn log(link: &Arc<Link>) -> Arc<Log> {
    Log::new(link, Kind { name: "letters", history: &[], aging: &[], keeps_values: false })
}

impl RabbitBroker {
    async fn index(&self, function: &FunctionName) -> Result<Vec<Row>, BrokerError> {
        self.parts.letters.read_to_now("read dead letters").await?;
        Ok(self.parts.letters.look(|view| view.table(function.as_str()).map(Rows::all).unwrap_or_default()))
    }

    /// Reads on from the first of these, oldest first, until it has them all.
    async fn contents(&self, function: &FunctionName, rows: &[Row]) -> Result<Vec<DeadLetter>, BrokerError> {
        let attempted = "read dead letters";
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Vec::new()) };
        let wanted: HashMap<u64, Timestamp> = rows.iter().map(|row| (row.revision, row.at)).collect();
        let session = self.parts.link.session(attempted).await?;
        let from = first.revision.saturating_sub(1).to_string();
        let log = self.parts.link.names.log("letters");
        let reading = consume(&session, &log, &from);
        let (channel, mut records) = self.parts.link.within(attempted, reading).await?;
        let mut letters = Vec::new();
        loop {
            let next = tokio::time::timeout(WITHIN, records.next()).await;
            let next = next.map_err(|_| BrokerError::unavailable(attempted, "no answer came in time"))?;
            let Some(incoming) = next else { break };
            let incoming = incoming.map_err(|error| into_broker(attempted, error))?;
            let _ = channel.basic_ack(incoming.delivery_tag, lapin::options::BasicAckOptions::default()).await;
            let Some((offset, record)) = Record::decode(&incoming.properties, incoming.data.into()) else { continue };
            let sequence = offset + 1;
            if let Some(at) = wanted.get(&sequence)
                && let Change::Update { value, .. } = record.change
                && let Ok(Letter { invocation, status }) = serde_json::from_slice(&value)
            {
                letters.push(DeadLetter { sequence, function: function.clone(), at: *at, invocation, status });
            }
            // Where the last has gone by its age, what comes is later.
            if sequence >= last.revision {
                break;
            }
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(letters)
    }
}

#[async_trait]
impl DeadLetters for RabbitBroker {
    async fn bury(&self, status: &StatusMessage, invocation: &Invocation) -> Result<u64, BrokerError> {
        let attempted = "store a dead letter";
        let (function, execution) = (status.function.as_str(), status.execution_id.to_string());
        // What the status was retried with is the letter's invocation; once is enough.
        let letter =
            Letter { invocation: invocation.clone(), status: StatusMessage { invocation: None, ..status.clone() } };
        let value = serde_json::to_vec(&letter).map_err(|error| BrokerError::refused("encode a dead letter", error))?;
        self.parts.letters.read_to_now(attempted).await?;
        let buried = || {
            self.parts.letters.look(|view| view.table(function).and_then(|rows| Some(rows.ever(&execution)?.revision)))
        };
        if let Some(sequence) = buried() {
            return Ok(sequence);
        }
        let change = Change::Update { expected: 0, value: value.into() };
        match self.parts.letters.append(attempted, Record::new(function, &execution, change)).await? {
            Applied::Yes(sequence) => Ok(sequence),
            Applied::No => buried().ok_or(BrokerError::Conflict { key: execution.clone() }),
        }
    }

    async fn letters(&self, function: &FunctionName, after: u64, most: usize) -> Result<Vec<DeadLetter>, BrokerError> {
        let rows = self.index(function).await?.into_iter().filter(|row| row.revision > after);
        let rows: Vec<_> = rows.take(most.min(limits::PAGE)).collect();
        self.contents(function, &rows).await
    }

    async fn letter(&self, function: &FunctionName, sequence: u64) -> Result<Option<DeadLetter>, BrokerError> {
        let rows: Vec<_> = self.index(function).await?.into_iter().filter(|row| row.revision == sequence).collect();
        Ok(self.contents(function, &rows).await?.into_iter().next())
    }

    async fn remove_letter(&self, function: &FunctionName, sequence: u64) -> Result<bool, BrokerError> {
        let row = self.index(function).await?.into_iter().find(|row| row.revision == sequence);
        let Some(row) = row else { return Ok(false) };
        delete(&self.parts.letters, function.as_str(), &row.key).await?;
        Ok(true)
    }

    async fn purge_letters(&self, function: &FunctionName) -> Result<u64, BrokerError> {
        let rows = self.index(function).await?;
        let count = rows.len() as u64;
        futures::stream::iter(rows.into_iter().map(Ok))
            .try_for_each_concurrent(PURGED_AT_ONCE, |row| async move {
                delete(&self.parts.letters, function.as_str(), &row.key).await
            })
            .await?;
        Ok(count)
    }

    async fn letter_counts(&self) -> Result<Vec<(FunctionName, u64)>, BrokerError> {
        self.parts.letters.read_to_now("count dead letters").await?;
        let counts = self.parts.letters.look(|view| {
            let of = |(name, rows): (&String, &Rows)| Some((FunctionName::parse(name).ok()?, rows.all().len() as u64));
            view.tables().filter_map(of).collect::<Vec<_>>()
        });
        Ok(counts.into_iter().filter(|(_, count)| *count > 0).collect())
    }
}
