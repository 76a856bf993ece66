//! An execution's record in the parts that engines keep: what is filtered or ordered by apart, the rest as JSON, and
//! output and invocation by themselves, so that lists never read them.

use std::time::Duration;

use bytes::Bytes;
use flux_protocol::{ExecutionRecord, OutcomeStatus, OutputLog, Timestamp};

use crate::{ExecutionFilter, StatusFilter};

/// `status` of an execution that is not terminal.
pub(crate) const OPEN: i16 = 0;
/// How far behind its `queued_at` an id's own time may be, for the bound that `since` puts on ids.
const ID_SLACK: Duration = Duration::from_secs(600);

pub(crate) const fn ended(status: OutcomeStatus) -> i16 {
    match status {
        OutcomeStatus::Success => 1,
        OutcomeStatus::Failed => 2,
        OutcomeStatus::Cancelled => 3,
    }
}

pub(crate) struct Row {
    pub(crate) id: [u8; 16],
    pub(crate) function: String,
    pub(crate) status: i16,
    pub(crate) queued_at: i64,
    pub(crate) status_at: i64,
    pub(crate) record: String,
    /// As [`OutputLog::encode`] wrote it.
    pub(crate) output: Option<Bytes>,
    pub(crate) invocation: Option<String>,
}

impl Row {
    /// # Panics
    /// Never: a record has no map keys or numbers that JSON cannot hold.
    pub(crate) fn of(mut record: ExecutionRecord) -> Self {
        let invocation = record.invocation.take();
        let output = record.outcome.as_mut().and_then(|outcome| {
            let encoded = (!outcome.output.is_empty()).then(|| outcome.output.encode());
            outcome.output.chunks = Vec::new();
            encoded
        });
        Self {
            id: *record.execution_id.as_bytes(),
            function: record.function.to_string(),
            status: status_of(&record),
            queued_at: record.queued_at.as_micros(),
            status_at: record.status_at.as_micros(),
            record: serde_json::to_string(&record).expect("a record is JSON"),
            output,
            invocation: invocation.map(|invocation| serde_json::to_string(&invocation).expect("an invocation is JSON")),
        }
    }

    /// About what it takes to send.
    pub(crate) fn bytes(&self) -> usize {
        self.record.len() + self.output.as_ref().map_or(0, Bytes::len) + self.invocation.as_ref().map_or(0, String::len)
    }
}

fn status_of(record: &ExecutionRecord) -> i16 {
    match &record.outcome {
        Some(outcome) if record.is_terminal() => ended(outcome.status),
        _ => OPEN,
    }
}

/// What is kept and makes no sense.
#[derive(Debug, Clone)]
pub(crate) struct Unreadable {
    pub(crate) what: String,
    pub(crate) problem: String,
}

impl Unreadable {
    pub(crate) fn new(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self { what: what.into(), problem: problem.to_string() }
    }
}

/// The record without output and invocation.
pub(crate) fn slim(record: &[u8]) -> Result<ExecutionRecord, Unreadable> {
    serde_json::from_slice(record).map_err(|error| Unreadable::new("an execution's record", error))
}

pub(crate) fn whole(
    record: &[u8],
    output: Option<&[u8]>,
    invocation: Option<&[u8]>,
) -> Result<ExecutionRecord, Unreadable> {
    let mut record = slim(record)?;
    let id = record.execution_id;
    if let (Some(outcome), Some(encoded)) = (&mut record.outcome, output) {
        outcome.output = OutputLog::decode(Bytes::copy_from_slice(encoded))
            .ok_or_else(|| Unreadable::new(format!("the output of {id}"), "it is not an encoded log"))?;
    }
    if let Some(json) = invocation {
        record.invocation =
            serde_json::from_slice(json).map_err(|error| Unreadable::new(format!("the invocation of {id}"), error))?;
    }
    Ok(record)
}

/// A list's question in the terms of what is kept apart.
pub(crate) struct Question {
    pub(crate) function: Option<String>,
    pub(crate) status: Option<i16>,
    /// Only smaller ids.
    pub(crate) cursor: Option<[u8; 16]>,
    /// `queued_at` at least, and the smallest id that such an execution has.
    pub(crate) since: Option<(i64, [u8; 16])>,
    pub(crate) limit: usize,
}

impl Question {
    pub(crate) fn of(filter: &ExecutionFilter) -> Self {
        Self {
            function: filter.function.as_ref().map(ToString::to_string),
            status: filter.status.map(|status| match status {
                StatusFilter::Running => OPEN,
                StatusFilter::Ended(status) => ended(status),
            }),
            cursor: filter.cursor.map(|id| *id.as_bytes()),
            since: filter.since.map(|since| (since.as_micros(), first_id_at(since.minus(ID_SLACK)))),
            limit: page(filter.limit),
        }
    }
}

/// The smallest id of an execution made at `at`: ids are UUIDv7, which begin with their milliseconds.
fn first_id_at(at: Timestamp) -> [u8; 16] {
    let millis = u64::try_from(at.as_millis()).unwrap_or(0).min((1 << 48) - 1);
    let mut id = [0; 16];
    id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    id
}

/// Rows of one page, whatever was asked.
pub(crate) fn page(limit: usize) -> usize {
    limit.clamp(1, flux_protocol::limits::PAGE)
}

/// What begins with `prefix` sorts before this: names are ASCII without DEL.
pub(crate) fn beyond(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}
