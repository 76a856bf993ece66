//! An execution's record as a row: columns for what is filtered or ordered by, JSON for the rest, and
//! output and invocation apart.

use bytes::Bytes;
use flux_protocol::{ExecutionId, ExecutionRecord, OutcomeStatus, OutputLog, Timestamp};
use rusqlite::types::{Type, ValueRef};

use super::fault::Fault;

/// `status` of an execution that is not terminal.
pub(super) const OPEN: i64 = 0;

pub(super) const fn ended(status: OutcomeStatus) -> i64 {
    match status {
        OutcomeStatus::Success => 1,
        OutcomeStatus::Failed => 2,
        OutcomeStatus::Cancelled => 3,
    }
}

pub(super) struct Row {
    pub(super) id: [u8; 16],
    pub(super) function: String,
    pub(super) status: i64,
    pub(super) queued_at: i64,
    pub(super) status_at: i64,
    pub(super) record: String,
    /// As [`OutputLog::encode`] wrote it.
    pub(super) output: Option<Bytes>,
    pub(super) invocation: Option<String>,
}

impl Row {
    /// # Panics
    /// Never: a record has no map keys or numbers that JSON cannot hold.
    pub(super) fn of(mut record: ExecutionRecord) -> Self {
        let invocation = record.invocation.take();
        let output = record.outcome.as_mut().and_then(|outcome| {
            let encoded = (!outcome.output.is_empty()).then(|| outcome.output.encode());
            outcome.output.chunks = Vec::new();
            encoded
        });
        let status = match &record.outcome {
            Some(outcome) if record.is_terminal() => ended(outcome.status),
            _ => OPEN,
        };
        Self {
            id: *record.execution_id.as_bytes(),
            function: record.function.to_string(),
            status,
            queued_at: record.queued_at.as_micros(),
            status_at: record.status_at.as_micros(),
            record: serde_json::to_string(&record).expect("a record is JSON"),
            output,
            invocation: invocation.map(|invocation| serde_json::to_string(&invocation).expect("an invocation is JSON")),
        }
    }
}

/// Reads `record, output, invocation` from the columns that start at `first`.
pub(super) fn whole_record(row: &rusqlite::Row<'_>, first: usize) -> Result<ExecutionRecord, Fault> {
    let mut record = slim_record(row, first)?;
    if let Some(outcome) = &mut record.outcome
        && let Some(encoded) = optional_bytes(row, first + 1)?
    {
        outcome.output = OutputLog::decode(Bytes::copy_from_slice(encoded))
            .ok_or_else(|| Fault::row(format!("the output of {}", record.execution_id), "it is not an encoded log"))?;
    }
    if let Some(json) = optional_bytes(row, first + 2)? {
        record.invocation = serde_json::from_slice(json)
            .map_err(|error| Fault::row(format!("the invocation of {}", record.execution_id), error))?;
    }
    Ok(record)
}

/// Reads `record` alone.
pub(super) fn slim_record(row: &rusqlite::Row<'_>, at: usize) -> Result<ExecutionRecord, Fault> {
    let json = optional_bytes(row, at)?.unwrap_or_default();
    serde_json::from_slice(json).map_err(|error| Fault::row("an execution's record", error))
}

fn optional_bytes<'r>(row: &'r rusqlite::Row<'_>, at: usize) -> Result<Option<&'r [u8]>, Fault> {
    match row.get_ref(at)? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(Some(bytes)),
        ValueRef::Integer(_) | ValueRef::Real(_) => {
            Err(rusqlite::Error::InvalidColumnType(at, "record".to_owned(), Type::Integer).into())
        }
    }
}

/// The smallest id of an execution made at `at`: ids are UUIDv7, which begin with their milliseconds.
pub(super) fn first_id_at(at: Timestamp) -> [u8; 16] {
    let millis = u64::try_from(at.as_millis()).unwrap_or(0).min((1 << 48) - 1);
    let mut id = [0; 16];
    id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    id
}

pub(super) fn key(id: ExecutionId) -> [u8; 16] {
    *id.as_bytes()
}

/// Rows of one page, whatever was asked.
pub(super) fn page(limit: usize) -> i64 {
    i64::try_from(limit.clamp(1, flux_protocol::limits::PAGE)).unwrap_or(1)
}
