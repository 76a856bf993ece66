//! API keys, the audit log, and what gateways share.

use flux_protocol::{Digest, KeyId, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{fault::Fault, rows::page};
use crate::{ApiKeyRecord, AuditEntry, PreviousKey};

pub(super) fn read(id: &str, json: &str, used: Option<i64>) -> Result<ApiKeyRecord, Fault> {
    let mut record: ApiKeyRecord =
        serde_json::from_str(json).map_err(|error| Fault::row(format!("the API key {id}"), error))?;
    record.last_used_at = used.map(Timestamp::from_micros);
    Ok(record)
}

pub(super) fn written<T: serde::Serialize>(what: &str, value: &T) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|error| Fault::row(what.to_owned(), error))
}

pub(super) fn insert_key(database: &Connection, key: &ApiKeyRecord, most: usize) -> Result<bool, Fault> {
    let inserted = database
        .prepare_cached(
            "INSERT INTO api_keys (id, record) SELECT ?1, ?2 WHERE (SELECT count(*) FROM api_keys) < ?3
             ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![key.id.as_str(), written("an API key", key)?, i64::try_from(most).unwrap_or(i64::MAX)])?;
    Ok(inserted == 1)
}

fn key(database: &Connection, id: &KeyId) -> Result<Option<ApiKeyRecord>, Fault> {
    let mut statement = database.prepare_cached("SELECT record, last_used_at FROM api_keys WHERE id = ?1")?;
    let row: Option<(String, Option<i64>)> =
        statement.query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    row.map(|(json, used)| read(id.as_str(), &json, used)).transpose()
}

pub(super) fn keys(database: &Connection) -> Result<Vec<ApiKeyRecord>, Fault> {
    let mut statement = database.prepare_cached("SELECT id, record, last_used_at FROM api_keys")?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, json): (String, String) = (row.get(0)?, row.get(1)?);
        all.push(read(&id, &json, row.get(2)?)?);
    }
    all.sort_by_key(|key| key.created_at);
    Ok(all)
}

pub(super) fn rotate_key(
    database: &Connection,
    id: &KeyId,
    digest: Digest,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<ApiKeyRecord>, Fault> {
    let Some(mut record) = key(database, id)? else { return Ok(None) };
    record.previous = Some(PreviousKey { digest: record.digest, until });
    record.digest = digest;
    record.rotated_at = Some(now);
    database
        .prepare_cached("UPDATE api_keys SET record = ?2 WHERE id = ?1")?
        .execute(params![id.as_str(), written("an API key", &record)?])?;
    Ok(Some(record))
}

pub(super) fn delete_key(database: &Connection, id: &KeyId) -> Result<bool, Fault> {
    Ok(database.prepare_cached("DELETE FROM api_keys WHERE id = ?1")?.execute([id.as_str()])? == 1)
}

pub(super) fn keys_used(database: &Connection, uses: &[(KeyId, Timestamp)]) -> Result<(), Fault> {
    let mut statement = database
        .prepare_cached("UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1 AND coalesce(last_used_at, 0) < ?2")?;
    for (id, at) in uses {
        statement.execute(params![id.as_str(), at.as_micros()])?;
    }
    Ok(())
}

pub(super) fn audit(database: &Connection, entry: &AuditEntry) -> Result<(), Fault> {
    database
        .prepare_cached("INSERT INTO audit (at, entry) VALUES (?1, ?2)")?
        .execute(params![entry.at.as_micros(), written("an audit entry", entry)?])?;
    Ok(())
}

pub(super) fn audit_log(
    database: &Connection,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<(u64, AuditEntry)>, Fault> {
    let before = before.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
    let mut statement =
        database.prepare_cached("SELECT seq, entry FROM audit WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2")?;
    let mut rows = statement.query(params![before, page(limit)])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let (seq, json): (i64, String) = (row.get(0)?, row.get(1)?);
        let entry = serde_json::from_str(&json).map_err(|error| Fault::row(format!("audit entry {seq}"), error))?;
        all.push((u64::try_from(seq).unwrap_or_default(), entry));
    }
    Ok(all)
}

pub(super) fn expire_audit(database: &Connection, before: Timestamp, limit: usize) -> Result<(), Fault> {
    database
        .prepare_cached("DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)")?
        .execute(params![before.as_micros(), i64::try_from(limit).unwrap_or(i64::MAX)])?;
    Ok(())
}

pub(super) fn shared_key(database: &Connection, name: &str, proposed: &[u8; 32]) -> Result<[u8; 32], Fault> {
    database
        .prepare_cached("INSERT INTO shared_keys (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING")?
        .execute(params![name, proposed])?;
    let mut statement = database.prepare_cached("SELECT value FROM shared_keys WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0))?)
}
