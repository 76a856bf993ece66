//! Idempotency keys: one statement claims, so two at once cannot both.

use std::time::Duration;

use flux_protocol::{Digest, ExecutionId, FunctionName, Timestamp};
use rusqlite::{Connection, params};

use super::{fault::Fault, rows::key};
use crate::Claim;

pub(super) struct Wanted {
    pub(super) function: FunctionName,
    pub(super) key: String,
    pub(super) body: Digest,
    pub(super) id: ExecutionId,
    pub(super) now: Timestamp,
    pub(super) window: Duration,
}

pub(super) fn claim(database: &Connection, wanted: &Wanted) -> Result<Claim, Fault> {
    let claimed = database
        .prepare_cached(
            "INSERT INTO idempotency (function, key, execution, body, at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (function, key) DO UPDATE SET
                 execution = excluded.execution, body = excluded.body, at = excluded.at, expires_at = excluded.expires_at
             WHERE idempotency.expires_at <= excluded.at",
        )?
        .execute(params![
            wanted.function.as_str(),
            wanted.key,
            key(wanted.id),
            wanted.body.as_bytes(),
            wanted.now.as_micros(),
            wanted.now.plus(wanted.window).as_micros(),
        ])?;
    if claimed == 1 {
        return Ok(Claim::Claimed);
    }
    let mut statement =
        database.prepare_cached("SELECT execution, body, at FROM idempotency WHERE function = ?1 AND key = ?2")?;
    let held = statement.query_row(params![wanted.function.as_str(), wanted.key], |row| {
        Ok((row.get::<_, [u8; 16]>(0)?, row.get(1)?, row.get(2)?))
    })?;
    Ok(Claim::Held {
        execution_id: ExecutionId::from_bytes(held.0),
        body: Digest::from_bytes(held.1),
        at: Timestamp::from_micros(held.2),
    })
}

pub(super) fn release(
    database: &Connection,
    function: &FunctionName,
    name: &str,
    id: ExecutionId,
) -> Result<(), Fault> {
    database
        .prepare_cached("DELETE FROM idempotency WHERE function = ?1 AND key = ?2 AND execution = ?3")?
        .execute(params![function.as_str(), name, key(id)])?;
    Ok(())
}

/// Removes at most `limit` keys that ran out before `before`.
pub(super) fn expire(database: &Connection, before: Timestamp, limit: usize) -> Result<(), Fault> {
    database
        .prepare_cached(
            "DELETE FROM idempotency WHERE (function, key) IN
             (SELECT function, key FROM idempotency WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2)",
        )?
        .execute(params![before.as_micros(), i64::try_from(limit).unwrap_or(i64::MAX)])?;
    Ok(())
}
