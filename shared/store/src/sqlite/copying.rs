//! The whole database, read in one transaction and written in one. Each on a connection of its own, so that gateways go on
//! beside a backup; its log cannot be folded in meanwhile, and grows.

use flux_protocol::{Digest, ExecutionId, FunctionName, KeyId, Timestamp};
use rusqlite::{Connection, params};
use tokio::sync::mpsc;

use super::{access, executions, fault::Fault, functions, rows::whole_record, secrets};
use crate::{Census, Entry, FunctionHead, HeldKey, NumberedEntry, Part, SharedKey, UsedKey, row::Row};

/// Leases stay: their tokens only grow.
const EMPTY: &str = "DELETE FROM functions; DELETE FROM versions; DELETE FROM executions; DELETE FROM idempotency;
    DELETE FROM api_keys; DELETE FROM audit; DELETE FROM shared_keys; DELETE FROM secrets; DELETE FROM secret_claims;";

pub(super) fn census(database: &Connection) -> Result<Census, Fault> {
    let count = |sql: &str| -> Result<u64, Fault> {
        Ok(database.query_row(sql, [], |row| row.get::<_, i64>(0))?.try_into().unwrap_or(0))
    };
    let most = Census::COUNTED;
    Ok(Census {
        functions: count("SELECT count(*) FROM functions WHERE current IS NOT NULL")?,
        executions: count(&format!("SELECT count(*) FROM (SELECT 1 FROM executions LIMIT {most})"))?,
        keys: count("SELECT count(*) FROM api_keys")?,
        secrets: count("SELECT count(*) FROM secrets")?,
    })
}

/// What goes on taking entries until it has enough.
pub(super) trait Take {
    /// False: it wants no more.
    fn take(&mut self, entry: Entry) -> bool;
}

impl Take for mpsc::Sender<Entry> {
    fn take(&mut self, entry: Entry) -> bool {
        self.blocking_send(entry).is_ok()
    }
}

impl Take for Vec<Entry> {
    fn take(&mut self, entry: Entry) -> bool {
        self.push(entry);
        true
    }
}

/// Everything, as of one moment.
pub(super) fn export(database: &Connection, into: &mut impl Take) -> Result<(), Fault> {
    database.execute_batch("BEGIN")?;
    let done = export_all(database, into);
    database.execute_batch("ROLLBACK")?;
    done
}

/// The same within a transaction that is open.
pub(super) fn export_all(database: &Connection, into: &mut impl Take) -> Result<(), Fault> {
    // The first read is the moment.
    let taken =
        each(database, "SELECT name, current, last FROM functions", into, |row| {
            Ok(Entry::Function(FunctionHead { name: name(row, 0)?, current: row.get(1)?, last: row.get(2)? }))
        })? && each(database, "SELECT version, digest, spec, created_at FROM versions", into, |row| {
            Ok(Entry::Version(Box::new(functions::version_from(row)?)))
        })? && each(database, "SELECT record, output, invocation FROM executions", into, |row| {
            Ok(Entry::Execution(Box::new(whole_record(row, 0)?)))
        })? && each(database, "SELECT function, key, execution, body, at, expires_at FROM idempotency", into, |row| {
            Ok(Entry::Idempotency(HeldKey {
                function: name(row, 0)?,
                key: row.get(1)?,
                execution: ExecutionId::from_bytes(row.get(2)?),
                body: Digest::from_bytes(row.get(3)?),
                at: Timestamp::from_micros(row.get(4)?),
                expires_at: Timestamp::from_micros(row.get(5)?),
            }))
        })? && each(database, "SELECT id, record, last_used_at FROM api_keys", into, |row| {
            let (id, json): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(Entry::ApiKey(UsedKey::of(access::read(&id, &json, row.get(2)?)?)))
        })? && each(database, "SELECT seq, entry FROM audit ORDER BY seq", into, |row| {
            let (seq, json): (i64, String) = (row.get(0)?, row.get(1)?);
            let entry = serde_json::from_str(&json).map_err(|error| Fault::row(format!("audit entry {seq}"), error))?;
            Ok(Entry::Audit(NumberedEntry { seq: u64::try_from(seq).unwrap_or_default(), entry }))
        })? && each(database, "SELECT name, value FROM shared_keys", into, |row| {
            Ok(Entry::SharedKey(SharedKey { name: row.get(0)?, value: row.get(1)? }))
        })?;
    if taken {
        let sql = format!("SELECT {} FROM secrets", secrets::COLUMNS);
        each(database, &sql, into, |row| Ok(Entry::Secret(secrets::read(row)?)))?;
    }
    Ok(())
}

