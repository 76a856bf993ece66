//! Secrets, which come here encrypted, and which agent was given those of an attempt.

use flux_protocol::{AgentId, ExecutionId, SecretName, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{fault::Fault, rows::key};
use crate::SealedSecret;

pub(super) const COLUMNS: &str = "name, version, key, sealed, created_at, updated_at";

pub(super) fn read(row: &Row<'_>) -> Result<SealedSecret, Fault> {
    let name: String = row.get(0)?;
    Ok(SealedSecret {
        name: SecretName::parse(&name).map_err(|error| Fault::row("a secret", error))?,
        version: row.get(1)?,
        key: row.get(2)?,
        sealed: row.get(3)?,
        created_at: Timestamp::from_micros(row.get(4)?),
        updated_at: Timestamp::from_micros(row.get(5)?),
    })
}

pub(super) fn put(database: &Connection, secret: &SealedSecret, most: usize) -> Result<Option<u32>, Fault> {
    let mut statement = database.prepare_cached(
        "INSERT INTO secrets (name, version, key, sealed, created_at, updated_at)
         SELECT ?1, 1, ?2, ?3, ?4, ?4
         WHERE (SELECT count(*) FROM secrets) < ?5 OR EXISTS (SELECT 1 FROM secrets WHERE name = ?1)
         ON CONFLICT (name) DO UPDATE SET
             version = secrets.version + 1, key = excluded.key, sealed = excluded.sealed, updated_at = excluded.updated_at
         RETURNING version",
    )?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let at = secret.updated_at.as_micros();
    Ok(statement
        .query_row(params![secret.name.as_str(), secret.key, secret.sealed, at, most], |row| row.get(0))
        .optional()?)
}

pub(super) fn get(database: &Connection, name: &SecretName) -> Result<Option<SealedSecret>, Fault> {
    let mut statement = database.prepare_cached(&format!("SELECT {COLUMNS} FROM secrets WHERE name = ?1"))?;
    let mut rows = statement.query([name.as_str()])?;
    rows.next()?.map(read).transpose()
}

pub(super) fn list(database: &Connection) -> Result<Vec<SealedSecret>, Fault> {
    let mut statement = database.prepare_cached(&format!("SELECT {COLUMNS} FROM secrets ORDER BY name"))?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(read(row)?);
    }
    Ok(all)
}

pub(super) fn reseal(database: &Connection, secret: &SealedSecret) -> Result<bool, Fault> {
    let changed = database
        .prepare_cached("UPDATE secrets SET key = ?3, sealed = ?4 WHERE name = ?1 AND version = ?2")?
        .execute(params![secret.name.as_str(), secret.version, secret.key, secret.sealed])?;
    Ok(changed == 1)
}

pub(super) fn delete(database: &Connection, name: &SecretName) -> Result<bool, Fault> {
    Ok(database.prepare_cached("DELETE FROM secrets WHERE name = ?1")?.execute([name.as_str()])? == 1)
}

pub(super) fn claim(
    database: &Connection,
    execution: ExecutionId,
    attempt: u32,
    agent: &AgentId,
    nonce: [u8; 16],
    now: Timestamp,
) -> Result<bool, Fault> {
    database
        .prepare_cached(
            "INSERT INTO secret_claims (execution, attempt, agent, nonce, at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (execution, attempt) DO NOTHING",
        )?
        .execute(params![key(execution), attempt, agent.as_str(), nonce, now.as_micros()])?;
    let mut statement =
        database.prepare_cached("SELECT agent, nonce FROM secret_claims WHERE execution = ?1 AND attempt = ?2")?;
    let held: (String, [u8; 16]) =
        statement.query_row(params![key(execution), attempt], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(held.0 == agent.as_str() && held.1 == nonce)
}

pub(super) fn expire_claims(database: &Connection, before: Timestamp, limit: usize) -> Result<(), Fault> {
    database
        .prepare_cached(
            "DELETE FROM secret_claims WHERE (execution, attempt) IN
             (SELECT execution, attempt FROM secret_claims WHERE at < ?1 ORDER BY at LIMIT ?2)",
        )?
        .execute(params![before.as_micros(), i64::try_from(limit).unwrap_or(i64::MAX)])?;
    Ok(())
}
