//! Records in columns.

use flux_protocol::{ExecutionId, ExecutionRecord};
use rusqlite::types::{Type, ValueRef};

use super::fault::Fault;
use crate::row;

/// Reads `record, output, invocation` from the columns that start at `first`.
pub(super) fn whole_record(found: &rusqlite::Row<'_>, first: usize) -> Result<ExecutionRecord, Fault> {
    let record = optional_bytes(found, first)?.unwrap_or_default();
    Ok(row::whole(record, optional_bytes(found, first + 1)?, optional_bytes(found, first + 2)?)?)
}

/// Reads `record` alone.
pub(super) fn slim_record(found: &rusqlite::Row<'_>, at: usize) -> Result<ExecutionRecord, Fault> {
    Ok(row::slim(optional_bytes(found, at)?.unwrap_or_default())?)
}

fn optional_bytes<'r>(found: &'r rusqlite::Row<'_>, at: usize) -> Result<Option<&'r [u8]>, Fault> {
    match found.get_ref(at)? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(Some(bytes)),
        ValueRef::Integer(_) | ValueRef::Real(_) => {
            Err(rusqlite::Error::InvalidColumnType(at, "record".to_owned(), Type::Integer).into())
        }
    }
}

pub(super) fn key(id: ExecutionId) -> [u8; 16] {
    *id.as_bytes()
}

/// Rows of one page, whatever was asked.
pub(super) fn page(limit: usize) -> i64 {
    i64::try_from(row::page(limit)).unwrap_or(1)
}