fn name(row: &rusqlite::Row<'_>, at: usize) -> Result<FunctionName, Fault> {
    let text: String = row.get(at)?;
    FunctionName::parse(&text).map_err(|error| Fault::row("a function", error))
}

fn each(
    database: &Connection,
    sql: &str,
    into: &mut impl Take,
    entry: impl Fn(&rusqlite::Row<'_>) -> Result<Entry, Fault>,
) -> Result<bool, Fault> {
    let mut statement = database.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if !into.take(entry(row)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Everything that is there goes, and what comes takes its place, once the end has come.
pub(super) fn import(database: &Connection, mut next: impl FnMut() -> Option<Part>) -> Result<bool, Fault> {
    database.execute_batch("BEGIN IMMEDIATE")?;
    let filled = empty(database).and_then(|()| fill(database, &mut next));
    match filled {
        Ok(true) => {
            database.execute_batch("COMMIT")?;
            Ok(true)
        }
        other => {
            // A full disk has undone it already.
            if !database.is_autocommit() {
                database.execute_batch("ROLLBACK")?;
            }
            other
        }
    }
}

pub(super) fn empty(database: &Connection) -> Result<(), Fault> {
    Ok(database.execute_batch(EMPTY)?)
}

/// Whether the end came.
pub(super) fn fill(database: &Connection, next: &mut impl FnMut() -> Option<Part>) -> Result<bool, Fault> {
    while let Some(part) = next() {
        match part {
            Part::Entry(entry) => write(database, entry)?,
            Part::End => return Ok(true),
        }
    }
    Ok(false)
}

fn write(database: &Connection, entry: Entry) -> Result<(), Fault> {
    match entry {
        Entry::Function(FunctionHead { name, current, last }) => {
            database
                .prepare_cached("INSERT INTO functions (name, current, last) VALUES (?1, ?2, ?3)")?
                .execute(params![name.as_str(), current, last])?;
        }
        Entry::Version(version) => functions::save(database, &version)?,
        Entry::Execution(record) => {
            executions::insert(database, &Row::of(*record))?;
        }
        // One that was read from Redis may come twice.
        Entry::Idempotency(HeldKey { function, key, execution, body, at, expires_at }) => {
            database
                .prepare_cached(
                    "INSERT OR REPLACE INTO idempotency (function, key, execution, body, at, expires_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    function.as_str(),
                    key,
                    execution.as_bytes(),
                    body.as_bytes(),
                    at.as_micros(),
                    expires_at.as_micros()
                ])?;
        }
        Entry::ApiKey(used) => {
            let UsedKey { record, last_used_at } = *used;
            let used = last_used_at.map(Timestamp::as_micros);
            database
                .prepare_cached("INSERT INTO api_keys (id, record, last_used_at) VALUES (?1, ?2, ?3)")?
                .execute(params![KeyId::as_str(&record.id), access::written("an API key", &record)?, used])?;
        }
        Entry::Audit(NumberedEntry { seq, entry }) => {
            let seq = i64::try_from(seq).unwrap_or(i64::MAX);
            database.prepare_cached("INSERT INTO audit (seq, at, entry) VALUES (?1, ?2, ?3)")?.execute(params![
                seq,
                entry.at.as_micros(),
                access::written("an audit entry", &entry)?
            ])?;
        }
        Entry::SharedKey(SharedKey { name, value }) => {
            database
                .prepare_cached("INSERT INTO shared_keys (name, value) VALUES (?1, ?2)")?
                .execute(params![name, value])?;
        }
        Entry::Secret(secret) => {
            database
                .prepare_cached(
                    "INSERT INTO secrets (name, version, key, sealed, created_at, updated_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    secret.name.as_str(),
                    secret.version,
                    secret.key,
                    secret.sealed,
                    secret.created_at.as_micros(),
                    secret.updated_at.as_micros()
                ])?;
        }
    }
    Ok(())
}
