//! API keys, the audit log, and what gateways share.

use flux_protocol::{Digest, KeyId, Timestamp};

use super::{connect::Session, fault::Fault};
use crate::{ApiKeyRecord, AuditEntry, PreviousKey, row};

pub(super) fn read(found: &tokio_postgres::Row) -> Result<ApiKeyRecord, Fault> {
    let (id, json): (&str, &str) = (found.try_get(0)?, found.try_get(1)?);
    let mut record: ApiKeyRecord =
        serde_json::from_str(json).map_err(|error| Fault::row(format!("the API key {id}"), error))?;
    record.last_used_at = found.try_get::<_, Option<i64>>(2)?.map(Timestamp::from_micros);
    Ok(record)
}

pub(super) fn written<T: serde::Serialize>(what: &str, value: &T) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|error| Fault::row(what.to_owned(), error))
}

/// Adding is rare, and one at a time counts what is there.
pub(super) async fn insert_key(session: &Session, key: &ApiKeyRecord, most: usize) -> Result<bool, Fault> {
    let record = written("an API key", key)?;
    let client = &session.client;
    client.batch_execute("BEGIN; LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE").await?;
    let sql = "INSERT INTO api_keys (id, record) SELECT $1, $2 WHERE (SELECT count(*) FROM api_keys) < $3
               ON CONFLICT (id) DO NOTHING";
    let statement = session.prepared(sql).await?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let inserted = client.execute(&statement, &[&key.id.as_str(), &record, &most]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(inserted == 1)
}

pub(super) async fn keys(session: &Session) -> Result<Vec<ApiKeyRecord>, Fault> {
    let found = session.client.query("SELECT id, record, last_used_at FROM api_keys", &[]).await?;
    let mut all = found.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    all.sort_by_key(|key| key.created_at);
    Ok(all)
}

pub(super) async fn rotate_key(
    session: &Session,
    id: &KeyId,
    digest: Digest,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<ApiKeyRecord>, Fault> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    let select = session.prepared("SELECT id, record, last_used_at FROM api_keys WHERE id = $1 FOR UPDATE").await?;
    let found = client.query_opt(&select, &[&id.as_str()]).await?;
    let mut record = found.as_ref().map(read).transpose()?;
    // Done already, by this call before its connection was lost: the key before stays the one before.
    if let Some(record) = record.as_mut().filter(|record| record.digest != digest) {
        record.previous = Some(PreviousKey { digest: record.digest, until });
        record.digest = digest;
        record.rotated_at = Some(now);
        let update = session.prepared("UPDATE api_keys SET record = $2 WHERE id = $1").await?;
        client.execute(&update, &[&id.as_str(), &written("an API key", record)?]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(record)
}

pub(super) async fn delete_key(session: &Session, id: &KeyId) -> Result<bool, Fault> {
    Ok(session.client.execute("DELETE FROM api_keys WHERE id = $1", &[&id.as_str()]).await? == 1)
}

pub(super) async fn keys_used(session: &Session, uses: &[(KeyId, Timestamp)]) -> Result<(), Fault> {
    let mut uses: Vec<(&str, i64)> = uses.iter().map(|(id, at)| (id.as_str(), at.as_micros())).collect();
    // Each once, at its latest; rows are locked in the order of their keys.
    uses.sort_unstable();
    uses.reverse();
    uses.dedup_by_key(|(id, _)| *id);
    uses.reverse();
    let (ids, times): (Vec<&str>, Vec<i64>) = uses.into_iter().unzip();
    let sql = "WITH used AS (
                   SELECT k.id, n.at FROM api_keys k JOIN unnest($1::text[], $2::int8[]) AS n (id, at) ON n.id = k.id
                   ORDER BY k.id FOR UPDATE OF k)
               UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, used.at) FROM used WHERE used.id = k.id";
    let statement = session.prepared(sql).await?;
    session.client.execute(&statement, &[&ids, &times]).await?;
    Ok(())
}

pub(super) async fn audit(session: &Session, entry: &AuditEntry) -> Result<(), Fault> {
    let statement = session.prepared("INSERT INTO audit (at, entry) VALUES ($1, $2)").await?;
    let json = written("an audit entry", entry)?;
    session.client.execute(&statement, &[&entry.at.as_micros(), &json]).await?;
    Ok(())
}

pub(super) const AUDIT_LOG: &str = "SELECT seq, entry FROM audit WHERE seq < $1 ORDER BY seq DESC LIMIT $2";

pub(super) async fn audit_log(
    session: &Session,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<(u64, AuditEntry)>, Fault> {
    let before = before.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
    let statement = session.prepared(AUDIT_LOG).await?;
    let limit = i64::try_from(row::page(limit)).unwrap_or(1);
    let found = session.client.query(&statement, &[&before, &limit]).await?;
    let entries = found.iter().map(|found| {
        let (seq, json): (i64, &str) = (found.try_get(0)?, found.try_get(1)?);
        let entry = serde_json::from_str(json).map_err(|error| Fault::row(format!("audit entry {seq}"), error))?;
        Ok((u64::try_from(seq).unwrap_or_default(), entry))
    });
    entries.collect()
}

pub(super) const EXPIRE_AUDIT: &str = "DELETE FROM audit WHERE seq = ANY (ARRAY(
        SELECT seq FROM audit WHERE at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED))";

pub(super) async fn shared_key(session: &Session, name: &str, proposed: &[u8; 32]) -> Result<[u8; 32], Fault> {
    let proposed = &proposed[..];
    let insert = "INSERT INTO shared_keys (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    session.client.execute(insert, &[&name, &proposed]).await?;
    let found = session.client.query_one("SELECT value FROM shared_keys WHERE name = $1", &[&name]).await?;
    let value: &[u8] = found.try_get(0)?;
    value.try_into().map_err(|error| Fault::row(format!("the shared key {name}"), error))
}
