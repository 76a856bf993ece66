//! Leases with fencing tokens. The row outlives the lease, and the token with it.

use std::time::Duration;

use flux_protocol::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::fault::Fault;
use crate::Lease;

pub(super) fn take(
    database: &Connection,
    name: &str,
    holder: &str,
    now: Timestamp,
    ttl: Duration,
) -> Result<Option<Lease>, Fault> {
    let mut statement = database.prepare_cached("SELECT holder, token, until FROM leases WHERE name = ?1")?;
    let known: Option<(String, i64, i64)> =
        statement.query_row([name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let token = match known {
        Some((by, token, until)) if until > now.as_micros() => {
            if by != holder {
                return Ok(None);
            }
            token
        }
        Some((_, token, _)) => token.saturating_add(1),
        None => 1,
    };
    let until = now.plus(ttl);
    database
        .prepare_cached("INSERT OR REPLACE INTO leases (name, holder, token, until) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![name, holder, token, until.as_micros()])?;
    Ok(Some(Lease { holder: holder.to_owned(), token: u64::try_from(token).unwrap_or_default(), until }))
}

pub(super) fn release(database: &Connection, name: &str, holder: &str) -> Result<(), Fault> {
    database
        .prepare_cached("UPDATE leases SET until = 0 WHERE name = ?1 AND holder = ?2")?
        .execute(params![name, holder])?;
    Ok(())
}
